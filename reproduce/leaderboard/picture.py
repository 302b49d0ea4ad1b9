"""The leaderboard's picture: every entry's perplexity with its interval, a panel a board, from its list alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from newllm_core.report.style import BLUE, GREEN, SKY, VERMILION, new_axes

Board = Mapping[str, Any]
Entry = Mapping[str, Any]

# By a row's kind: what it is in words, and its colour.
_KINDS = {
    "model": ("a ContextBlock", BLUE), "control": ("its controls", SKY), "network": ("trained end to end", VERMILION),
    "counts": ("counts", GREEN),
}  # fmt: skip
_ROW_HEIGHT, _FRAME_HEIGHT = 0.3, 1.9  # inches


def plot_boards(boards: Sequence[Board]) -> Figure:
    """A row a variant, in the order of the first board that has it; hollow: it has a note on its board.

    Raises ValueError where no board has an entry.
    """
    boards = [board for board in boards if board["entries"]]
    if not boards:
        raise ValueError("plot_boards: expected at least one entry, given none")
    labels = {entry["name"]: entry["label"] for board in reversed(boards) for entry in reversed(board["entries"])}
    places = {name: place for place, name in enumerate(_order(boards))}
    figure, axes = new_axes(len(boards), width=4.8)
    figure.set_size_inches(2.6 + 3.9 * len(boards), _FRAME_HEIGHT + _ROW_HEIGHT * len(places))
    for axis, board in zip(axes, boards):
        _draw_board(axis, board, places)
        axis.set(yticks=[*places.values()], yticklabels=[], ylim=(len(places) - 0.4, -0.6), xlim=_limits(boards))
    axes[0].set_yticklabels([labels[name] for name in places], fontsize=9)
    figure.legend(handles=_legend(boards), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle("Perplexity on the same 20 conversations, with 95 % intervals", fontsize=10)
    return figure


def _order(boards: Sequence[Board]) -> list[str]:
    return list(dict.fromkeys(entry["name"] for board in boards for entry in board["entries"]))


def _limits(boards: Sequence[Board]) -> tuple[float, float]:
    """One axis for all boards, so that they can be held against each other."""
    entries = [entry for board in boards for entry in board["entries"]]
    ends = [end for entry in entries for end in (entry["validation_perplexity"], *(entry["interval"] or ()))]
    return min(ends) / 1.1, max(ends) * 1.1


def _draw_board(axis: Axes, board: Board, places: Mapping[str, int]) -> None:
    for entry in board["entries"]:
        place, (_, colour) = places[entry["name"]], _KINDS[entry["kind"]]
        if entry["interval"] is not None:
            axis.plot(entry["interval"], [place] * 2, color=colour, lw=2, solid_capstyle="butt")
        value, face = entry["validation_perplexity"], "white" if entry["marks"] else colour
        axis.plot([value], [place], "o", ms=6, color=colour, mfc=face, zorder=3)
        beside = axis.get_yaxis_transform()
        axis.text(1.02, place, f"{value:,.0f}", transform=beside, va="center", fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("perplexity, log axis (lower is better)")
    axis.set_title(f"{board['train_tokens']:,} training tokens", fontsize=10)
    axis.tick_params(axis="y", length=0)


def _legend(boards: Sequence[Board]) -> list[Line2D]:
    """Only of what is there."""
    entries: list[Entry] = [entry for board in boards for entry in board["entries"]]
    kinds = {entry["kind"] for entry in entries}
    handles = [
        Line2D([], [], color=colour, lw=4, label=words) for kind, (words, colour) in _KINDS.items() if kind in kinds
    ]
    look: dict[str, Any] = {"color": "black", "ls": "", "ms": 6, "marker": "o"}
    for is_there, face, words in (
        (any(not entry["marks"] for entry in entries), "black", "by every rule"),
        (any(entry["marks"] for entry in entries), "white", "with a note in the table"),
    ):
        handles += [Line2D([], [], mfc=face, label=words, **look)] * is_there
    return handles
