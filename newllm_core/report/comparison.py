"""Figures that compare configurations, from records only: one function a figure, nothing is trained here."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from newllm_core.comparison.figures import FIGURES, Perplexity, perplexity, seed_mean
from newllm_core.comparison.groups import (
    UNTRAINED,
    ComparisonError,
    Group,
    Record,
    families_along,
    groups_of,
    setting_text,
    usual_settings,
    varying_parameters,
)
from newllm_core.comparison.paired import (
    LossCost,
    paired_difference,
    paired_perplexity_difference,
    rank_perplexity_correlation,
)
from newllm_core.intervals import SeedMean, interval_text
from newllm_core.report.style import TRAIN_COLOUR, VALIDATION_COLOUR, new_axes

_MARKERS = "osD^vPXph<"
_COLOURS = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#000000",
]  # fmt: skip
_UNTRAINED_COLOUR = "#8c8c8c"
_BAR_LOG_SPAN = 20  # beyond it the shortest bar on a linear axis is hardly one
_WIDE_SPAN = 4  # of an axis' values, from which a logarithmic one spreads them better
_SMALL: dict[str, Any] = {"marker": "o", "ls": "", "ms": 4, "alpha": 0.6}  # a run


def comparison_source(records: Sequence[Record]) -> str:
    """What every comparison says below its title: corpus, embeddings, tokens, seeds, and the usual settings."""
    corpora, embeddings = (", ".join(sorted({record[name] for record in records})) for name in ("corpus", "embeddings"))
    tokens = sorted({record["tokens"]["train"] for record in records})
    counts = f"{tokens[0]:,}" + (f" … {tokens[-1]:,}" if tokens[1:] else "")
    seeds = sorted({record["seed"] for record in records})
    parts = [corpora, embeddings, f"{counts} training tokens"]
    if "context_dim" not in varying_parameters(records):
        parts.append(f"C = {records[0]['config']['model']['context_dim']}")
    usual = usual_settings([group.settings for group in groups_of(records)])
    unnamed = ", ".join(setting_text(*item) for item in usual.items())
    line = f"{', '.join(parts)}, {'seeds' if seeds[1:] else 'seed'} {', '.join(map(str, seeds))}"
    return f"{line}\nwhere the label names nothing else: {unnamed}" if usual else line


def _colours(names: Sequence[str]) -> dict[str, str]:
    """A colour of its own for each of the first ten names; grey for untrained blocks."""
    trained = [name for name in names if not name.startswith(UNTRAINED)]
    known = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(trained)}
    return {name: known.get(name, _UNTRAINED_COLOUR) for name in names}


def _finish(figure: Figure, records: Sequence[Record], handles: Sequence[Line2D], title: str) -> Figure:
    """Source above; legend outside of the data, at the bottom, since the source takes the whole width."""
    where: dict[str, Any] = {"loc": "outside right lower", "fontsize": 8, "title_fontsize": 8}
    figure.legend(handles=handles, title=title, alignment="left", **where)
    figure.suptitle(comparison_source(records), fontsize=9)
    return figure


def plot_rank_progression(records: Sequence[Record]) -> Figure:
    """Effective rank per iteration of Phase 1.

    Thin lines: training, a run each. Markers: validation checks, a run each; thick lines join their means over seeds,
    as far as every seed was trained.
    """
    groups = groups_of(records)
    figure, (axis,) = new_axes(1, width=9, height=4.8)
    colours, drawn = _colours([group.label for group in groups]), []
    for number, group in enumerate(groups):
        colour, marker = colours[group.label], _MARKERS[number % len(_MARKERS)]
        _draw_progression(axis, group, colour, marker)
        final = seed_mean(group, "ER %").value or 0.0
        final = seed_mean(group, "ER %").value or 0.0
        label = f"{group.label}: {final:.1f} %"
        drawn.append((final, Line2D([], [], color=colour, marker=marker, lw=2, ms=5, label=label)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(
        xlabel="iteration (0: untrained)", ylabel="effective rank, % of C",
        title="Effective rank in Phase 1 (thick, markers: validation; thin: training)",
    )  # fmt: skip
    # In the order in which the lines end, so that a line is found where the eye looks for it.
    handles = [handle for _, handle in sorted(drawn, key=lambda pair: -pair[0])]
    return _finish(figure, records, handles, "validation ER of the kept\nweights, mean over seeds")


def _draw_progression(axis: Axes, group: Group, colour: str, marker: str) -> None:
    checks: dict[int, list[float]] = {}
    for record in group.records:
        history, rank = record["phase1"]["history"], record["phase1"]["effective_rank"]
        training = [100 * row["train_rank"]["share"] for row in history]
        axis.plot([row["iteration"] for row in history], training, color=colour, lw=0.6, alpha=0.4)
        checks.setdefault(0, []).append(100 * rank["validation_untrained"] / rank["context_dim"])
        for row in (row for row in history if row["validation_rank"] is not None):
            checks.setdefault(row["iteration"], []).append(100 * row["validation_rank"]["share"])
    for step, shares in checks.items():
        axis.plot([step] * len(shares), shares, marker, color=colour, ms=4, alpha=0.7, mec="white", mew=0.4)
    common = [step for step, shares in sorted(checks.items()) if len(shares) == len(group.records)]
    axis.plot(common, [np.mean(checks[step]) for step in common], color=colour, lw=2)


def plot_spectra(records: Sequence[Record]) -> Figure:
    """Singular values of the validation contexts as % of their sum, first seed; a panel for every width C."""
    groups = groups_of(records)
    widths = sorted({_width(group) for group in groups})
    figure, axes = new_axes(len(widths), width=6 if len(widths) == 1 else 3.4, height=4.4)
    figure.set_figwidth(figure.get_figwidth() + 3)
    colours, handles = _colours([group.label for group in groups]), []
    for group in groups:
        values = np.array(group.records[0]["phase1"]["spectrum"]["validation"])
        rank, calibrated = (FIGURES[name](group.records[0]) for name in ("ER %", "calibrated ER %"))
        label = f"{group.label}: {rank:.1f}, {'–' if calibrated is None else format(calibrated, '.1f')} %"
        ranks, shares = np.arange(1, len(values) + 1), 100 * values / values.sum()
        axis = axes[widths.index(_width(group))]
        handles += axis.semilogy(ranks, shares, color=colours[group.label], lw=1.4, label=label)
    for axis, width in zip(axes, widths):
        axis.axhline(100 / width, color="black", lw=0.9, ls=":")
        # The last values can be rounding alone; decades of it would press the others flat.
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1 / width))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axis.set(xlabel="singular value, by size")
        axis.set_title(f"Spectrum of validation contexts, C = {width}", fontsize=10)
    axes[0].set_ylabel("% of the sum of singular values")
    handles.append(Line2D([], [], color="black", lw=0.9, ls=":", label="all equal: 100 %"))
    return _finish(figure, records, handles, f"seed {groups[0].seeds[0]}: ER, calibrated ER, % of C")


def _width(group: Group) -> int:
    return int(group.records[0]["phase1"]["effective_rank"]["context_dim"])


def plot_comparison(records: Sequence[Record]) -> Figure:
    """A row a configuration: calibrated ER, convergence, and perplexity where there is Phase 2.

    Dots are runs; a mean is filled where its paired difference from the first row's is distinguishable.
    """
    groups = groups_of(records)
    titles = {"calibrated ER %": "calibrated ER, % of C", "converged %": "converged, % of training tokens"}
    if groups[0].has_phase2:
        titles["PPL"] = "perplexity (lower is better)"
    figure, axes = new_axes(len(titles), width=3.6, height=1.7 + 0.32 * len(groups))
    for axis, (name, title) in zip(axes, titles.items()):
        for row, group in enumerate(groups):
            _draw_row(axis, row, group, groups[0], name)
        axis.set(yticks=range(len(groups)), yticklabels=[""] * len(groups), ylim=(len(groups) - 0.4, -0.6))
        axis.set_title(title, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if groups[0].has_phase2:
        _spread(axes[-1], "x", [value for group in groups for value in _run_values(group, "PPL")])
    axes[0].set_yticklabels([group.label for group in groups])
    handles = [Line2D([], [], color=TRAIN_COLOUR, label="a run", **_SMALL)]
    for verdict, colour, face in (
        ("differs from", VALIDATION_COLOUR, VALIDATION_COLOUR),
        ("not distinguishable from", "grey", "white"),
    ):
        label = f"mean, 95 % interval: {verdict} {groups[0].label}"
        handles.append(Line2D([], [], color=colour, marker="D", mfc=face, ms=6, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(comparison_source(records), fontsize=9)
    return figure


def _run_values(group: Group, name: str) -> list[float]:
    if name == "PPL":
        return [record["phase2"]["best"]["validation_perplexity"] for record in group.records]
    return [value for value in map(FIGURES[name], group.records) if value is not None]


def _mean(group: Group, name: str) -> SeedMean | Perplexity:
    return perplexity(group) if name == "PPL" else seed_mean(group, name)


def _draw_row(axis: Axes, row: int, group: Group, reference: Group, name: str) -> None:
    mean = _mean(group, name)
    if mean.value is None:
        axis.text(0.5, row, "no figure", transform=axis.get_yaxis_transform(), ha="center", va="center", fontsize=8)
        return
    if group is reference:
        axis.axvline(mean.value, color="black", ls=":", lw=0.9)
    differs = group is not reference and _differs(group, reference, name)
    colour = VALIDATION_COLOUR if differs else "grey"
    if mean.interval is not None:
        axis.plot(mean.interval, [row, row], color=colour, lw=2, solid_capstyle="round")
    values = _run_values(group, name)
    axis.plot(values, [row + 0.22] * len(values), color=TRAIN_COLOUR, **_SMALL)
    axis.plot([mean.value], [row], "D", color=colour, mfc=colour if differs else "white", ms=6)


def _differs(group: Group, reference: Group, name: str) -> bool:
    """By the paired difference; one seed alone tells nothing about the next."""
    if _mean(reference, name).value is None:
        return False
    by_pairs = paired_perplexity_difference if name == "PPL" else partial(paired_difference, figure=name)
    difference = by_pairs(group, reference)
    return difference.num_seeds > 1 and difference.distinguishable


def _spread(axis: Axes, along: str, values: Sequence[float], ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis for positive values that span a factor, with plain numbers at its ticks."""
    if min(values) <= 0 or max(values) / min(values) < _WIDE_SPAN:
        return
    axis.set_xscale("log") if along == "x" else axis.set_yscale("log")
    side = axis.xaxis if along == "x" else axis.yaxis
    side.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    side.set_major_formatter(StrMethodFormatter("{x:,g}"))
    side.set_minor_locator(NullLocator())


