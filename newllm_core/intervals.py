"""Every 95 % interval of the project, and when two figures are called not distinguishable.

Student's t on a clustered standard error. Not the percentile bootstrap over both seeds and conversations: with three
seeds that covers 75 % instead of 95 % where seeds scatter most, this one 93 % (`tests/comparison/test_comparison.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]


Floats = NDArray[np.float64]


CONFIDENCE = 0.95  # of every interval in the project


NOT_DISTINGUISHABLE = "not distinguishable"


def distinguishable(interval_a: Interval | None, interval_b: Interval | None) -> bool:
    """True when both intervals exist and share no point.

    Stricter than a test of the difference: two figures may differ although their 95 % intervals overlap.
    Raises ValueError for an interval that is not (low, high) with low <= high.
    """
    for interval in (interval_a, interval_b):
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"an interval must be (low, high) with low <= high, given {interval}")
    if interval_a is None or interval_b is None:
        return False
    return interval_a[1] < interval_b[0] or interval_b[1] < interval_a[0]


def comparison_text(name_a: str, interval_a: Interval | None, name_b: str, interval_b: Interval | None) -> str:
    """One line: the two intervals and whether they tell the figures apart."""
    intervals = f"{name_a} {interval_text(interval_a)}, {name_b} {interval_text(interval_b)}"
    if distinguishable(interval_a, interval_b):
        return f"{intervals}: distinguishable (the 95 % intervals do not overlap)"
    undefined = interval_a is None or interval_b is None
    reason = "an interval is undefined" if undefined else "the 95 % intervals overlap"
    return f"{intervals}: {NOT_DISTINGUISHABLE} ({reason})"


def interval_text(interval: Interval | None) -> str:
    return "[undefined]" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds; the 95 % interval is None for a single seed. Both None where a run lacks the figure."""

    value: float | None
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


def exp_interval(interval: Interval | None) -> Interval | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
