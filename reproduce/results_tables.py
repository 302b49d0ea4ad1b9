"""The tables of docs/results.md, from the committed records; nothing is trained here.

    python -m reproduce.results_tables            # writes them anew, each between its two marks
    python -m reproduce.results_tables --check    # status 1 where the page does not say what the records say

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a key of TABLES. The prose around them is
written by hand.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from newllm_core.comparison.figures import perplexity_ratio, seed_mean, validation_losses
from newllm_core.comparison.groups import groups_of
from newllm_core.comparison.leaderboard import (
    Standing,
    both_ways,
    contexts_table,
    flattery,
    ratios_to_references,
    standings,
)
from newllm_core.comparison.paired import paired_difference
from newllm_core.intervals import NOT_DISTINGUISHABLE, NOT_MEASURED, Estimate, over_seeds, paired_ratio
from newllm_core.losses import DIVERSITY_ALGORITHMS
from newllm_core.report.reference import DIVERSITY_ITERATIONS
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json, write_text
from newllm_core.studies.rows import read_rows
from reproduce import brown as brown_rows
from reproduce.controls import RATIOS, REFERENCE_NAME

PAGE = PROJECT_ROOT / "docs" / "results.md"
_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _verdict(estimate: Estimate, pattern: str = "{:.3f}") -> str:
    """Value and interval, and a word where they do not tell it from the reference."""
    return estimate.text(pattern) + ("" if estimate.is_distinguishable else f": {NOT_DISTINGUISHABLE}")


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
        lines.append([f"{tokens:,}", name, ", ".join(map(str, pairs)), *values, _verdict(mean, "{:+.2f}")])
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
                ratio = perplexity_ratio(here[one], here[other])
                rows.append([f"{tokens:,}", one, other, ratio.text(), ratio.verdict, str(len(ratio.by_seed))])
    return markdown(["training tokens", "PPL of", "over that of", "ratio", "verdict", "seeds"], rows)


def group(name: str, tokens: int = 57_173) -> str:
    """Variants of one group over their references, with what was expected before they were run, lowest ratio first."""
    here = _at(tokens)
    pairs = ratios_to_references([one for one in here if one.variant["group"] == name], here)
    rows = [
        [
            f"{one.name}: {one.variant['sentence']}", other.name, one.variant["expected"], _verdict(ratio),
            str(len(ratio.by_seed)),
        ]
        for one, other, ratio in sorted(pairs, key=lambda pair: pair[2].value)
    ]  # fmt: skip
    return markdown(["what", "against", "expected", "PPL ratio", "seeds"], rows)


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


def profiles() -> str:
    """The two whole runs."""
    records = {name: read_json(REFERENCE_DIR / "runs" / f"{name}.json") for name in ("notes", "cpu")}
    rows = [[what, *(read(record) for record in records.values())] for what, read in _PROFILE_ROWS.items()]
    return markdown(["figure", *(f"`{name}`" for name in records)], rows)


def _rank(value: float, record: Mapping[str, Any]) -> str:
    width = record["phase1"]["effective_rank"]["context_dim"]
    return f"{value:.1f}/{width} = {100 * value / width:.1f} %"


def _converged(record: Mapping[str, Any]) -> str:
    found = record["phase1"]["convergence"]
    converged, total = found["train_converged"], found["train_total"]
    return f"{100 * converged / total:.1f} % ({converged}/{total})"


def _accuracy(record: Mapping[str, Any]) -> str:
    best = record["phase2"]["best"]
    return f"{100 * best['validation_accuracy']:.1f} %; {best['validation_bits_per_byte']:.3f}"


_PROFILE_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "training / validation tokens": lambda r: f"{r['tokens']['train']:,} / {r['tokens']['validation']:,}",
    "validation ER, untrained": lambda r: _rank(r["phase1"]["effective_rank"]["validation_untrained"], r),
    "validation ER, kept weights": lambda r: _rank(r["phase1"]["effective_rank"]["validation"], r),
    "iterations run / kept": lambda r: f"{r['phase1']['iterations']} / {r['phase1']['best_iteration']}",
    "convergence, training": _converged,
    "contraction rate, nats a token": lambda r: f"{r['phase1']['contraction_rate']:+.3f}",
    "horizon, tokens": lambda r: str(r["phase1"]["forgetting"]["horizon"]),
    "PPL after epochs 1–5": lambda r: " / ".join(
        f"{epoch['validation_perplexity']:,.0f}" for epoch in r["phase2"]["epochs"][:5]
    ),
    "best PPL (epoch)": lambda r: (
        f"{r['phase2']['best']['validation_perplexity']:.1f} ({r['phase2']['best']['epoch']})"
    ),
    "accuracy; bits a byte": _accuracy,
    "minutes, two threads": lambda r: f"{r['seconds'] / 60:.1f}",
}


def context_source() -> str:
    """Stale against exact contexts, paired by seed."""
    found = read_json(REFERENCE_DIR / "context_source.json")["rows"]
    stale, exact = ([row for row in found if row["context_source"] == one] for one in ("previous_iteration", "exact"))

    def line(what: str, key: str, pattern: str, factor: float = 1) -> list[str]:
        return [what, *(", ".join(pattern.format(factor * row[key]) for row in rows) for rows in (stale, exact))]

    def differences(key: str, take: Callable[[float], float]) -> Estimate:
        return over_seeds([take(two[key]) - take(one[key]) for one, two in zip(stale, exact, strict=True)])

    ratio = differences("validation_perplexity", lambda value: float(np.log(value)))
    ratio = Estimate(ratio.value, ratio.interval, ratio.by_seed, 0.0).exp()
    rank = differences("effective_rank_share", lambda value: 100 * value).text("{:+.1f}")
    rows = [
        [*line("validation ER, %", "effective_rank_share", "{:.1f}", 100), f"{rank} points"],
        [*line("convergence, training, %", "convergence_train", "{:.1f}", 100), ""],
        [*line("PPL after five epochs", "validation_perplexity", "{:.1f}"), f"× {_verdict(ratio)}"],
        [*line("seconds of Phase 1", "phase1_seconds", "{:.0f}"), ""],
        [*line("iterations before it stops early", "iterations", "{}", 1), ""],
    ]
    return markdown(["figure", "stale", "exact", "difference"], rows)


def scaling() -> str:
    found = read_json(REFERENCE_DIR / "scaling" / "alpha_progression.json")["sizes"]
    rows = []
    for size in found:
        low, high = size["perplexity_interval"]
        mean = float(np.exp(np.mean(np.log(size["perplexity"]))))
        means = [100 * float(np.mean(size[key])) for key in ("accuracy", "calibrated_rank")]
        text = [f"{mean:.1f} [{low:,.0f}, {high:,.0f}]", *(f"{value:.1f}" for value in means)]
        rows.append([str(size["samples"]), f"{size['tokens']:,}", *text])
    return markdown(["conversations", "training tokens", "PPL", "accuracy, %", "calibrated ER, %"], rows)


def diversity() -> str:
    """Each loss against the first; milliseconds are of the forward and backward pass over one batch of contexts."""
    every = [read_json(path) for path in sorted((REFERENCE_DIR / "experiments").glob("*.json"))]
    compared = [one for one in every if one["config"]["phase1"]["max_iterations"] == DIVERSITY_ITERATIONS]
    order = list(DIVERSITY_ALGORITHMS)
    records = sorted(compared, key=lambda one: order.index(one["config"]["phase1"]["diversity_algorithm"]))
    cost = {one["name"]: one for one in read_json(REFERENCE_DIR / "diversity" / "cost.json")["losses"]}
    groups, rows = groups_of(records), []
    for one in groups:
        rank = paired_difference(one, groups[0])
        ratio = perplexity_ratio(one, groups[0])
        first = one is groups[0]
        means = {name: seed_mean(one, name) for name in ("calibrated ER %", "contraction rate")}
        texts = {
            name: NOT_MEASURED if mean is None else f"{mean.value:{pattern}}"
            for (name, mean), pattern in zip(means.items(), (".1f", "+.3f"))
        }
        rows.append(
            [
                one.algorithm, texts["calibrated ER %"],
                "" if first or rank is None else _verdict(rank, "{:+.1f}"),
                texts["contraction rate"],
                "" if first else _verdict(ratio), f"{cost[one.algorithm]['forward_backward_ms']:.0f}",
            ]
        )  # fmt: skip
    return markdown(["loss", "calibrated ER, %", "difference, points", "nats a token", "PPL ratio", "ms"], rows)


def speed() -> str:
    """Times as fast as the plain reading: medians of interleaved rounds, with the smallest and largest round."""
    measured = read_json(REFERENCE_DIR / "benchmark_core.json")["parts"]
    parts = {name: part["figures"] for name, part in measured.items()}

    def ratio(case: Mapping[str, Any], name: str) -> str:
        low, high = case["ratio_range"][name]
        return f"{case['ratio'][name]:.2f} ({low:.2f}–{high:.2f})"

    rows = [
        [
            f"contexts of {one['tokens']:,} tokens, C = {one['context_dim']}, E = {one['embed_dim']}, "
            f"{one['trained_iterations'] or 'no'} iterations trained ({one['contraction_rate']:+.2f} nats a token)",
            ratio(one, "exact_contexts"),
        ]
        for one in parts["a"]["streams"]
    ]
    iteration, check, whole = parts["b"]["iteration"], parts["b"]["validation_check"], parts["d"]
    of_part = ["a"] * len(rows)
    rows += [
        ["one iteration of Phase 1, stale contexts", ratio(iteration, "project")],
        ["the same, exact contexts (plain has stale ones only)", ratio(iteration, "project, exact contexts")],
        ["one validation check of Phase 1", ratio(check, "project")],
        ["a pass of predictive Phase 1, against automatic gradients", ratio(parts["b"]["predictive_pass"], "project")],
    ]
    of_part += ["b"] * (len(rows) - len(of_part))
    rows += [
        [f"Phase 2, batch {one['batch']:,}, E = {one['embed_dim']}, `{name}`", ratio(one, name)]
        for one in parts["c"]["epochs"]
        for name in one["ratio"]
    ]
    of_part += ["c"] * (len(rows) - len(of_part))
    epochs = max(run["project"]["epochs"] for run in whole["runs"])
    passes = [", ".join(str(run[side]["iterations"]) for run in whole["runs"]) for side in ("project", "plain")]
    phase1 = f"Phase 1 ({passes[0]} iterations before it stops early, plain's {passes[1]})"
    for what, key in ((phase1, "cpu_ratio_phase1"), ("Phase 2", "cpu_ratio_phase2"), ("both", "cpu_ratio")):
        rows.append([f"the whole `cpu` profile with {epochs} epochs at most, CPU seconds: {what}", f"{whole[key]:.2f}"])
    of_part += ["d"] * (len(rows) - len(of_part))
    # Figures of two kinds of processor stand side by side, each with its own.
    kinds = [_processor(measured[part]["machine"]) for part in of_part]
    with_kinds = [[*row, kind] for row, kind in zip(rows, kinds, strict=True)]
    return markdown(["what", "times as fast as plain (rounds)", "processor"], with_kinds)


def _processor(machine: Mapping[str, Any]) -> str:
    name = machine["cpu"].split(",")[0].replace("(R)", "").replace(" Processor", "")
    return f"{name}, {machine['instruction_set'].upper()}" if "instruction_set" in machine else str(name)


def few_tokens() -> str:
    found = read_json(REFERENCE_DIR / "rank_of_few_tokens.json")["first_tokens"]
    kinds = ("effective_rank", "calibrated_effective_rank", "few_token_rank")
    rows = []
    for one in found:
        cells = [Estimate(one[kind], tuple(one[f"{kind}_interval"])).text("{:.1f}") for kind in kinds]
        rows.append([f"{one['tokens']:,}", *cells])
    return markdown(["tokens", "effective rank, % of C", "over white noise", "without its bias"], rows)


def whole_corpus() -> str:
    """The better model and the GRU with a cache on a GPU, one seed, paired by conversation."""
    study = read_json(REFERENCE_DIR / "gpu_study.json")
    best, gru = (study[name]["study"] for name in ("best", "gru"))
    rows = []
    for name, one in best.items():
        other = gru[name.replace("best", "gru-cache", 1)]
        sums, counts = validation_losses([one, other])
        ratio = paired_ratio(sums[:1], sums[1:], counts)
        figures = [f"{side['validation_perplexity']:.1f} ({side['seconds']:.0f} s)" for side in (one, other)]
        rows.append([f"{one['train_tokens']:,}", *figures, ratio.text()])
    return markdown(["training tokens", "`best`: PPL", "`gru-cache`: PPL", "ratio"], rows)


def _brown_cells(one: Standing, reference: Standing | None) -> list[str]:
    ratio = None if reference is None or one is reference else perplexity_ratio(one, reference)
    return [
        f"{one.name}: {one.variant['sentence']}", one.perplexity.text("{:.1f}"),
        NOT_MEASURED if ratio is None else _verdict(ratio), one.chosen_on, one.parameters_text,
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


TABLES: dict[str, Callable[[], str]] = {
    "leaderboard": lambda: leaderboard(57_173),
    "leaderboard-more-text": lambda: leaderboard(259_763),
    "ratios": ratios,
    "flattered": flattered,
    "brown": brown,
    "objectives": lambda: group("objectives"),
    "contexts": contexts,
    "parts": lambda: group("parts"),
    "decisions": lambda: group("decisions"),
    "profiles": profiles,
    "context-source": context_source,
    "scaling": scaling,
    "diversity": diversity,
    "speed": speed,
    "few-tokens": few_tokens,
    "whole-corpus": whole_corpus,
}


def filled(page: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """The page with every table made anew. Raises KeyError for a mark of no table."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n\n{found[3]}", page)


def write() -> None:
    """Every table of the page anew."""
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    if not arguments.check:
        write()
    elif filled(before) != before:
        sys.exit(f"{PAGE}: not what the records say; python -m reproduce.results_tables writes it anew")
    print(PAGE)


if __name__ == "__main__":
    main()