def plot_loss_cost(costs: Sequence[LossCost], num_tokens: int, context_dim: int) -> Figure:
    """Milliseconds of forward and backward pass of each loss; whiskers: quartiles of the repetitions."""
    figure, (axis,) = new_axes(1, width=6.4, height=1.3 + 0.4 * len(costs))
    medians = [cost.forward_backward_ms for cost in costs]
    below, above = zip(*((mid - cost.low, cost.high - mid) for cost, mid in zip(costs, medians)))
    axis.barh([cost.name for cost in costs], medians, xerr=[below, above], color=TRAIN_COLOUR, height=0.6, capsize=3)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    logarithmic = max(medians) > _BAR_LOG_SPAN * min(medians)
    axis.set_xscale("log" if logarithmic else "linear")
    for row, cost in enumerate(costs):
        text, at = f"{cost.forward_backward_ms:.3g} ms", (cost.high, row)
        axis.annotate(text, at, xytext=(6, 0), textcoords="offset points", va="center")
    axis.margins(x=0.2)
    axis.set_xlabel(f"ms, forward and backward pass{', logarithmic' if logarithmic else ''}")
    axis.set_title(f"Cost of a diversity loss, {num_tokens:,} random contexts, C = {context_dim}", fontsize=10)
    return figure


def plot_rank_against_perplexity(records: Sequence[Record]) -> Figure:
    """Perplexity against effective rank, runs small, configurations' means ringed, with the correlation of these.

    Of the configurations that ``rank_perplexity_correlation`` compares alone; a colour an algorithm.
    """
    correlation = rank_perplexity_correlation(records)
    figure, (axis,) = new_axes(1, width=8.6, height=4.6)
    colours, handles = _colours(list(dict.fromkeys(group.algorithm for group in correlation.groups))), []
    for number, group in enumerate(correlation.groups):
        look: dict[str, Any] = {
            "color": colours[group.algorithm], "marker": _MARKERS[number % len(_MARKERS)], "ls": "",
        }  # fmt: skip
        axis.plot(_run_values(group, "ER %"), _run_values(group, "PPL"), ms=4, alpha=0.5, **look)
        look |= {"ms": 9, "mec": "black", "mew": 1.4}
        axis.plot([seed_mean(group, "ER %").value or np.nan], [perplexity(group).value], zorder=3, **look)
        handles.append(Line2D([], [], label=group.label, **look))
    value = "undefined" if correlation.value is None else f"{correlation.value:+.2f}"
    title = f"{value}, 95 % {interval_text(correlation.interval)}, {len(correlation.groups)} configurations"
    axis.set_title(f"Correlation of ER and log PPL: {title}", fontsize=10)
    axis.set(xlabel="validation effective rank, % of C", ylabel="validation perplexity (lower is better)")
    used = [record for group in correlation.groups for record in group.records]
    return _finish(figure, used, handles, "mean over seeds\n(small: a run)")


