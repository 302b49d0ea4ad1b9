"""The forest plot: a row a figure, its 95 % interval, and at a glance whether it differs from the reference.

One mark everywhere: filled is distinguishable from the reference line, hollow is not; a diamond rests on one seed,
whose own spread is not in its interval; thin strokes are the single seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from newllm_core.intervals import NOT_DISTINGUISHABLE, NOT_MEASURED, Estimate
from newllm_core.report.style import BLUE, PLAIN_COLOUR, new_axes

_LETTER_WIDTH, _PANEL_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT = 0.062, 4.6, 0.28, 1.7  # inches
_NOTE_HEIGHT = 0.13
_WIDE_SPAN = 4  # of ratios, from which a logarithmic axis has room for 1, 2 and 5 alone


@dataclass(frozen=True)
class ForestLabel:
    """What stands at the left of a row: words, and a second line below them.

    Attributes:
        group: of neighbouring rows; where there are several, each has a heading.
        kind: a key of ``colours``.
    """

    text: str
    note: str = ""
    group: str = ""
    kind: str = ""


@dataclass(frozen=True)
class ForestPanel:
    """One figure of every row, paired; None for the reference itself and for what was not measured."""

    title: str
    xlabel: str  # unit, and which direction is better
    estimates: Sequence[Estimate | None]
    pattern: str = "{:.3f}"
    reference: int | None = None  # the row that the others are held against


def plot_forest(
    labels: Sequence[ForestLabel], panels: Sequence[ForestPanel], source: str, colours: Mapping[str, str] | None = None
) -> Figure:
    """Rows from top to bottom, panels side by side. ``colours``: by kind, named in the legend where there are several.

    Ratios (no difference is 1) stand on a logarithmic axis. Raises ValueError for a panel of another length.
    """
    if any(len(panel.estimates) != len(labels) for panel in panels):
        raise ValueError(f"plot_forest: expected an estimate or None for each of {len(labels)} rows in every panel")
    places, headings = _places([label.group for label in labels])
    figure, axes = new_axes(len(panels))
    texts = [label.text + f"\n{label.note}" * bool(label.note) for label in labels]
    longest = max(len(line) for text in [*texts, *headings.values()] for line in text.split("\n"))
    notes = sum(bool(label.note) for label in labels)
    height = _FRAME_HEIGHT + _ROW_HEIGHT * (len(places) + len(headings)) + _NOTE_HEIGHT * notes
    figure.set_size_inches(_LETTER_WIDTH * longest + _PANEL_WIDTH * len(panels), height)
    known = {kind: colour for kind, colour in (colours or {}).items() if kind in {label.kind for label in labels}}
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel, places, [known.get(label.kind, BLUE) for label in labels])
        axis.set(yticks=[*places, *headings], yticklabels=[], ylim=(places[-1] + 0.6, -0.6))
    axes[0].set_yticklabels([*texts, *headings.values()], fontsize=8)
    for heading in axes[0].get_yticklabels()[len(texts) :]:
        heading.set(style="italic", color=PLAIN_COLOUR)
    shown = [estimate for panel in panels for estimate in panel.estimates if estimate is not None]
    handles = _legend(shown, known if len(known) > 1 else {})
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(source, fontsize=9)
    return figure


def _places(groups: Sequence[str]) -> tuple[list[int], dict[int, str]]:
    """Heights of the rows, and of the headings where there are several groups."""
    places: list[int] = []
    headings: dict[int, str] = {}
    for number, group in enumerate(groups):
        if len(set(groups)) > 1 and (number == 0 or group != groups[number - 1]):
            headings[number + len(headings)] = group
        places.append(number + len(headings))
    return places, headings


def _draw_panel(axis: Axes, panel: ForestPanel, places: Sequence[int], colours: Sequence[str]) -> None:
    beside: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 8}
    for number, (place, estimate) in enumerate(zip(places, panel.estimates)):
        if estimate is not None:
            _draw_estimate(axis, place, estimate, colours[number])
            axis.text(1.02, place, estimate.text(panel.pattern), **beside)
        else:
            axis.text(1.02, place, "reference" if number == panel.reference else NOT_MEASURED, **beside)
    known = [estimate for estimate in panel.estimates if estimate is not None]
    for no_difference in {estimate.no_difference for estimate in known if estimate.no_difference is not None}:
        axis.axvline(no_difference, color=PLAIN_COLOUR, lw=1.2, zorder=0)
        if no_difference == 1:
            _ratio_axis(axis, known)
    axis.set_xlabel(panel.xlabel)
    axis.set_title(panel.title, fontsize=10)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _draw_estimate(axis: Axes, place: int, estimate: Estimate, colour: str) -> None:
    if estimate.interval is not None:
        axis.plot(estimate.interval, [place] * 2, color=colour, lw=2, solid_capstyle="butt")
    if len(estimate.by_seed) > 1:
        axis.plot(estimate.by_seed, [place] * len(estimate.by_seed), "|", ms=9, color="black", alpha=0.5)
    mark, face = "D" if len(estimate.by_seed) == 1 else "o", colour if estimate.is_distinguishable else "white"
    axis.plot([estimate.value], [place], mark, ms=6, color=colour, mfc=face, zorder=3)


def _ratio_axis(axis: Axes, estimates: Sequence[Estimate]) -> None:
    ends = [end for one in estimates for end in (one.value, *(one.interval or ()))]
    axis.set_xscale("log")
    wide = max(ends) > _WIDE_SPAN * min(ends)
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)) if wide else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(estimates: Sequence[Estimate], colours: Mapping[str, str]) -> list[Line2D]:
    """Only of what is there."""
    handles = [Line2D([], [], color=colour, lw=4, label=kind) for kind, colour in colours.items()]
    look: dict[str, Any] = {"color": "black", "ls": "", "ms": 6}
    marks = (
        (any(one.is_distinguishable for one in estimates), "o", "black", "distinguishable from the line"),
        (any(not one.is_distinguishable for one in estimates), "o", "white", NOT_DISTINGUISHABLE),
        (
            any(len(one.by_seed) == 1 for one in estimates),
            "D",
            "0.7",
            "one seed: its spread is not in the interval",
        ),
        (any(len(one.by_seed) > 1 for one in estimates), "|", "black", "a seed"),
    )
    for is_there, mark, face, label in marks:
        handles += [Line2D([], [], marker=mark, mfc=face, label=label, **look)] * is_there
    return handles
