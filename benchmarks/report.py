"""Markdown tables of a benchmark file, and the targets that its figures are held against."""

from collections.abc import Sequence
from typing import Any

# Targets: times as fast as the plain side, unless said otherwise.
CONTEXTS_TARGET = 6.0  # C = 500, E = 768
NEVER_BELOW = 0.9  # of the loop, anywhere
EPOCH_TARGETS = {"blocks": 1.4, "blocks-bf16": 2.5}
WHOLE_RUN_TARGET = 2.5
HEAD_MEMORY_TARGET_MB = 200.0
MEMORY_BEYOND_CACHE_MB = 1000.0


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "not measured"
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}" if size >= 1e-3 or value == 0 else f"{value:.1e}"


def part_report(name: str, figures: dict[str, Any]) -> str:
    """Tables of one part."""
    return {"a": _contexts, "b": _iteration, "c": _head, "d": _whole, "e": _memory, "f": _scaling}[name](figures)


def _contexts(figures: dict[str, Any]) -> str:
    streams = table(
        ["C", "E", "trained", "tokens", "loop s", "exact s", "ratio", "rounds", "passes", "deviation", "rate"],
        [
            [
                case["context_dim"], case["embed_dim"], f"{case['trained_iterations']} iterations", case["tokens"],
                case["median_seconds"]["plain loop"], case["median_seconds"]["exact_contexts"],
                case["ratio"]["exact_contexts"], _range(case["ratio_range"]["exact_contexts"]), case["passes"],
                case["largest_deviation_from_float64"]["exact_contexts"], case["contraction_rate"],
            ]
            for case in figures["streams"]
        ],
    )  # fmt: skip
    worst = sorted(figures["small"], key=lambda case: case["ratio"]["exact_contexts"])[:5]
    small = table(
        ["C", "weight std", "tokens", "ratio to plain loop", "ratio to own loop", "segment", "horizon"],
        [
            [
                case["context_dim"], case["weight_std"], case["tokens"], case["ratio"]["exact_contexts"],
                case["ratio_to_project_loop"], case["segment_length"], case["horizon"] or "none",
            ]
            for case in worst
        ],
    )  # fmt: skip
    return f"{streams}\n\nSlowest of {len(figures['small'])} short or expanding streams:\n\n{small}"


def _range(pair: Sequence[float]) -> str:
    return f"{pair[0]:.2f}–{pair[1]:.2f}"


def _iteration(figures: dict[str, Any]) -> str:
    rows = [
        [label, name, figures[key]["median_seconds"][name], figures[key]["ratio"].get(name, 1.0)]
        for key, label in (
            ("iteration", "iteration"),
            ("validation_check", "validation check"),
            ("predictive_pass", "predictive pass"),
        )
        if key in figures
        for name in figures[key]["median_seconds"]
    ]
    return table(["what", "who", "s", "ratio"], rows)


def _head(figures: dict[str, Any]) -> str:
    epochs = table(
        ["E", "batch", "method", "targets/s", "plain targets/s", "ratio", "rounds", "largest Δ nats"],
        [
            [
                case["embed_dim"], case["batch"], name, case["targets"] / case["median_seconds"][name],
                case["targets"] / case["median_seconds"]["plain"], ratio, _range(case["ratio_range"][name]),
                case["largest_delta_mean_nats"][name],
            ]
            for case in figures["epochs"] for name, ratio in case["ratio"].items()
        ],
    )  # fmt: skip
    evaluations = table(
        ["E", "evaluation targets/s", "plain targets/s", "ratio"],
        [
            [
                case["embed_dim"], case["targets"] / case["median_seconds"]["project"],
                case["targets"] / case["median_seconds"]["plain"], case["ratio"]["project"],
            ]
            for case in figures["evaluations"]
        ],
    )  # fmt: skip
    return f"{epochs}\n\n{evaluations}\n\n{_candidates(figures['candidates'])}"


def _candidates(cases: Sequence[dict[str, Any]]) -> str:
    speed = table(
        ["E", "batch", "way", "tokens/s", "ratio to direct", "of two bare products"],
        [
            [
                case["embed_dim"], case["batch"], name, case["batch"] / seconds, case["ratio"].get(name, 1.0),
                case.get("of_two_products", {}).get(name, ""),
            ]
            for case in cases for name, seconds in case["median_seconds"].items()
        ],
    )  # fmt: skip
    quality = table(
        ["E", "way", "Δ nats", "gradient error", "over direct", "extra MB by batch"],
        [
            [
                case["embed_dim"], name, found["delta_mean_nats"], found["gradient_error"],
                found["gradient_error_over_direct"],
                ", ".join(f"{batch}: {round(mb)}" for batch, mb in case["extra_memory_mb"][name].items()),
            ]
            for case in cases if "exactness" in case for name, found in case["exactness"].items()
        ],
    )  # fmt: skip
    return f"{speed}\n\n{quality}"


def _whole(figures: dict[str, Any]) -> str:
    rows = [
        [
            name, run["seconds_phase1"], run["seconds_phase2"], run["seconds"], run["iterations"], run["epochs"],
            run["perplexity"], run["peak_mb"],
        ]
        for name, run in ((name, figures[name]) for name in ("project", "plain"))
    ]  # fmt: skip
    head = ["who", "Phase 1 s", "Phase 2 s", "total s", "iterations", "epochs", "validation PPL", "peak MB"]
    return table(head, rows) + (
        f"\n\nratio {figures['ratio']:.2f} (Phase 1 {figures['ratio_phase1']:.2f}, "
        f"Phase 2 {figures['ratio_phase2']:.2f}), PPL over plain {figures['perplexity_over_plain']:.4f}"
    )


def _memory(figures: dict[str, Any]) -> str:
    cases = [("Phase 1", figures["phase1_iteration_and_check"])]
    cases += [(f"Phase 2, E = {c['embed_dim']}, batch {c['batch']}", c) for c in figures["phase2_steps_and_evaluation"]]
    sides = ("project", "plain")
    rows = [[label, who, case[who]["peak_mb"], case[who]["growth_mb"]] for label, case in cases for who in sides]
    return table(["stage", "who", "peak MB", "growth MB"], rows)


def _scaling(figures: dict[str, Any]) -> str:
    sizes = table(
        ["tokens", "cache s", "iteration s", "epoch s", "timed", "peak MB", "context cache MB", "beyond cache MB"],
        [
            [
                f"{size['tokens']:,}", size["seconds"]["context_cache"], size["seconds"]["phase1_iteration"],
                size["seconds"]["phase2_epoch"], f"{size['epoch_share_timed']:.0%}", size["peak_mb"],
                size["context_cache_mb"], size["peak_beyond_cache_mb"],
            ]
            for size in figures["sizes"]
        ],
    )  # fmt: skip
    return sizes + "\n\nexponents: " + ", ".join(f"{name} {value:.3f}" for name, value in figures["exponents"].items())
