"""Pictures and tables of one piece of work: a call saves them in its folder and displays them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure

from newllm_core.comparison.tables import readable_table
from newllm_core.report.style import save_figure
from newllm_core.runs.files import HOME, write_text

_LINE = 110  # characters of a table's line in a terminal, which would break it at 80


class Gallery:
    """``folder`` is made when the first picture is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def show(self, name: str, figure: Figure) -> None:
        """Write ``<name>.png`` and ``<name>.svg``; display the picture."""
        display(Image(str(save_figure(figure, self.folder / f"{name}.png"))))

    def table(self, name: str, table: pd.DataFrame, columns: Sequence[str] | None = None) -> None:
        """Write ``<name>.csv``, whole; display the readable form, values with their intervals in brackets.

        ``columns``: of that form, those which are there, so that lines do not wrap; the names of the others are
        printed. None: all.
        """
        write_text(self.folder / f"{name}.csv", table.to_csv())
        readable = readable_table(table)
        chosen = [name for name in columns or readable if name in readable]
        with pd.option_context("display.width", _LINE):
            display(readable[chosen])
        if others := [name for name in readable if name not in chosen]:
            print(f"{name}.csv has more: {', '.join(others)}")

    def __str__(self) -> str:
        """What there is, a path a line, from the folder that data and results lie in."""
        files = sorted(path for path in self.folder.glob("*.*") if path.is_file() and not path.name.startswith("."))
        return "\n".join(str(path.relative_to(HOME) if path.is_relative_to(HOME) else path) for path in files)
