"""The README's small pictures of the notebooks, from the pictures in their committed outputs.

    python -m reproduce.thumbnails

Writes docs/thumbnails/<notebook>.png, of each notebook the picture that CHOSEN numbers, else its first.
"""

import base64
import functools
import io
from pathlib import Path

import nbformat
from PIL import Image

from newllm_core.runs.files import PROJECT_ROOT, write_atomically

FOLDER = PROJECT_ROOT / "docs" / "thumbnails"
WIDTH, HEIGHT = 240, 150  # pixels
COLOURS = 64
# Which of a notebook's pictures, from 0, is understood at this size.
CHOSEN = {
    "00_tour": 2,
    "02_phase1": 3,
    "05_diversity_comparison": 2,
    "07_nkat_stage2": 8,
}


def pictures(notebook: Path) -> list[bytes]:
    """Every PNG among its outputs, in order."""
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def thumbnail(picture: bytes) -> Image.Image:
    """The picture at its own proportions in the middle of a white card of `WIDTH` × `HEIGHT` pixels."""
    small = Image.open(io.BytesIO(picture)).convert("RGB")
    small.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    card = Image.new("RGB", (WIDTH, HEIGHT), "white")
    card.paste(small, ((WIDTH - small.width) // 2, (HEIGHT - small.height) // 2))
    return card.quantize(COLOURS)


def main() -> None:
    for notebook in sorted((PROJECT_ROOT / "notebooks").glob("[0-9]*.ipynb")):
        found, number = pictures(notebook), CHOSEN.get(notebook.stem, 0)
        if number >= len(found):
            raise ValueError(f"{notebook}: expected a picture {number} (from 0) among its outputs, found {len(found)}")
        card = thumbnail(found[number])
        path = FOLDER / f"{notebook.stem}.png"
        write_atomically(path, functools.partial(card.save, format="PNG", optimize=True))
        print(path)


if __name__ == "__main__":
    main()
