"""The tables and sentences of docs/growth.md, from the analysis that `reproduce.growth` keeps; nothing is trained here.

Each stands between ``<!-- table NAME -->`` and ``<!-- end -->``, as in docs/results.md; the prose around is written by
hand.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from newllm_core.intervals import NOT_MEASURED, Estimate, interval_text
from newllm_core.runs.files import read_json, write_text
from newllm_core.scaling.growth import (
    AlphaDifference,
    ContenderGrowth,
    GrowthAnalysis,
    GrowthSize,
    GrowthWindow,
    growth_from_record,
)
from newllm_core.studies.size_rule import REFERENCE_TOKENS, laws_of, own_value
from reproduce.growth_plan import NAMES, Plan
from reproduce.tables.text import filled, markdown

NO_ROWS = "No rows yet: `python -m reproduce.growth` runs them."
_ALTERNATIVE = (
    "Perplexity against training tokens with each contender's α, and ratios to the GRU with the same cache and n-grams"
)
_SHARES = (1 / 8, 1, 8, 32)  # of REFERENCE_TOKENS, that the table of the rule shows


def write_page(plan: Plan) -> Path:
    """The page of that plan's analysis: the committed one, or for a trial its copy beside the trial's record."""
    write_text(plan.page, page_of(plan))
    return plan.page


def page_of(plan: Plan) -> str:
    template = Plan().page.read_text(encoding="utf-8")
    return filled(template, tables_of(plan))


def tables_of(plan: Plan) -> dict[str, Callable[[], str]]:
    """By the name of their mark. Before the first report whatever is made of records says that there are none."""
    analysis = growth_from_record(read_json(plan.analysis)) if plan.analysis.exists() else None

    def of_records(table: Callable[[GrowthAnalysis], str]) -> Callable[[], str]:
        return lambda: NO_ROWS if analysis is None else table(analysis)

    picture = os.path.relpath(plan.picture, plan.page.parent)
    return {
        "growth-findings": of_records(lambda found: f"![{_ALTERNATIVE}]({picture})\n\n{findings(found)}"),
        "growth-rule": rule,
        "growth-perplexity": of_records(perplexities),
        "growth-ratios": of_records(ratios),
        "growth-alpha": of_records(alphas),
        "growth-differences": of_records(differences),
        "growth-pairs": of_records(pairs),
        "growth-floor": of_records(floors),
        "growth-cost": of_records(costs),
    }


def rule() -> str:
    """Every hyperparameter that depends on the size of the text: its law, and what comes of it. Those whose exponent
    is 0 are left out."""
    sizes = [round(share * REFERENCE_TOKENS) for share in _SHARES]
    rows = [
        [
            name, f"`{parameter}`", f"{law.exponent:g}", f"{law.low:g} … {law.high:g}",
            *(f"{law.value(own_value(name, parameter), size):g}" for size in sizes),
        ]
        for name in NAMES
        for parameter, law in laws_of(name).items()
        if law.exponent
    ]  # fmt: skip
    return markdown(["contender", "what", "exponent", "bounds", *(f"{size:,} tokens" for size in sizes)], rows)


def findings(analysis: GrowthAnalysis) -> str:
    """A sentence or two for each contender beside the reference, from the records alone."""
    held = analysis.named(analysis.reference)
    if held is None or held.whole is None:
        return f"`{analysis.reference}`, which the others are held against, has no three sizes yet."
    lines = [f"- **{held.label}**: α {_alpha_text(held.whole)}."]
    for one in analysis.contenders:
        if one is not held and one.whole is not None:
            lines.append(f"- **{one.label}**: α {_alpha_text(one.whole)}{_beside(analysis, one)}.")
    return "\n".join(lines)


def _beside(analysis: GrowthAnalysis, one: ContenderGrowth) -> str:
    """How its α and its last perplexity stand to the reference's; nothing where they have too little in common."""
    pair = _pair(analysis, one.name, analysis.reference)
    paired = [size for size in one.sizes if size.ratio is not None]
    if pair is None or not paired:
        return ""
    last = paired[-1]
    assert last.ratio is not None  # as chosen
    return (
        f"; minus that of `{analysis.reference}` over {_span(pair.samples)} conversations {_signed(pair.difference)}, "
        f"{pair.verdict}{_meaning(pair.difference)}. At {last.samples:,} conversations its perplexity is "
        f"{last.ratio.text()} of that of `{analysis.reference}`: {last.ratio.verdict}"
    )


def _meaning(difference: Estimate) -> str:
    if not difference.is_distinguishable:
        return ""
    return ", falls faster" if difference.value < 0 else ", falls more slowly"


