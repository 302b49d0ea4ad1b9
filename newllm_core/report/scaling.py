"""Figures of the scaling notebook, from a ScalingAnalysis alone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from newllm_core.intervals import Estimate, is_distinguishable
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import (
    BLUE,
    LINE_COLOURS,
    MARK_COLOUR,
    PLAIN_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    VERMILION,
    as_png,
    new_axes,
)
from newllm_core.scaling.analysis import Record, ScalingAnalysis, Size, analyse
from newllm_core.scaling.law import ScalingError, fit_power_law, mean_over_seeds
from newllm_core.scaling.progression import AlphaRow

_ALPHA_COLOURS = {"t-interval of the fit": BLUE, "bootstrap: sizes, seeds, conversations": VERMILION}
_WIDGET_RESAMPLES = 400  # a slider answers within a second


def plot_perplexity(analysis: ScalingAnalysis) -> Figure:
    """Perplexity against training tokens, log-log: runs, means with intervals, a line per window, extrapolation."""
    figure, (axis,) = new_axes(1, width=7.2, height=4.8)
    for row in analysis.progression.rows:
        _draw_fit(axis, row, LINE_COLOURS[(row.window - 1) % len(LINE_COLOURS)])
    for size in analysis.sizes:
        _draw_size(axis, size, labelled=size is analysis.sizes[0])
    _draw_extrapolation(axis, analysis)
    _size_ticks(axis, [size.tokens for size in analysis.sizes])
    _perplexity_ticks(axis)
    axis.set(ylabel="validation perplexity", title="Perplexity against data (lower is better)")
    axis.legend(fontsize=8)
    figure.suptitle(analysis.source, fontsize=9)
    return figure


def _draw_size(axis: Axes, size: Size, labelled: bool) -> None:
    mean = mean_over_seeds(size.perplexity)
    low, high = size.perplexity_interval or (mean, mean)
    if len(size.seeds) > 1:
        axis.plot([size.tokens] * len(size.seeds), size.perplexity, ".", color=PLAIN_COLOUR, ms=5, zorder=2,
                  label="a run (seed)" if labelled else None)  # fmt: skip
    axis.errorbar(
        size.tokens, mean, yerr=[[max(mean - low, 0)], [max(high - mean, 0)]], fmt="o", color=VALIDATION_COLOUR,
        ms=5, capsize=3, zorder=3,
        label="mean, 95 % over seeds and conversations" if labelled else None,
    )  # fmt: skip
    axis.annotate(f"{mean:,.0f}", (size.tokens, mean), xytext=(6, 6), textcoords="offset points", fontsize=8)


def _draw_fit(axis: Axes, row: AlphaRow, colour: str) -> None:
    fit = fit_power_law(row.tokens, row.perplexity)
    ends = np.geomspace(row.tokens[0], row.tokens[-1], 2)
    axis.plot(
        ends, [fit.predict(end) for end in ends], color=colour, lw=max(7.0 - 2 * row.window, 1.5), alpha=0.6, zorder=1,
        label=f"window {row.window}, {row.samples[0]}–{row.samples[-1]} samples: α = {row.alpha:.3f}",
    )  # fmt: skip


def _draw_extrapolation(axis: Axes, analysis: ScalingAnalysis) -> None:
    if analysis.extrapolation is None:
        return
    fit, points = analysis.extrapolation.fit, analysis.extrapolation.points
    ends = [analysis.sizes[0].tokens, points[-1].tokens]
    axis.plot(
        ends, [fit.predict(end) for end in ends], "--", color=MARK_COLOUR, lw=1.2, zorder=1,
        label=f"fitted without the {len(points)} largest, 95 % prediction",
    )  # fmt: skip
    for point in points:
        axis.plot(point.tokens, point.predicted_perplexity, "D", mfc="white", mec=MARK_COLOUR, ms=6, zorder=2)
        if point.prediction_interval is not None:
            low, high = point.prediction_interval
            # Between the two outermost runs a wide interval would squeeze everything else: it may leave the picture.
            axis.vlines(point.tokens, low, high, color=MARK_COLOUR, lw=1, zorder=1)
    values = [value for size in analysis.sizes for value in (*size.perplexity, *(size.perplexity_interval or ()))]
    values += [point.predicted_perplexity for point in points]
    axis.set_ylim(min(values) / 1.15, max(values) * 1.25)


def _size_ticks(axis: Axes, tokens: Sequence[float]) -> None:
    """A log axis with the sizes as they are instead of powers of ten."""
    axis.set_xscale("log")
    axis.set_xticks(list(tokens), [f"{count:,.0f}" for count in tokens], rotation=30, ha="right")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("training tokens")


def _perplexity_ticks(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.tick_params(axis="y", which="minor", labelsize=7)


def plot_alpha(analysis: ScalingAnalysis) -> Figure:
    """α of every window against 0, where more text would not help, with the t-interval and the bootstrap interval."""
    rows = analysis.progression.rows
    labels, estimates = [], []
    for row, bootstrap in zip(rows, analysis.bootstraps, strict=True):
        window = f"{row.samples[0]}–{row.samples[-1]} conversations, {row.tokens[0]:,.0f}–{row.tokens[-1]:,.0f} tokens"
        for kind, interval in zip(_ALPHA_COLOURS, (row.alpha_interval, bootstrap.alpha_interval)):
            labels.append(ForestLabel(window, kind=kind))
            estimates.append(Estimate(row.alpha, interval, no_difference=0.0))
    xlabel = "α in PPL = A · tokens^α (more negative is better), 95 %"
    panel = ForestPanel("Progression of α", xlabel, estimates)
    return plot_forest(labels, [panel], f"{analysis.source}; {_trend(rows)}", _ALPHA_COLOURS)


def _trend(rows: Sequence[AlphaRow]) -> str:
    if len(rows) < 2:
        return "one window"
    pairs = zip(rows, rows[1:])
    apart = sum(is_distinguishable(one.alpha_interval, other.alpha_interval) for one, other in pairs)
    return f"{apart} of {len(rows) - 1} neighbouring windows distinguishable"


def plot_rank(analysis: ScalingAnalysis) -> Figure:
    """Validation effective rank against training tokens, plain and calibrated, a point per run."""
    figure, (axis,) = new_axes(1, width=6.4, height=4.0)
    for name, colour, pick in (
        ("effective rank", TRAIN_COLOUR, lambda size: size.rank),
        ("calibrated: over white noise of the same shape", VALIDATION_COLOUR, lambda size: size.calibrated_rank),
    ):
        means = [100 * float(np.mean(pick(size))) for size in analysis.sizes]
        axis.plot([size.tokens for size in analysis.sizes], means, "-", color=colour, label=f"{name} (line: mean)")
        for size in analysis.sizes:
            axis.plot([size.tokens] * len(size.seeds), [100 * share for share in pick(size)], "o", ms=4, color=colour)
    _size_ticks(axis, [size.tokens for size in analysis.sizes])
    axis.margins(y=0.25)
    axis.set(ylabel="% of C", title="Effective rank of the validation contexts (a point: a seed)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(analysis.source, fontsize=9)
    return figure


def window_picture(records: Sequence[Record], first_size: int, window_size: int) -> bytes:
    """The fit of ``window_size`` neighbouring sizes from number ``first_size`` (1, 2, …), as a PNG; for sliders.

    A window that reaches past the largest size is moved back to it. Raises ScalingError for fewer sizes than
    ``window_size``.
    """
    samples = sorted({record["config"]["data"]["num_samples"] for record in records})
    if len(samples) < window_size:
        raise ScalingError(f"fewer points than a window: {len(samples)} points, window_size={window_size}")
    first = min(first_size - 1, len(samples) - window_size)
    chosen = samples[first : first + window_size]
    inside = [record for record in records if record["config"]["data"]["num_samples"] in chosen]
    return as_png(plot_perplexity(analyse(inside, window_size, _WIDGET_RESAMPLES)))
