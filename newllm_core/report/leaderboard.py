"""The pictures of the leaderboard: ratios of perplexity, paired, from rows only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from newllm_core.comparison.leaderboard import Standing, ratio_of, ratios_to_references
from newllm_core.intervals import Estimate, seeds_text
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import BLUE, GREEN, SKY, TRAIN_COLOUR, VALIDATION_COLOUR, VERMILION, new_axes

# By a row's kind; what is shown of it, and in which colour.
_KINDS = {
    "model": "a ContextBlock", "control": "its controls", "network": "trained end to end", "counts": "counts",
    "pretrained": "trained on other text",
}  # fmt: skip
_COLOURS = dict(zip(_KINDS.values(), (BLUE, SKY, VERMILION, GREEN, "black")))
_XLABEL = "ratio of perplexities (below 1: better), 95 %"


def plot_standings(found: Sequence[Standing], reference: str | None = None) -> Figure:
    """Each variant at one number of training tokens over ``reference`` (a name; the best), best on top.

    Raises ValueError for none, for several numbers of tokens, and for a reference that is not there.
    """
    _check_tokens(found)
    names = [one.name for one in found]
    if reference is not None and reference not in names:
        raise ValueError(f"plot_standings: expected a reference among {', '.join(names)}, given {reference!r}")
    place = names.index(reference) if reference else 0
    held = found[place]
    ratios = [None if one is held else ratio_of(one, held)[2] for one in found]
    labels = [ForestLabel(one.label, _note(one), kind=_kind(one)) for one in found]
    panel = ForestPanel(f"Perplexity over that of {held.label}", _XLABEL, ratios, reference=place)
    return plot_forest(labels, [panel], _source(found), _COLOURS)


def plot_ratios(variants: Sequence[Standing], found: Sequence[Standing]) -> Figure:
    """Perplexity over that of what each variant is held against, by reference, lowest ratio on top.

    Who has no reference among ``found`` is left out. Raises ValueError when that is everyone, and for several numbers
    of tokens.
    """
    _check_tokens(found)
    pairs = ratios_to_references(variants, found)
    if not pairs:
        raise ValueError("plot_ratios: expected a variant whose reference is there too, given none")
    references = Counter(other.label for _, other, _ in pairs)
    pairs.sort(key=lambda each: (-references[each[1].label], each[1].label, each[2].value))
    labels = [ForestLabel(one.label, group=f"against: {other.label}", kind=_kind(one)) for one, other, _ in pairs]
    ratios: list[Estimate | None] = [ratio for *_, ratio in pairs]
    held = pairs[0][1].label if len(references) == 1 else "its reference"
    panel = ForestPanel(f"Perplexity over that of {held}", _XLABEL, ratios)
    return plot_forest(labels, [panel], _source(found), _COLOURS)


def group_pictures(found: Sequence[Standing]) -> dict[str, Figure]:
    """By group, of variants at one number of training tokens: standings of the leaderboard, ratios of the others.

    Groups whose members' references are all missing are left out.
    """
    _check_tokens(found)
    names, pictures = {one.name for one in found}, {}
    for group in dict.fromkeys(one.variant["group"] for one in found):
        members = [one for one in found if one.variant["group"] == group]
        if group == "leaderboard":
            pictures[group] = plot_standings(members)
        elif any(one.variant["reference"] in names for one in members):
            pictures[group] = plot_ratios(members, found)
    return pictures


def _check_tokens(found: Sequence[Standing]) -> None:
    tokens = sorted({one.tokens for one in found})
    if len(tokens) != 1:
        raise ValueError(f"expected variants with one number of training tokens, given {tokens}")


def _kind(one: Standing) -> str:
    return _KINDS[one.variant["kind"]]


def _note(one: Standing) -> str:
    seeds = "no seed" if one.is_seedless else seeds_text(one.perplexity)
    minutes = f"{one.cpu_seconds / 60:.1f} CPU minutes"
    return f"PPL {one.perplexity.value:,.1f}, {one.parameters_text} trained parameters, {minutes}, {seeds}"


def plot_exponents(found: Sequence[Mapping[str, Any]], target: float, source: str) -> Figure:
    """Initial Lyapunov exponents against the width: as drawn, and with the recurrent weights scaled.

    ``found``: `training.WidthExponent` as mappings.
    """
    figure, (axis,) = new_axes(1, width=6)
    widths = [one["context_dim"] for one in found]
    axis.plot(widths, [one["drawn"] for one in found], "o-", color=TRAIN_COLOUR, label="as drawn (notes)")
    axis.plot(
        [one["context_dim"] for one in found if one["scaled"]["success"]],
        [one["scaled"]["exponent"] for one in found if one["scaled"]["success"]],
        "s-", color=VALIDATION_COLOUR, label=f"recurrent weights scaled to {target:+.2f}",
    )  # fmt: skip
    factors = [f"× {one['scaled']['scale']:.2f}" if one["scaled"]["success"] else "none" for one in found]
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
    row = found[0].records[0]
    return (
        f"{row['corpus']}, {row['embeddings']}, {found[0].tokens:,} training tokens, "
        f"{row['tokens']['validation']:,} validation tokens; paired by seed and conversation"
    )
