"""The progression of α: one power-law fit per sliding window of sizes, its table and its record.

Source: docs/method.md, section 6.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from newllm_core.comparison.tables import readable_table, table_of
from newllm_core.intervals import Estimate, Interval, comparison_text
from newllm_core.scaling.law import ScalingError, checked_values, fit_power_law, mean_over_seeds, sliding_windows


@dataclass(frozen=True)
class AlphaRow:
    """One window. The change and the comparison are None in the first one."""

    window: int  # from 1
    samples: tuple[int, ...]
    tokens: tuple[float, ...]
    perplexity: tuple[float, ...]  # geometric mean over seeds
    alpha: float
    alpha_interval: Interval | None  # 95 % t-interval; None for windows of two sizes
    A: float
    r_squared: float
    alpha_change: float | None  # against the window before
    comparison: str | None  # with the window before


@dataclass(frozen=True)
class AlphaProgression:
    """All windows, smallest sizes first."""

    rows: tuple[AlphaRow, ...]
    window_size: int
    num_seeds: tuple[int, ...]  # per size
    trend_per_decade: float | None  # linear slope of α per tenfold tokens; None for a single window
    trend: str


def alpha_progression(
    tokens: Sequence[float],
    samples: Sequence[int],
    perplexity: Sequence[float] | Sequence[Sequence[float]],
    window_size: int,
) -> AlphaProgression:
    """Fit every window of ``window_size`` neighbouring sizes.

    ``tokens`` and ``samples`` [num_sizes], strictly increasing; ``perplexity`` [num_sizes], or one sequence of seeds
    per size, which is averaged first (``mean_over_seeds``).

    Raises ScalingError for what ``fit_power_law`` and ``sliding_windows`` refuse, and for samples that do not go
    with the tokens.
    """
    seeds = [_seeds_of_a_size(value) for value in perplexity]
    means = [mean_over_seeds(values) for values in seeds]
    _check_samples(samples, tokens)
    if len(means) != len(tokens):
        raise ScalingError(f"expected one perplexity per size, given {len(means)} for {len(tokens)} tokens")
    rows: list[AlphaRow] = []
    for window in sliding_windows(list(zip(samples, tokens, means)), window_size):
        rows.append(_row(window, rows[-1] if rows else None))
    slope = _trend_per_decade(rows)
    return AlphaProgression(tuple(rows), window_size, tuple(map(len, seeds)), slope, _trend_text(rows, slope))


def _seeds_of_a_size(value: Any) -> list[float]:
    return list(value) if isinstance(value, Sequence | np.ndarray) else [value]


def _check_samples(samples: Sequence[int], tokens: Sequence[float]) -> None:
    if len(samples) != len(tokens):
        raise ScalingError(f"expected one number of samples per size, given {len(samples)} for {len(tokens)} tokens")
    counts = checked_values(samples, "samples", above=0.0)
    if (np.diff(counts) <= 0).any():
        raise ScalingError(f"samples must be strictly increasing, given {list(samples)}")


def _row(window: Sequence[tuple[int, float, float]], before: AlphaRow | None) -> AlphaRow:
    samples, tokens, perplexity = zip(*window)
    fit = fit_power_law(tokens, perplexity)
    number = 1 if before is None else before.window + 1
    comparison = None
    if before is not None:
        names = (f"α of window {before.window}", f"window {number}")
        comparison = comparison_text(names[0], before.alpha_interval, names[1], fit.alpha_interval)
    return AlphaRow(
        window=number,
        samples=tuple(int(count) for count in samples),
        tokens=tuple(float(count) for count in tokens),
        perplexity=perplexity,
        alpha=fit.alpha,
        alpha_interval=fit.alpha_interval,
        A=fit.A,
        r_squared=fit.r_squared,
        alpha_change=None if before is None else fit.alpha - before.alpha,
        comparison=comparison,
    )


def _trend_per_decade(rows: Sequence[AlphaRow]) -> float | None:
    """Slope of α against the mean log10 of each window's tokens."""
    if len(rows) < 2:
        return None
    centres = [float(np.log10(row.tokens).mean()) for row in rows]
    return float(stats.linregress(centres, [row.alpha for row in rows]).slope)


def _trend_text(rows: Sequence[AlphaRow], slope: float | None) -> str:
    if slope is None:
        return "trend of α: undefined, there is one window"
    # α is negative: a rise of α is a slower fall of PPL, which the sign alone does not tell.
    meaning = "more slowly" if slope > 0 else "faster" if slope < 0 else "at the same rate"
    text = (
        f"trend of α: {slope:+.3f} per tenfold tokens over {len(rows)} windows (perplexity falls {meaning} at larger "
        "sizes); windows share points, so the slope has no interval"
    )
    if len(rows) == 2:
        return text
    first, last = rows[0], rows[-1]
    names = (f"α of window {first.window}", f"window {last.window}")
    return f"{text}; {comparison_text(names[0], first.alpha_interval, names[1], last.alpha_interval)}"


def progression_table(progression: AlphaProgression) -> str:
    """Text table, one line per window, with the comparisons and the trend below it."""
    rows = [
        {
            "window": row.window,
            "samples": f"{row.samples[0]}–{row.samples[-1]}",
            "tokens": f"{row.tokens[0]:,.0f}–{row.tokens[-1]:,.0f}",
            "α": Estimate(row.alpha, row.alpha_interval),
            "A": row.A,
            "R²": row.r_squared,
            "change of α": row.alpha_change,
        }
        for row in progression.rows
    ]
    comparisons = [row.comparison for row in progression.rows if row.comparison is not None]
    table = readable_table(table_of(rows, "window")).to_string()
    return "\n".join([table, *comparisons, progression.trend])


def progression_record(progression: AlphaProgression) -> dict[str, Any]:
    """What ``alpha_progression.json`` holds: the law, its unit, every row, the trend. Missing figures are None."""
    return {
        "law": "perplexity = A * tokens^alpha",
        "fit": "least squares of log perplexity on log tokens, one point per size (geometric mean over seeds)",
        "interval": "95 % t-interval, window_size - 2 degrees of freedom",
        **dataclasses.asdict(progression),
    }