def plot_axis(records: Sequence[Record], parameter: str) -> Figure:
    """Effective rank, and perplexity where there is Phase 2, along one numeric parameter with all else equal.

    Dots are runs, lines join the means. Raises ComparisonError when no two configurations differ in it alone.
    """
    families = families_along(records, parameter)
    if not families:
        varied = ", ".join(varying_parameters(records)) or "none"
        raise ComparisonError(f"axis: expected a parameter in which records differ ({varied}), given {parameter!r}")
    groups, colours = [group for members in families.values() for group in members], _colours(list(families))
    panels = {"ER %": "validation effective rank, % of C"}
    if groups[0].has_phase2:
        panels["PPL"] = "validation perplexity (lower is better)"
    figure, axes = new_axes(len(panels), width=4.4, height=3.6)
    figure.set_figwidth(figure.get_figwidth() + 1.6)
    at = sorted({group.settings[parameter] for group in groups})
    for axis, (name, title) in zip(axes, panels.items()):
        for label, members in families.items():
            _draw_family(axis, members, parameter, name, colours[label])
        axis.set_xlabel(parameter)
        axis.set_title(title, fontsize=10)
        _spread(axis, "x", at, ticks=at)
    if groups[0].has_phase2:
        _spread(axes[-1], "y", [value for group in groups for value in _run_values(group, "PPL")])
    handles = [Line2D([], [], color=colours[label], marker="o", mfc="white", label=label) for label in families]
    used = [record for group in groups for record in group.records]
    return _finish(figure, used, handles, "mean over seeds\n(small: a run)")


def _draw_family(axis: Axes, groups: Sequence[Group], parameter: str, name: str, colour: str) -> None:
    for group in groups:
        values = _run_values(group, name)
        axis.plot([group.settings[parameter]] * len(values), values, color=colour, **_SMALL)
    means = np.array([_mean(group, name).value for group in groups], float)
    axis.plot([group.settings[parameter] for group in groups], means, "-o", color=colour, mfc="white", ms=7, zorder=3)
