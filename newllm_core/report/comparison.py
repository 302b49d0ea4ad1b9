"""Figures that compare configurations, from records only: one function a figure, nothing is trained here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from newllm_core.comparison.figures import FIGURES, perplexity, perplexity_ratio, seed_mean
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
from newllm_core.comparison.paired import paired_difference, rank_perplexity_correlation
from newllm_core.intervals import NOT_MEASURED
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import LINE_COLOURS, PLAIN_COLOUR, TRAIN_COLOUR, new_axes

_MARKERS = "osD^vPXph<"
_BAR_LOG_SPAN = 20  # beyond it the shortest bar on a linear axis is hardly one
_NEARLY_ALL = 95  # % of C, below which few tokens bound an effective rank
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
    """A colour of its own for each of the first seven names; grey for untrained blocks."""
    trained = [name for name in names if not name.startswith(UNTRAINED)]
    known = {name: LINE_COLOURS[number % len(LINE_COLOURS)] for number, name in enumerate(trained)}
    return {name: known.get(name, PLAIN_COLOUR) for name in names}


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
        final = seed_mean(group, "ER %")
        label = f"{group.label}: {NOT_MEASURED if final is None else f'{final.value:.1f} %'}"
        drawn.append((final, Line2D([], [], color=colour, marker=marker, lw=2, ms=5, label=label)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(
        xlabel="iteration (0: untrained)", ylabel="effective rank, % of C",
        title="Effective rank in Phase 1 (thick, markers: validation; thin: training)",
    )  # fmt: skip
    # In the order in which the lines end, so that a line is found where the eye looks for it.
    drawn.sort(key=lambda pair: math.inf if pair[0] is None else -pair[0].value)
    handles = [handle for _, handle in drawn] + _draw_ceilings(axis, groups)
    return _finish(figure, records, handles, "validation ER of the kept\nweights, mean over seeds")


def _draw_ceilings(axis: Axes, groups: Sequence[Group]) -> list[Line2D]:
    """What white noise has on as many validation tokens, where that is clearly less than C."""
    ranks = [group.records[0]["phase1"]["effective_rank"] for group in groups]
    ceilings = {100 * rank["validation_ceiling"] / rank["context_dim"] for rank in ranks}
    low = [ceiling for ceiling in ceilings if ceiling < _NEARLY_ALL]
    look: dict[str, Any] = {"color": "black", "ls": ":", "lw": 0.9}
    for ceiling in low:
        axis.axhline(ceiling, **look)
    return [Line2D([], [], label="white noise, as many tokens", **look)] if low else []


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
        shares = [FIGURES[name](group.records[0]) for name in ("ER %", "calibrated ER %")]
        texts = [NOT_MEASURED if share is None else f"{share:.1f}" for share in shares]
        label = f"{group.label}: {', '.join(texts)} %"
        axis = axes[widths.index(_width(group))]
        ranks = np.arange(1, len(values) + 1)
        handles += axis.semilogy(ranks, 100 * values / values.sum(), color=colours[group.label], lw=1.4, label=label)
    tokens = min(record["phase1"]["effective_rank"]["validation_tokens"] for record in records)
    for axis, width in zip(axes, widths):
        axis.axhline(100 / min(width, tokens), color="black", lw=0.9, ls=":")
        # A direction below a tenth of an even share is hardly used; decades of such would press the others flat.
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 10 / width))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axis.set(xlabel="singular value, by size")
        axis.set_title(f"Spectrum of validation contexts, C = {width}", fontsize=10)
    axes[0].set_ylabel("% of the sum of singular values")
    handles.append(Line2D([], [], color="black", lw=0.9, ls=":", label="all equal: the most possible"))
    return _finish(figure, records, handles, f"seed {groups[0].seeds[0]}: ER, calibrated ER, % of C")


def _width(group: Group) -> int:
    return int(group.records[0]["phase1"]["effective_rank"]["context_dim"])


def plot_comparison(records: Sequence[Record]) -> Figure:
    """A row a configuration against the first, paired: calibrated ER, convergence, perplexity where there is one.

    The figures themselves stand below each label, means over seeds.
    """
    groups = groups_of(records)
    panels = [
        _difference_panel(groups, "calibrated ER %", "Calibrated effective rank", "difference, points (% of C)"),
        _difference_panel(groups, "converged %", "Converged training tokens", "difference, points (%)"),
    ]
    if groups[0].has_phase2:
        ratios = [None, *(perplexity_ratio(group, groups[0]) for group in groups[1:])]
        panels.append(ForestPanel("Perplexity", "ratio (below 1: better)", ratios, reference=0))
    labels = [ForestLabel(group.label, _figures_note(group)) for group in groups]
    source = f"{comparison_source(records)}\n95 %, against {groups[0].label}, paired by seed"
    return plot_forest(labels, panels, source)


def _difference_panel(groups: Sequence[Group], figure: str, title: str, unit: str) -> ForestPanel:
    differences = [None, *(paired_difference(group, groups[0], figure) for group in groups[1:])]
    return ForestPanel(title, unit, differences, "{:+.1f}", reference=0)


def _figures_note(group: Group) -> str:
    figures = {"ER": "calibrated ER %", "converged": "converged %"}
    means = {name: seed_mean(group, figure) for name, figure in figures.items()}
    parts = [f"{name} {NOT_MEASURED if mean is None else f'{mean.value:.1f} %'}" for name, mean in means.items()]
    return ", ".join([*parts, f"PPL {perplexity(group).value:,.1f}"] if group.has_phase2 else parts)


def _run_values(group: Group, name: str) -> list[float]:
    if name == "PPL":
        return [record["phase2"]["best"]["validation_perplexity"] for record in group.records]
    return [value for value in map(FIGURES[name], group.records) if value is not None]


def _spread(axis: Axes, along: str, values: Sequence[float], ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis for positive values that span a factor, with plain numbers at its ticks."""
    if min(values) <= 0 or max(values) / min(values) < _WIDE_SPAN:
        return
    axis.set_xscale("log") if along == "x" else axis.set_yscale("log")
    side = axis.xaxis if along == "x" else axis.yaxis
    side.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    side.set_major_formatter(StrMethodFormatter("{x:,g}"))
    side.set_minor_locator(NullLocator())


