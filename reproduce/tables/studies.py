"""Tables of the studies beside the rows: whole runs, sources of contexts, sizes, diversity losses, speed, ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from newllm_core.comparison.figures import perplexity_ratio, seed_mean, validation_losses
from newllm_core.comparison.groups import groups_of
from newllm_core.comparison.paired import paired_difference
from newllm_core.intervals import NOT_MEASURED, Estimate, over_seeds, paired_ratio
from newllm_core.losses import DIVERSITY_ALGORITHMS
from newllm_core.report.reference import DIVERSITY_ITERATIONS
from newllm_core.runs.files import REFERENCE_DIR, read_json
from reproduce.tables.text import markdown, verdict


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
        [*line("PPL after five epochs", "validation_perplexity", "{:.1f}"), f"× {verdict(ratio)}"],
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
                "" if first or rank is None else verdict(rank, "{:+.1f}"),
                texts["contraction rate"],
                "" if first else verdict(ratio), f"{cost[one.algorithm]['forward_backward_ms']:.0f}",
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
