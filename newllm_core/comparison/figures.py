"""Figures of a configuration with their 95 % intervals over seeds, of perplexity over conversations too."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from newllm_core.comparison.groups import ComparisonError, Group, Record, Runs, paired_runs
from newllm_core.intervals import Estimate, Floats, clustered_mean, over_seeds, paired_ratio


def _phase2(record: Record) -> Any:
    if "phase2" not in record:
        raise ComparisonError("expected records of both phases, given Phase 1 alone")
    return record["phase2"]


def validation_losses(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Nats `[num_runs, num_conversations]` and tokens `[num_conversations]`, of runs or of rows of the leaderboard.

    Raises ComparisonError for different validation text, and for runs without Phase 2.
    """
    rows = (record if "validation_conversations" in record else _phase2(record) for record in records)
    parts = [row["validation_conversations"] for row in rows]
    if any(part["tokens"] != parts[0]["tokens"] for part in parts):
        raise ComparisonError("perplexity: expected runs judged on the same conversations, given different ones")
    return np.array([part["nats"] for part in parts], np.float64), np.array(parts[0]["tokens"], np.float64)


def _measure(name: str) -> Callable[[Record], float | None]:
    """An uncentred measure of the validation contexts, % of C."""

    def share(record: Record) -> float | None:
        measures = record["phase1"]["spectrum"]["measures"]
        (value,) = (one["value"] for one in measures if one["name"] == name and not one["centred"])
        return None if value is None else 100 * value / record["phase1"]["effective_rank"]["context_dim"]

    return share


def _rank_share(record: Record) -> float:
    rank = record["phase1"]["effective_rank"]
    return float(100 * rank["validation"] / rank["context_dim"])


def _converged_share(record: Record) -> float | None:
    """Of training tokens; iteration 1 has no trained one before it to compare with."""
    rate = record["phase1"]["convergence"]["train"]
    return None if rate is None or record["phase1"]["best_iteration"] == 1 else 100 * rate


# Ranks are of the validation contexts, uncentred, % of C; convergence of the training tokens; contraction in nats a
# token. The last two are of Phase 2's best epoch.
FIGURES: dict[str, Callable[[Record], float | None]] = {
    "ER %": _rank_share,
    "calibrated ER %": _measure("calibrated_effective_rank"),
    "participation ratio %": _measure("participation_ratio"),
    "converged %": _converged_share,
    "contraction rate": lambda record: record["phase1"]["contraction_rate"],
    "iterations kept": lambda record: record["phase1"]["best_iteration"],
    "Phase 1 s": lambda record: record["phase1"]["seconds"],
    "accuracy %": lambda record: 100 * _phase2(record)["best"]["validation_accuracy"],
    "bits a byte": lambda record: _phase2(record)["best"]["validation_bits_per_byte"],
}


def seed_mean(group: Group, figure: str) -> Estimate | None:
    """Of one of FIGURES; None where a run lacks it. Raises ComparisonError for a figure of Phase 2 without Phase 2."""
    values = [FIGURES[figure](record) for record in group.records]
    known = [value for value in values if value is not None]
    return over_seeds(known, percent=figure.endswith("%")) if len(known) == len(values) else None


def perplexity(runs: Runs) -> Estimate:
    """Geometric mean over seeds. Raises ComparisonError as ``validation_losses``."""
    return _of_seeds(clustered_mean(*validation_losses(runs.records)).exp(), runs)


def perplexity_ratio(one: Runs, other: Runs) -> Estimate:
    """PPL of ``one`` over PPL of ``other``, paired by seed and conversation.

    Raises ComparisonError as ``paired_runs`` and ``validation_losses``.
    """
    mine, theirs = paired_runs(one, other)
    sums, counts = validation_losses([*mine, *theirs])
    return _of_seeds(paired_ratio(sums[: len(mine)], sums[len(mine) :], counts), one, other)


def _of_seeds(estimate: Estimate, *sides: Runs) -> Estimate:
    """Counts have no seed, also where they are held against counts."""
    return replace(estimate, by_seed=()) if all(one.is_seedless for one in sides) else estimate
