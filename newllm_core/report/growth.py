"""The picture of growth: perplexity against text, a straight line a contender, and each contender over one of them."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from newllm_core.intervals import Estimate, Floats
from newllm_core.report.style import LINE_COLOURS, PLAIN_COLOUR, new_axes
from newllm_core.scaling.growth import ContenderGrowth, GrowthAnalysis, GrowthSize

_LINE_HEIGHT = 0.052  # of a label, as a share of the panel's height
_SPREAD = 1.018  # by which marks at one size stand apart, so that their intervals can be told apart


def plot_growth(analysis: GrowthAnalysis) -> Figure:
    """PPL against training tokens with each contender's fitted line and α, and ratios of PPL to the reference.

    Names, exponents and ratios stand at the lines' ends instead of in a legend.
    """
    figure, (left, right) = new_axes(2, width=7.4, height=5.6)
    colours = dict(zip([one.name for one in analysis.contenders], cycle(LINE_COLOURS)))
    _draw_perplexity(left, analysis, colours)
    _draw_ratios(right, analysis, colours)
    note = "95 %: α over the sizes of each, seeds and conversations, ratios paired; hollow: not distinguishable from 1"
    figure.suptitle(f"{analysis.source}; {note}", fontsize=9)
    return figure


def _draw_perplexity(axis: Axes, analysis: GrowthAnalysis, colours: Mapping[str, str]) -> None:
    labels = []
    for one in analysis.contenders:
        tokens = [size.tokens for size in one.sizes]
        # Without their intervals: how hard the text is, is common to all, and would hide what differs.
        axis.plot(tokens, [size.perplexity.value for size in one.sizes], "o", ms=5, color=colours[one.name], zorder=3)
        alpha = ""
        if one.whole is not None:
            axis.plot(tokens, _fitted(one), color=colours[one.name], lw=1.6, zorder=1)
            alpha = f"α = {one.whole.alpha.text('{:.3f}').replace('-', '−')}"
        last = one.sizes[-1]
        labels.append((last.tokens, last.perplexity.value, [one.label, *([alpha] if alpha else [])], colours[one.name]))
    _log_axes(axis, analysis)
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set(ylabel="validation perplexity (lower is better)")
    axis.set_title("PPL = A · tokens^α: how fast it falls with text", fontsize=11)
    _labels_at_ends(axis, labels)


def _fitted(one: ContenderGrowth) -> Floats:
    """The straight line with the contender's α through the middle of its points, which is where least squares puts
    it."""
    assert one.whole is not None
    tokens, losses = (np.log([getter(size) for size in one.sizes]) for getter in (_tokens, _perplexity))
    fitted: Floats = np.exp(losses.mean() + one.whole.alpha.value * (tokens - tokens.mean()))
    return fitted


def _tokens(size: GrowthSize) -> float:
    return size.tokens


def _perplexity(size: GrowthSize) -> float:
    return size.perplexity.value


def _draw_ratios(axis: Axes, analysis: GrowthAnalysis, colours: Mapping[str, str]) -> None:
    held = analysis.named(analysis.reference)
    others = [one for one in analysis.contenders if any(size.ratio is not None for size in one.sizes)]
    labels = []
    for number, one in enumerate(others):
        shift = _SPREAD ** (number - (len(others) - 1) / 2)
        places = [(size.tokens * shift, size.ratio) for size in one.sizes if size.ratio is not None]
        axis.plot(*zip(*[(place, ratio.value) for place, ratio in places]), color=colours[one.name], lw=1.2, zorder=1)
        for place, ratio in places:
            _mark(axis, place, ratio, colours[one.name], filled=ratio.is_distinguishable)
        place, last = places[-1]
        labels.append((place, last.value, [one.label, f"× {last.text('{:.2f}')}"], colours[one.name]))
    name = analysis.reference if held is None else held.label
    axis.axhline(1, color=PLAIN_COLOUR, lw=1.6, zorder=0)
    if held is not None:
        labels.append((held.sizes[-1].tokens, 1.0, [name], PLAIN_COLOUR))
    _log_axes(axis, analysis)
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set(ylabel="ratio of perplexities (below 1: better)")
    axis.set_title(f"Perplexity over that of {name}, paired", fontsize=11)
    _labels_at_ends(axis, labels)


def _mark(axis: Axes, place: float, estimate: Estimate, colour: str, *, filled: bool) -> None:
    if estimate.interval is not None:
        axis.vlines(place, *estimate.interval, color=colour, lw=1.1, alpha=0.6, zorder=2)
    axis.plot(place, estimate.value, "o", ms=5, color=colour, mfc=colour if filled else "white", zorder=3)


def _log_axes(axis: Axes, analysis: GrowthAnalysis) -> None:
    """Both logarithmic; below, the sizes as they are."""
    sizes = {size.samples: size.tokens for one in reversed(analysis.contenders) for size in one.sizes}
    ticks = dict(sorted((tokens, samples) for samples, tokens in sizes.items()))
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
    texts = {tokens: f"{_short(tokens)}\n{samples:,}" for tokens, samples in ticks.items()}
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(round(value), "")))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("training tokens, and conversations")


def _short(tokens: float) -> str:
    if tokens < 10_000:
        return f"{tokens / 1e3:.1f}k"
    return f"{tokens / 1e3:.0f}k" if tokens < 1e6 else f"{tokens / 1e6:.2f}M"


def _labels_at_ends(axis: Axes, labels: Sequence[tuple[float, float, list[str], str]]) -> None:
    """(x, y, lines, colour) each: at the right of the panel as near to its y as the others leave room."""
    axis.autoscale_view()
    low, high = np.log(axis.get_ylim())
    axis.set_ylim(axis.get_ylim())
    ordered = sorted(labels, key=lambda label: label[1])
    wanted = [(np.log(y) - low) / (high - low) for _, y, _, _ in ordered]
    heights = [_LINE_HEIGHT * len(lines) for _, _, lines, _ in ordered]
    for (x, y, lines, colour), place in zip(ordered, spread(wanted, heights)):
        axis.annotate(
            "\n".join(lines), (x, y), xytext=(1.03, place), textcoords="axes fraction", color=colour, fontsize=9,
            va="center", linespacing=1.1, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 4,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places, ascending as ``wanted`` is, of labels of ``heights`` none of which overlap, moved as little as it takes.

    Labels that touch form a block, which stands where its members wish on average.
    """
    blocks: list[tuple[list[float], float]] = []  # offsets of the members from the block's start, and its start
    members: list[list[int]] = []
    for number, (place, height) in enumerate(zip(wanted, heights)):
        blocks.append(([height / 2], place - height / 2))
        members.append([number])
        while len(blocks) > 1 and _end(blocks[-2], members[-2], heights) > blocks[-1][1] + 1e-12:
            numbers = members[-2] + members[-1]
            blocks[-2:], members[-2:] = [_block(numbers, wanted, heights)], [numbers]
    return [start + offset for offsets, start in blocks for offset in offsets]


def _block(numbers: Sequence[int], wanted: Sequence[float], heights: Sequence[float]) -> tuple[list[float], float]:
    tops = np.cumsum([heights[number] for number in numbers])
    offsets = [float(top - heights[number] / 2) for top, number in zip(tops, numbers)]
    return offsets, float(np.mean([wanted[number] - offset for number, offset in zip(numbers, offsets)]))


def _end(block: tuple[list[float], float], numbers: Sequence[int], heights: Sequence[float]) -> float:
    return block[1] + sum(heights[number] for number in numbers)