def plot_loss_cost(costs: Sequence[Mapping[str, Any]], num_tokens: int, context_dim: int) -> Figure:
    """Milliseconds of forward and backward pass of each loss; whiskers: quartiles of the repetitions."""
    figure, (axis,) = new_axes(1, width=6.4, height=1.3 + 0.4 * len(costs))
    names, medians, low, high = (
        [cost[key] for cost in costs] for key in ("name", "forward_backward_ms", "low", "high")
    )
    whiskers = [np.subtract(medians, low), np.subtract(high, medians)]
    axis.barh(names, medians, xerr=whiskers, color=TRAIN_COLOUR, height=0.6, capsize=3)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    logarithmic = max(medians) > _BAR_LOG_SPAN * min(medians)
    axis.set_xscale("log" if logarithmic else "linear")
    for row, (median, end) in enumerate(zip(medians, high)):
        axis.annotate(f"{median:.3g} ms", (end, row), xytext=(6, 0), textcoords="offset points", va="center")
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
        mean = seed_mean(group, "ER %")
        if mean is not None:
            axis.plot([mean.value], [perplexity(group).value], zorder=3, **look)
        handles.append(Line2D([], [], label=group.label, **look))
    figures = (
        NOT_MEASURED if correlation.r is None else f"{correlation.r.text('{:+.3f}')}: {correlation.r.verdict} from 0"
    )
    axis.set_title(
        f"Correlation of ER and log PPL over {len(correlation.groups)} configurations {figures}", fontsize=10
    )
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
    means = [(group, perplexity(group) if name == "PPL" else seed_mean(group, name)) for group in groups]
    known = [(group.settings[parameter], mean.value) for group, mean in means if mean is not None]
    if known:
        axis.plot(*zip(*known), "-o", color=colour, mfc="white", ms=7, zorder=3)
