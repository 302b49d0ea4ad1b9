"""Every 95 % interval of the project, and when two figures are called not distinguishable.

Over seeds and conversations: Student's t on a clustered standard error. Not the percentile bootstrap over both: with
three seeds that covers 75 % instead of 95 % where seeds scatter most, this one 93 %; over the judged conversations
alone, of which one holds a quarter of the tokens, some 94 % (`tests/test_intervals.py`). Resampling of sizes and of
blocks of tokens is in `scaling/bootstrap.py` and `metrics/spectrum.py`; level and types are these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]  # low, high
Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # of every interval in the project
NOT_DISTINGUISHABLE = "not distinguishable"
NOT_MEASURED = "–"
LARGEST_NATS = 700.0  # whose exponential is finite
_MIN_FISHER = 4  # Fisher's z has variance 1 / (n - 3)


def is_distinguishable(interval: Interval | None, other: Interval | float | None) -> bool:
    """True when the interval exists and shares no point with ``other``, an interval or a fixed number.

    For two intervals stricter than a test of the difference: two figures may differ although their intervals overlap.
    Where figures can be paired, hold the paired difference against 0 or the ratio against 1 instead.
    Raises ValueError for an interval that is not (low, high) with low <= high.
    """
    bounds = (other, other) if isinstance(other, int | float) else other
    for one in (interval, bounds):
        if one is not None and not one[0] <= one[1]:
            raise ValueError(f"an interval must be (low, high) with low <= high, given {one}")
    if interval is None or bounds is None:
        return False
    return interval[1] < bounds[0] or bounds[1] < interval[0]


def interval_text(interval: Interval | None, pattern: str = "{:.3f}") -> str:
    return f"[{NOT_MEASURED}]" if interval is None else f"[{', '.join(map(pattern.format, interval))}]"


def comparison_text(name_a: str, interval_a: Interval | None, name_b: str, interval_b: Interval | None) -> str:
    """One line: the two intervals of figures that cannot be paired, and whether they tell the figures apart."""
    intervals = f"{name_a} {interval_text(interval_a)}, {name_b} {interval_text(interval_b)}"
    if is_distinguishable(interval_a, interval_b):
        return f"{intervals}: distinguishable (the 95 % intervals do not overlap)"
    undefined = interval_a is None or interval_b is None
    reason = "an interval is undefined" if undefined else "the 95 % intervals overlap"
    return f"{intervals}: {NOT_DISTINGUISHABLE} ({reason})"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; what was not measured is None in its place.

    Attributes:
        interval: None where nothing tells how the figure scatters.
        by_seed: the figure of each seed, which ``value`` is the mean of; empty where no seed touches it.
        no_difference: of a figure that compares two, what would mean none: 1 of a ratio, 0 of a difference.
    """

    value: float
    interval: Interval | None
    by_seed: tuple[float, ...] = ()
    no_difference: float | None = None

    @property
    def is_distinguishable(self) -> bool:
        return is_distinguishable(self.interval, self.no_difference)

    @property
    def verdict(self) -> str:
        """In words; with one seed the interval lacks what another seed would change."""
        if not self.is_distinguishable:
            return NOT_DISTINGUISHABLE
        return "distinguishable" + " for this seed alone" * (len(self.by_seed) == 1)

    def text(self, pattern: str = "{:.3f}") -> str:
        """Value and interval."""
        return f"{pattern.format(self.value)} {interval_text(self.interval, pattern)}"

    def exp(self) -> "Estimate":
        """Of a mean of logarithms the geometric mean, of a difference of logarithms the ratio; ends at the largest
        number that a record holds."""
        return Estimate(
            finite_exp(self.value),
            None if self.interval is None else (finite_exp(self.interval[0]), finite_exp(self.interval[1])),
            tuple(map(finite_exp, self.by_seed)),
            None if self.no_difference is None else math.exp(self.no_difference),
        )


def finite_exp(nats: float) -> float:
    """Exponential, of more than LARGEST_NATS that of these: a run that diverges keeps a finite record."""
    return math.exp(min(nats, LARGEST_NATS))


def seeds_text(estimate: Estimate) -> str:
    """How many seeds it is over."""
    count = len(estimate.by_seed)
    return {0: "no seed", 1: "1 seed"}.get(count, f"{count} seeds")


