"""What all pictures have in common: colours, axes, saving, the line that says what a figure rests on."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from newllm_core.runs.files import write_atomically

# Okabe & Ito 2008, "Color Universal Design": told apart with every kind of colour vision. Their yellow is too light for
# a line on white.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
TRAIN_COLOUR, VALIDATION_COLOUR, MARK_COLOUR = BLUE, VERMILION, GREEN
PLAIN_COLOUR = "#707070"  # of what the others are held against
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "black")

_DPI = 110
_SAVING: dict[str, Any] = {"dpi": _DPI, "bbox_inches": "tight"}


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``path``, a PNG, and the same picture as SVG beside it, each atomically; same figure, same bytes.

    Raises ValueError for a path that does not end in ".png".
    """
    if path.suffix != ".png":
        raise ValueError(f"save_figure: expected a path that ends in .png, given {path}")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", **_SAVING))
    # Text as text: found by a search, read aloud, and a fifth of the size.
    with matplotlib.rc_context({"svg.hashsalt": "newllm_core", "svg.fonttype": "none"}):
        write_atomically(
            path.with_suffix(".svg"),
            lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}, **_SAVING),
        )
    return path


def as_png(figure: Figure) -> bytes:
    """The picture itself; for widgets, which draw anew and keep nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **_SAVING)
    return buffer.getvalue()


def new_axes(columns: int, width: float = 4.6, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` panels side by side, sizes in inches."""
    # Figure, not pyplot: nothing global, nothing to close, and a notebook shows it once.
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def empty_figure(title: str, source: str) -> Figure:
    """What stands in a picture's place where its figures are missing."""
    figure, (axis,) = new_axes(1, width=6)
    axis.set_axis_off()
    axis.set_title(title)
    figure.suptitle(source, fontsize=9)
    return figure


def source_line(record: Mapping[str, Any]) -> str:
    """What every picture says below its title: corpus, embeddings, tokens, seed."""
    return (
        f"{record['corpus']}, {record['embeddings']}, {record['tokens']['train']:,} training tokens, "
        f"C = {record['config']['model']['context_dim']}, seed {record['seed']}"
    )
