"""The pictures of the leaderboard: perplexity, and ratios of it, with intervals; from rows only."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from newllm_core.comparison.leaderboard import Standing, perplexity_ratio, seeds_text
from newllm_core.comparison.paired import PairedDifference
from newllm_core.report.style import MARK_COLOUR, TRAIN_COLOUR, VALIDATION_COLOUR, new_axes
from newllm_core.training.initialisation import WidthExponent

_COLOURS = {
    "model": TRAIN_COLOUR,
    "control": TRAIN_COLOUR,
    "network": VALIDATION_COLOUR,
    "pretrained": "black",
}  # counts: MARK_COLOUR
_KINDS = {
    TRAIN_COLOUR: "ContextBlock, and its controls", VALIDATION_COLOUR: "trained end to end", MARK_COLOUR: "counts",
    "black": "trained on other text",
}  # fmt: skip


def plot_standings(found: Sequence[Standing]) -> Figure:
    """Perplexity of each variant at one number of training tokens, best on top, log axis, 95 % intervals.

    Raises ValueError for none, and for several numbers of tokens.
    """
    _by_name(found)
    figure = Figure(figsize=(8.4, 1.7 + 0.36 * len(found)), layout="constrained")
    axis = figure.add_subplot()
    colours = {_COLOURS.get(one.variant["kind"], MARK_COLOUR) for one in found}
    for place, one in enumerate(found):
        colour = _COLOURS.get(one.variant["kind"], MARK_COLOUR)
        if one.interval is not None:
            axis.plot(one.interval, [place] * 2, color=colour, lw=1.8)
        axis.plot([one.perplexity], [place], "o", ms=7, color=colour)
        runs = [row["validation_perplexity"] for row in one.rows]
        axis.plot(runs, [place] * len(runs), "|", ms=9, color="black", alpha=0.6)
        axis.annotate(f"{one.perplexity:,.0f}", (one.perplexity, place), xytext=(0, 7), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    labels = [
        f"{one.name}\n{one.parameters_text} parameters, {one.cpu_seconds / 60:.1f} min, {_count(one)}" for one in found
    ]
    _named_places(axis, labels)
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set(xlabel="validation perplexity (lower is better), 95 % over seeds and conversations; black stroke: one run")
    under = (
        "under each name: trained parameters, CPU minutes, seeds (with one, the interval is over conversations alone)"
    )
    axis.set_title(f"{_source(found)}\n{under}", fontsize=9)
    handles = [Line2D([], [], marker="o", color=colour, label=_KINDS[colour]) for colour in _KINDS if colour in colours]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def _count(one: Standing) -> str:
    if "run" not in one.rows[0]["config"]:
        return "no seed"
    return "1 seed" if len(one.seeds) == 1 else f"{len(one.seeds)} seeds"


def group_pictures(found: Sequence[Standing]) -> dict[str, Figure]:
    """By group, of rows at one number of training tokens: standings of the leaderboard, ratios of the others.

    Groups of which nobody's reference is there are left out.
    """
    there, pictures = _by_name(found), {}
    for group in dict.fromkeys(one.variant["group"] for one in found):
        members = [one for one in found if one.variant["group"] == group]
        references = {one.variant["reference"] for one in members}
        if group == "leaderboard":
            pictures[group] = plot_standings(members)
        elif references & there.keys():
            pictures[group] = plot_ratios([one for one in found if one in members or one.name in references])
    return pictures


def plot_ratios(found: Sequence[Standing]) -> Figure:
    """Perplexity over that of what each variant is held against, paired, best on top, log axis, 95 % intervals.

    Hollow where the interval holds 1, a diamond where there is one seed. Who has no reference among ``found`` is left
    out. Raises ValueError when that is everyone, and for several numbers of tokens.
    """
    there = _by_name(found)
    pairs = [(one, there.get(one.variant["reference"] or "")) for one in found]
    ratios = [(one.name, other.name, perplexity_ratio(one, other)) for one, other in pairs if other is not None]
    if not ratios:
        raise ValueError("plot_ratios: expected a variant whose reference is there too, given none")
    ratios.sort(key=lambda each: each[2].value)
    figure = Figure(figsize=(8.4, 1.7 + 0.36 * len(ratios)), layout="constrained")
    axis = figure.add_subplot()
    for place, (_, _, ratio) in enumerate(ratios):
        _draw_ratio(axis, place, ratio)
    axis.axvline(1, color="grey", lw=1)
    labels = [f"{name} / {other}\n{seeds_text(ratio.num_seeds)}" for name, other, ratio in ratios]
    _named_places(axis, labels)
    axis.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set(xlabel="ratio of validation perplexities (below 1: better), 95 %, paired by seed and conversation")
    marks = "diamond: one seed, whose own spread is not in the interval; hollow: not distinguishable from 1"
    axis.set_title(f"{_source(found)}\n{marks}", fontsize=9)
    return figure


def _draw_ratio(axis: Axes, place: int, ratio: PairedDifference) -> None:
    face = TRAIN_COLOUR
    if ratio.interval is not None:
        axis.plot(ratio.interval, [place] * 2, color=TRAIN_COLOUR, lw=1.8)
        face = "white" if ratio.interval[0] <= 1 <= ratio.interval[1] else TRAIN_COLOUR
    mark = "D" if ratio.num_seeds == 1 else "o"
    axis.plot([ratio.value], [place], mark, ms=6 if mark == "D" else 7, color=TRAIN_COLOUR, mfc=face)
    axis.annotate(f"{ratio.value:.3f}", (ratio.value, place), xytext=(0, 7), textcoords="offset points",
                  ha="center", fontsize=8)  # fmt: skip


def _by_name(found: Sequence[Standing]) -> dict[str, Standing]:
    tokens = sorted({one.tokens for one in found})
    if len(tokens) != 1:
        raise ValueError(f"expected rows with one number of training tokens, given {tokens}")
    return {one.name: one for one in found}


def _named_places(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(len(labels) - 0.5, -0.7)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color="0.9")


def plot_exponents(found: Sequence[WidthExponent], wished: float, source: str) -> Figure:
    """Initial Lyapunov exponents against the width: as drawn, and with the recurrent weights scaled."""
    figure, (axis,) = new_axes(1, width=6)
    widths = [one.context_dim for one in found]
    axis.plot(widths, [one.drawn for one in found], "o-", color=TRAIN_COLOUR, label="as drawn (notes)")
    axis.plot(
        [one.context_dim for one in found if one.scaled.success],
        [one.scaled.exponent for one in found if one.scaled.success],
        "s-", color=VALIDATION_COLOUR, label=f"recurrent weights scaled to {wished:+.2f}",
    )  # fmt: skip
    factors = [f"× {one.scaled.scale:.2f}" if one.scaled.success else "none" for one in found]
    axis.set_xticks(widths, [f"{width}\n{factor}" for width, factor in zip(widths, factors, strict=True)])
    axis.axhline(0, color="grey", lw=1)
    axis.margins(x=0.15, y=0.2)
    axis.set(
        xlabel="context width C; below it the factor that scales the recurrent weights",
        ylabel="nats a token (below 0: forgets)",
        title="Lyapunov exponent before training",
    )
    axis.legend()
    figure.suptitle(source, fontsize=9)
    return figure


def _source(found: Sequence[Standing]) -> str:
    row = found[0].rows[0]
    return (
        f"{row['corpus']}, {row['embeddings']}, {found[0].tokens:,} training tokens, "
        f"{row['tokens']['validation']:,} validation tokens"
    )