def t_margin(standard_error: float, degrees: float) -> float:
    """Half the width of Student's 95 % interval."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * standard_error


def over_seeds(values: Sequence[float], percent: bool = False) -> Estimate:
    """Mean over seeds with its t-interval, None for one seed; ``percent``: the interval ends at 0 and 100."""
    if not values:
        raise ValueError("over_seeds: expected the figure of at least one seed, given none")
    centre, by_seed = float(np.mean(values)), tuple(values)
    if len(values) == 1:
        return Estimate(centre, None, by_seed)
    margin = t_margin(float(stats.sem(values)), len(values) - 1)
    low, high = centre - margin, centre + margin
    return Estimate(centre, (max(low, 0.0), min(high, 100.0)) if percent else (low, high), by_seed)


def paired_difference(figures: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean of the differences, a pair a seed, so that what a seed does to both cancels.

    Without an interval where all seeds differ by the same, as shares of few images do by chance: how the difference
    scatters is not known from them.
    """
    found = over_seeds([one - other for one, other in zip(figures, others, strict=True)])
    hides_scatter = found.value != 0 and len(set(found.by_seed)) == 1
    return replace(found, interval=None if hides_scatter else found.interval, no_difference=0.0)


def clustered_mean(sums: Floats, counts: Floats) -> Estimate:
    """Mean over seeds of nats a token, with its interval over seeds and conversations.

    ``sums`` `[num_seeds, num_conversations]`, nats; ``counts`` `[num_conversations]`, tokens; conversations without any
    say nothing. Variance: between seeds, and of the ratio between conversations by the jackknife, one conversation left
    out at a time: linearised it would be too small where a conversation is long, since that one pulls the mean to
    itself. Degrees of freedom by Satterthwaite 1946. A single seed leaves the conversations alone, and the other way
    round; a single one of both has no interval.
    """
    sums, counts = sums[:, counts > 0], counts[counts > 0]
    totals, num_tokens = sums.sum(axis=1) / counts.sum(), counts.sum()
    mean, parts = float(totals.mean()), []
    num_seeds, num_conversations = sums.shape
    if num_seeds > 1:
        parts.append((float(totals.var(ddof=1)) / num_seeds, num_seeds - 1))
    if num_conversations > 1:
        left_out = (sums.mean(axis=0) - mean * counts) / (num_tokens - counts)  # by so much each one moves the mean
        parts.append((float(left_out @ left_out) * (num_conversations - 1) / num_conversations, num_conversations - 1))
    variance, by_seed = sum(part for part, _ in parts), tuple(totals.tolist())
    if not parts or variance == 0:
        return Estimate(mean, (mean, mean) if parts else None, by_seed)
    margin = t_margin(math.sqrt(variance), variance**2 / sum(part**2 / free for part, free in parts))
    return Estimate(mean, (mean - margin, mean + margin), by_seed)


def paired_ratio(sums: Floats, others: Floats, counts: Floats) -> Estimate:
    """Perplexity over another's, paired by seed and conversation; arguments as of ``clustered_mean``."""
    return replace(clustered_mean(sums - others, counts), no_difference=0.0).exp()


def wilson_interval(successes: int, trials: int) -> Interval:
    """Of a share, 0 … 1 (Wilson 1927)."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def newcombe_difference(one: Estimate, other: Estimate) -> Estimate:
    """Of two independent shares, from their Wilson intervals (Newcombe 1998, method 10), in their unit.

    Raises ValueError for a share without an interval.
    """
    if one.interval is None or other.interval is None:
        raise ValueError(f"newcombe_difference: expected shares with their intervals, given {one} and {other}")
    value = one.value - other.value
    below = math.hypot(one.value - one.interval[0], other.interval[1] - other.value)
    above = math.hypot(one.interval[1] - one.value, other.value - other.interval[0])
    return Estimate(value, (value - below, value + above), (value,), no_difference=0.0)


def mean_of_shares(shares: Sequence[Estimate]) -> Estimate:
    """Of independent shares, from their Wilson intervals as in ``newcombe_difference``.

    Raises ValueError for a share without an interval.
    """
    if any(one.interval is None for one in shares):
        raise ValueError(f"mean_of_shares: expected shares with their intervals, given {shares}")
    value = sum(one.value for one in shares) / len(shares)
    below = math.hypot(*(one.value - one.interval[0] for one in shares if one.interval)) / len(shares)
    above = math.hypot(*(one.interval[1] - one.value for one in shares if one.interval)) / len(shares)
    return Estimate(value, (value - below, value + above))


def correlation(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Pearson's r with Fisher's interval, None for fewer than 4 pairs; neither may be constant."""
    pearson, interval = stats.pearsonr(one, other), None
    if len(one) >= _MIN_FISHER:
        low, high = pearson.confidence_interval(CONFIDENCE)
        interval = float(low), float(high)
    return Estimate(float(pearson.statistic), interval, no_difference=0.0)