def _pair(analysis: GrowthAnalysis, one: str, other: str) -> AlphaDifference | None:
    """In the order asked for."""
    for pair in analysis.pairs:
        if (pair.one, pair.other) == (one, other):
            return pair
        if (pair.one, pair.other) == (other, one):
            return dataclasses.replace(pair, one=one, other=other, difference=_negative(pair.difference))
    return None


def _negative(estimate: Estimate) -> Estimate:
    interval = None if estimate.interval is None else (-estimate.interval[1], -estimate.interval[0])
    return Estimate(-estimate.value, interval, tuple(-value for value in estimate.by_seed), estimate.no_difference)


def perplexities(analysis: GrowthAnalysis) -> str:
    """A row a size, a column a contender: PPL with its interval, bits a byte."""
    return _by_size(analysis, lambda one: f"{one.perplexity.text('{:.1f}')}; {one.bits_per_byte:.3f}")


def ratios(analysis: GrowthAnalysis) -> str:
    def cell(one: GrowthSize) -> str:
        return NOT_MEASURED if one.ratio is None else _with_verdict(one.ratio, "{:.3f}")

    return _by_size(analysis, cell, without=analysis.reference)


def costs(analysis: GrowthAnalysis) -> str:
    def cell(one: GrowthSize) -> str:
        seeds = f"{one.num_seeds} seed{'s' * (one.num_seeds > 1)}" if one.num_seeds else "no seed"
        return f"{one.cpu_seconds / 60:.1f} ({seeds}, {one.chosen_on})"

    return _by_size(analysis, cell)


def _by_size(analysis: GrowthAnalysis, cell: Callable[[GrowthSize], str], without: str | None = None) -> str:
    shown = [one for one in analysis.contenders if one.name != without]
    found = {one.name: {size.samples: size for size in one.sizes} for one in analysis.contenders}
    sizes = {size.samples: size.tokens for one in reversed(analysis.contenders) for size in one.sizes}
    rows = [
        [
            f"{samples:,} ({tokens:,})",
            *(cell(found[one.name][samples]) if samples in found[one.name] else NOT_MEASURED for one in shown),
        ]
        for samples, tokens in sorted(sizes.items())
    ]
    return markdown(["conversations (tokens)", *(one.name for one in shown)], rows)


def alphas(analysis: GrowthAnalysis) -> str:
    """A row a window, a column a contender; the last row is over all sizes that it has."""
    found = {
        one.name: {window.samples: window.alpha.text("{:.3f}") for window in one.windows} for one in analysis.contenders
    }
    rows = _window_rows(found)
    whole = [
        NOT_MEASURED if one.whole is None else f"{one.whole.alpha.text('{:.3f}')}, {_span(one.whole.samples)}"
        for one in analysis.contenders
    ]
    return markdown(["conversations", *found], [*rows, ["all", *whole]])


def differences(analysis: GrowthAnalysis) -> str:
    """α minus that of the reference in the same windows."""
    found: dict[str, dict[tuple[int, ...], str]] = {}
    for one in analysis.windows:
        found.setdefault(one.one, {})[one.samples] = _with_verdict(one.difference, "{:+.3f}")
    if not found:
        return "No contender shares a whole window of sizes with the reference yet."
    return markdown([f"conversations, minus {analysis.reference}", *found], _window_rows(found))


def _window_rows(found: dict[str, dict[tuple[int, ...], str]]) -> list[list[str]]:
    windows = sorted({window for cells in found.values() for window in cells})
    return [[_span(window), *(cells.get(window, NOT_MEASURED) for cells in found.values())] for window in windows]


def pairs(analysis: GrowthAnalysis) -> str:
    """Each two contenders over all sizes that both have."""
    rows = [
        [
            one.one, one.other, _span(one.samples), _signed(one.difference),
            f"{one.verdict}{_meaning(one.difference)}",
        ]
        for one in analysis.pairs
    ]  # fmt: skip
    return markdown(["α of", "minus α of", "conversations", "difference", "verdict"], rows)


def floors(analysis: GrowthAnalysis) -> str:
    rows = []
    for one in analysis.contenders:
        if one.floor is not None:
            interval = interval_text(one.floor.interval) if one.floor.identified else NOT_MEASURED
            rows.append([one.name, one.floor.statement, interval])
    return markdown(["contender", "loss that stays", "95 %"], rows) if rows else "No contender has three sizes yet."


def _alpha_text(window: GrowthWindow) -> str:
    return f"{window.alpha.text('{:.3f}')} over {_span(window.samples)} conversations"


def _span(samples: Sequence[int]) -> str:
    return f"{samples[0]:,}–{samples[-1]:,}"


def _signed(estimate: Estimate) -> str:
    return estimate.text("{:+.3f}")


def _with_verdict(estimate: Estimate, pattern: str) -> str:
    """Value and interval, and a word where they do not tell it from no difference."""
    return estimate.text(pattern) + ("" if estimate.is_distinguishable else f": {estimate.verdict}")
