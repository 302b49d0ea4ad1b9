"""A notebook as it was executed, as Markdown and pictures."""

import base64
import re
from pathlib import Path

import nbformat


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Its page, and the pictures that the page names, by file name; they lie in a folder named like the notebook."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(_without_badge(cell.source))
            continue
        parts.append(_fenced(cell.source, "python"))
        for output in cell.outputs:
            shown = output.get("data", {})
            if output.output_type == "stream":
                parts.append(_fenced(output.text.rstrip("\n"), "text"))
            elif "image/png" in shown:
                name = f"{len(pictures) + 1:02}.png"
                pictures[name] = base64.b64decode(shown["image/png"])
                parts.append(f"![Output {len(pictures)} of {path.stem}]({path.stem}/{name})")
            elif "text/html" in shown:
                # An animation asks another host for the icons of its buttons; the site's own style has them.
                own = re.sub(r'<link[^>]*href="https?:[^>]*>', "", shown["text/html"])
                parts.append(f'<div class="md-typeset__scrollwrap">\n{own}\n</div>')
            elif "text/plain" in shown:
                parts.append(_fenced(shown["text/plain"], "text"))
    return "\n\n".join(parts) + "\n", pictures


def _without_badge(text: str) -> str:
    """Its picture lies on another host, which readers of the site need not ask."""
    return "\n".join(line for line in text.split("\n") if "colab-badge" not in line)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
