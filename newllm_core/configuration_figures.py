"""Figures of a configuration with their 95 % intervals over seeds, of perplexity over conversations too.

Student's t on a clustered standard error. Not the percentile bootstrap over both: with three seeds that covers 75 %
instead of 95 % where seeds scatter most, this one 93 % (`tests/test_diversity.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from newllm_core.configurations import ComparisonError, Group, Record
from newllm_core.scaling import CONFIDENCE, Floats, Interval


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds; the 95 % interval is None for a single seed. Both None where a run lacks the figure."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Perplexity:
    """Of a configuration on the validation text, with the 95 % interval of ``clustered_mean``."""

    value: float
    interval: Interval | None


def over_seeds(values: Sequence[float | None], percent: bool = False) -> SeedMean:
    """Mean and t-interval of one figure of several seeds; ``percent``: the interval ends at 0 and 100."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return SeedMean(None, None)
    centre = float(np.mean(known))
    if len(known) < 2:
        return SeedMean(centre, None)
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(known) - 1) * stats.sem(known))
    low, high = centre - margin, centre + margin
    return SeedMean(centre, (max(low, 0.0), min(high, 100.0)) if percent else (low, high))


def clustered_mean(sums: Floats, counts: Floats) -> tuple[float, Interval | None]:
    """Mean over seeds of nats a token, and its 95 % interval over seeds and conversations.

    ``sums`` `[num_seeds, num_conversations]`, nats; ``counts`` `[num_conversations]`, tokens. Variance: between seeds,
    and of the ratio between conversations (linearised); degrees of freedom by Satterthwaite 1946. A single seed leaves
    the conversations alone, and the other way round; a single one of both has no interval.
    """
    totals, num_tokens = sums.sum(axis=1) / counts.sum(), counts.sum()
    mean, parts = float(totals.mean()), []
    num_seeds, num_conversations = sums.shape
    if num_seeds > 1:
        parts.append((float(totals.var(ddof=1)) / num_seeds, num_seeds - 1))
    if num_conversations > 1:
        rest = (sums.mean(axis=0) - mean * counts) / num_tokens
        parts.append((float(rest @ rest) * num_conversations / (num_conversations - 1), num_conversations - 1))
    variance = sum(part for part, _ in parts)
    if not parts or variance == 0:
        return mean, (mean, mean) if parts else None
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * math.sqrt(variance)
    return mean, (mean - margin, mean + margin)


def _phase2(record: Record) -> Any:
    if "phase2" not in record:
        raise ComparisonError("expected records of both phases, given Phase 1 alone")
    return record["phase2"]


def validation_losses(records: Sequence[Record]) -> tuple[Floats, Floats]:
    parts = [_phase2(record)["validation_conversations"] for record in records]
    if any(part["tokens"] != parts[0]["tokens"] for part in parts):
        raise ComparisonError("perplexity: expected runs judged on the same conversations, given different ones")
    return np.array([part["nats"] for part in parts], np.float64), np.array(parts[0]["tokens"], np.float64)


def exp_interval(interval: Interval | None) -> Interval | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


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
    rate = record["phase1"]["convergence"]["train"]
    return None if rate is None else 100 * rate


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


def seed_mean(group: Group, figure: str) -> SeedMean:
    """Of one of FIGURES. Raises ComparisonError for a figure of Phase 2 without Phase 2."""
    return over_seeds([FIGURES[figure](record) for record in group.records], percent=figure.endswith("%"))


def perplexity(group: Group) -> Perplexity:
    """Geometric mean over seeds. Raises ComparisonError without Phase 2, and for different validation conversations."""
    loss, interval = clustered_mean(*validation_losses(group.records))
    return Perplexity(math.exp(loss), exp_interval(interval))
