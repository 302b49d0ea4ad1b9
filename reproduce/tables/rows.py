"""Tables of the rows of leaderboard and Brown corpus: perplexities and their ratios."""

import dataclasses
from functools import cache

import numpy as np

from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.leaderboard import (
    Standing,
    both_ways,
    chosen_text,
    contexts_table,
    flattery,
    ratio_of,
    ratios_to_references,
    standings,
)
from newllm_core.intervals import NOT_MEASURED, over_seeds
from newllm_core.runs.files import REFERENCE_DIR
from newllm_core.studies.rows import read_rows
from reproduce import brown as brown_rows
from reproduce.controls import RATIOS, REFERENCE_NAME
from reproduce.tables.text import markdown, verdict


@cache
def _standings() -> tuple[Standing, ...]:
    return tuple(standings(read_rows(REFERENCE_DIR / "leaderboard")))


def _at(tokens: int) -> list[Standing]:
    return [one for one in _standings() if one.tokens == tokens]


def leaderboard(tokens: int) -> str:
    """Everybody who is compared at that number of training tokens, best first."""
    members = [one for one in _at(tokens) if one.variant["group"] == "leaderboard" or one.name == "best-earlier"]
    rows = [
        [
            f"{one.name}: {one.variant['sentence']}",
            one.perplexity.text("{:.1f}"),
            f"{one.bits_per_byte:.3f}",
            one.chosen_on,
            one.parameters_text,
            f"{one.cpu_seconds / 60:.1f}",
            NOT_MEASURED if one.is_seedless else str(len(one.seeds)),
        ]
        for one in members
    ]
    return markdown(["variant", "PPL", "bits a byte", "chosen on", "trained parameters", "CPU minutes", "seeds"], rows)


def flattered() -> str:
    """How much lower a perplexity is where iteration and epoch are chosen on the text that is judged."""
    rows = read_rows(REFERENCE_DIR / "leaderboard")
    shares, lines = flattery(rows), []
    for (name, tokens), pairs in sorted(both_ways(rows).items(), key=lambda item: (item[0][1], item[0][0])):
        values = [", ".join(f"{one:.1f}" for one in side) for side in zip(*pairs.values(), strict=True)]
        mean = dataclasses.replace(over_seeds([100 * one for one in shares[name, tokens]]), no_difference=0.0)
        lines.append([f"{tokens:,}", name, ", ".join(map(str, pairs)), *values, verdict(mean, "{:+.2f}")])
    texts = ["PPL, judged text chooses", "PPL, selection text chooses"]
    head = ["training tokens", "variant", "seeds", *texts, "flattered by, %"]
    return markdown(head, lines) if lines else "No variant has been run both ways yet."


def ratios() -> str:
    """The pairs that the text speaks of."""
    rows = []
    for tokens in sorted({one.tokens for one in _standings()}):
        here = {one.name: one for one in _at(tokens)}
        for one, other in RATIOS:
            if {one, other} <= here.keys():
                mine, theirs, ratio = ratio_of(here[one], here[other])
                told = [ratio.text(), ratio.verdict, chosen_text(mine, theirs), str(len(ratio.by_seed))]
                rows.append([f"{tokens:,}", one, other, *told])
    return markdown(["training tokens", "PPL of", "over that of", "ratio", "verdict", "chosen on", "seeds"], rows)


def group(name: str, tokens: int = 57_173) -> str:
    """Variants of one group over their references, with what was expected before they were run, lowest ratio first."""
    here = _at(tokens)
    pairs = ratios_to_references([one for one in here if one.variant["group"] == name], here)
    rows = [
        [
            f"{one.name}: {one.variant['sentence']}", other.name, one.variant["expected"], verdict(ratio),
            chosen_text(one, other), str(len(ratio.by_seed)),
        ]
        for one, other, ratio in sorted(pairs, key=lambda pair: pair[2].value)
    ]  # fmt: skip
    return markdown(["what", "against", "expected", "PPL ratio", "chosen on", "seeds"], rows)


def contexts(tokens: int = 57_173) -> str:
    """What the contexts of the objectives are like."""
    here = {one.name: one for one in _at(tokens)}
    names = ("regularised-untrained", "regularised", "regularised-odcm", "regression-sigreg", "contrastive-odcm",
             "contrastive", "best")  # fmt: skip
    table = contexts_table([here[name] for name in names])
    rows = []
    for name, row in table.iterrows():
        horizon = row["horizon, tokens"]
        rows.append(
            [
                f"{name}: {here[str(name)].variant['sentence']}", f"{row['ER %']:.1f}",
                f"{row['contraction, nats a token']:+.3f}", NOT_MEASURED if np.isnan(horizon) else f"{horizon:.0f}",
                f"{row['PPL']:.1f}", f"{here[str(name)].cpu_seconds / 60:.1f}", f"{row['seeds']:.0f}",
            ]
        )  # fmt: skip
    head = ["objective", "ER, %", "contraction, nats a token", "horizon, tokens", "PPL", "CPU minutes", "seeds"]
    return markdown(head, rows)


def _brown_cells(one: Standing, reference: Standing | None) -> list[str]:
    ratio = None if reference is None or one is reference else perplexity_ratio(one, reference)
    return [
        f"{one.name}: {one.variant['sentence']}", one.perplexity.text("{:.1f}"),
        NOT_MEASURED if ratio is None else verdict(ratio), one.chosen_on, one.parameters_text,
        f"{one.cpu_seconds / 60:.0f}", NOT_MEASURED if one.is_seedless else str(len(one.seeds)),
    ]  # fmt: skip


def brown() -> str:
    """Rows on the Brown corpus among those of 2003, lowest perplexity first."""
    rows = read_rows(brown_rows.ROWS)
    found = standings(rows) if rows else []
    reference = next((one for one in found if one.name == REFERENCE_NAME), None)
    lines = [(one.perplexity.value, _brown_cells(one, reference)) for one in found]
    blank = [NOT_MEASURED] * 5
    lines += [(value, [f"2003: {what}", f"{value:.0f}", *blank]) for what, value in brown_rows.PUBLISHED.items()]
    head = [
        "variant", "PPL, test text", f"× {REFERENCE_NAME}", "chosen on", "trained parameters", "CPU minutes",
        "seeds",
    ]  # fmt: skip
    return markdown(head, [cells for _, cells in sorted(lines, key=lambda line: line[0])])
