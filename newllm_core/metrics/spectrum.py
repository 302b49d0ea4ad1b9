"""Measures of a context matrix's spectrum, centred and uncentred, each with an interval and its source.

"Effective rank" names several things in public code; here each has its own name. Uncentred measures are of the
second moments `M = Σxxᵀ / n`, centred ones of the covariance `Σ(x - x̄)(x - x̄)ᵀ / n`.

Intervals: neighbouring tokens are alike, so the bootstrap draws blocks of consecutive tokens (Carlstein 1986,
Annals of Statistics 14), and a draw is a weighted sum of block moments. The interval is the standard one, the
value and about two standard deviations of the draws to both sides (Efron & Tibshirani 1993, chapters 12 and 13), by
Student's t, since few blocks know a spread roughly. Not the percentile interval: a draw holds about 63 % of the blocks,
some of them several times, and repeated tokens add no directions, so every draw's rank is biased low and percentiles
would lie below the value; the draws' spread does not carry that shift.

An interval is about the scatter between streams of this length. It does not hold the bias of few tokens, which grows
with d and with the likeness of neighbours: for a Gaussian stream with autocorrelation 0.8, 2,000 tokens and
d = 60, intervals had the right width (a deviation of 0.26 against 0.27), yet the effective rank lay on average 0.9
below the 51.7 of endlessly many tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.intervals import Interval, t_margin
from newllm_core.metrics.moments import Moments, weighted_moments
from newllm_core.metrics.rank import above_rounding, entropy_rank_of, noise_effective_rank
from newllm_core.runs.reproducibility import derived_generator

# 40 blocks know a standard deviation to 11 %, and are 250 tokens long at 10,000: longer than a trained block remembers.
NUM_BLOCKS = 40
# Shorter blocks would cut through the dependence they are to keep; fewer blocks have no spread worth quoting.
MIN_BLOCK_LENGTH, MIN_BLOCKS = 10, 10
# Efron & Tibshirani 1993, section 6.4: 25 draws are informative for a standard deviation, 200 nearly always enough.
NUM_RESAMPLES, MIN_RESAMPLES = 100, 25
# The fit leaves out the first directions, which follow no law, and the last half, which few tokens push down.
FIRST_RANK, MIN_RANKS = 10, 5
MIN_PAIR_TOKENS = 4  # the centred trace estimates divide by n - 3


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Moments seen centred or not; the eigenvalues are computed once for all measures."""

    moments: Moments
    centred: bool

    @cached_property
    def squares(self) -> Tensor:
        """Squared singular values of the contexts, centred if asked for, falling, `[d]`.

        Those below rounding are zero: the rule of ``metrics.singular_values``, where rounding is relative to what was
        summed, so to the mean as well where it was subtracted.
        """
        moments, scatter, largest = self.moments, self.moments.gram, 0.0
        if self.centred:
            scatter = scatter - torch.outer(moments.total, moments.total) / moments.count
            largest = float(moments.total.square().sum()) / moments.count
        squares = torch.linalg.eigvalsh(scatter).flip(0)
        return above_rounding(squares, max(float(squares[0]), largest) * self.rounding)

    @property
    def rounding(self) -> float:
        return max(self.moments.count, self.moments.context_dim) * torch.finfo(torch.float64).eps

    @property
    def degrees(self) -> int:
        """Independent tokens: centring costs one."""
        return self.moments.count - int(self.centred)


def entropy_rank(spectrum: Spectrum) -> float | None:
    """`exp(H(p))`, `p = σ / Σσ`, σ the singular values (Roy & Vetterli 2007): 1 … min(n, d).

    Uncentred it is ``metrics.effective_rank``. Biased low when n is not much larger than d.
    None when every context is zero, or centred when all are equal.
    """
    return entropy_rank_of(spectrum.squares.sqrt())


def calibrated_entropy_rank(spectrum: Spectrum) -> float | None:
    """``entropy_rank`` over that of white noise of the same shape, times d: 1 … d.

    Uncentred it is ``metrics.calibrated_effective_rank``. Centred white noise of n tokens has the spectrum of n - 1
    uncentred ones. None where ``entropy_rank`` is.
    """
    rank, context_dim = entropy_rank(spectrum), spectrum.moments.context_dim
    if rank is None:
        return None
    return min(rank / noise_effective_rank(spectrum.degrees, context_dim), 1.0) * context_dim


def squared_traces(spectrum: Spectrum) -> tuple[float, float]:
    """Estimates of `(tr M)²` and `tr M²`, unbiased for independent tokens; n >= 4.

    M is the second-moment matrix or, centred, the covariance. Uncentred: the mean over pairs of different tokens of
    `|x|²|y|²` and `(x·y)²`. Centred: Himeno & Yamada 2014, Journal of Multivariate Analysis 130.
    """
    n, fourth = spectrum.moments.count, spectrum.moments.fourth
    trace, second = float(spectrum.squares.sum()), float(spectrum.squares.square().sum())
    if not spectrum.centred:
        return (trace**2 - fourth) / (n * (n - 1)), (second - fourth) / (n * (n - 1))
    trace, second = trace / (n - 1), second / (n - 1) ** 2
    spread = n * _centred_fourth(spectrum.moments) / (n - 1)
    factor = (n - 1) / (n * (n - 2) * (n - 3))
    squared_trace = factor * (2 * second + (n * n - 3 * n + 1) * trace**2 - spread)
    return squared_trace, factor * ((n - 1) * (n - 2) * second + trace**2 - spread)


def _centred_fourth(moments: Moments) -> float:
    """`Σ|x - m|⁴`, from `|x - m|² = |x|² - 2 x·m + |m|²`."""
    mean = moments.total / moments.count
    square = float(mean @ mean)
    along = float(mean @ moments.gram @ mean)
    crossed = float(mean @ moments.norm_weighted)
    norms = float(moments.gram.trace())
    return moments.fourth + 4 * along - 4 * crossed + 2 * square * norms - 3 * moments.count * square**2


def participation_ratio(spectrum: Spectrum) -> float | None:
    """`(tr M)² / tr M²` (Gao et al. 2017), each trace without the bias of few tokens: 1 … d.

    The traces are unbiased for independent tokens; alike neighbours push `tr M²` up and the ratio down. Clipped to
    1 … d, where the truth lies. None for n < 4, and where the estimate of either trace is not above rounding: with
    few tokens its error can exceed `tr M²`, and the ratio is then undefined.
    """
    if spectrum.moments.count < MIN_PAIR_TOKENS:
        return None
    squared_trace, trace_of_square = squared_traces(spectrum)
    if squared_trace <= 0 or trace_of_square <= squared_trace * spectrum.rounding:
        return None
    return min(max(squared_trace / trace_of_square, 1.0), float(spectrum.moments.context_dim))


def power_law_exponent(spectrum: Spectrum) -> float | None:
    """α >= 0 of `eigenvalue ∝ rank^-α` over ranks 10 … d // 2, by least squares on logarithms.

    Weighted by 1 / rank, so that every octave counts the same (Stringer et al. 2019, who fit a middle range too).
    Biased high when n is not much larger than d. None when fewer than 5 eigenvalues there are positive, as for d < 28.
    """
    squares = spectrum.squares[: spectrum.moments.context_dim // 2]
    ranks = torch.arange(1, len(squares) + 1).to(squares)
    used = (ranks >= FIRST_RANK) & (squares > 0)
    if int(used.sum()) < MIN_RANKS:
        return None
    position, height, weight = ranks[used].log(), squares[used].log(), 1 / ranks[used]
    away = weight * (position - weight @ position / weight.sum())
    return -float(away @ height) / float(away @ position)


@dataclass(frozen=True)
class SpectrumMeasure:
    """One measure: its function, where its definition comes from, and the range it can take."""

    function: Callable[[Spectrum], float | None]
    unit: str
    source: str
    lowest: float
    at_most_dim: bool

    def clipped(self, interval: Interval, context_dim: int) -> Interval:
        highest = float(context_dim) if self.at_most_dim else math.inf
        return max(interval[0], self.lowest), min(interval[1], highest)


def _rank_measure(function: Callable[[Spectrum], float | None], source: str) -> SpectrumMeasure:
    return SpectrumMeasure(function, "dimensions", source, lowest=1.0, at_most_dim=True)


SPECTRUM_MEASURES = {
    "effective_rank": _rank_measure(entropy_rank, "Roy & Vetterli 2007"),
    "calibrated_effective_rank": _rank_measure(
        calibrated_entropy_rank, "Roy & Vetterli 2007, over white noise of the same shape"
    ),
    "participation_ratio": _rank_measure(
        participation_ratio, "Gao et al. 2017, traces by pairs of tokens (centred: Himeno & Yamada 2014)"
    ),
    "power_law_exponent": SpectrumMeasure(
        power_law_exponent, "exponent", "Stringer et al. 2019, weights 1/rank", lowest=0.0, at_most_dim=False
    ),
}


@dataclass(frozen=True)
class SpectrumFigure:
    """One measure of one context matrix.

    Attributes:
        value: None where the measure is undefined.
        interval: 95 %; None for n < 100, without resamples, and where the value or a draw's is undefined.
    """

    name: str
    centred: bool
    value: float | None
    interval: Interval | None
    unit: str
    num_tokens: int
    source: str

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "centred": self.centred,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "unit": self.unit,
            "tokens": self.num_tokens,
            "source": self.source,
        }


def spectrum_figures(contexts: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 42) -> list[SpectrumFigure]:
    """Every measure of `[n, d]`, uncentred then centred, with its interval.

    Two eigenvalue problems `[d, d]` per resample. No resamples: no intervals. Raises ValueError for contexts that
    ``Moments.of`` refuses, and for 1 … 24 resamples.
    """
    if num_resamples != 0 and num_resamples < MIN_RESAMPLES:
        raise ValueError(f"spectrum: expected 0 or at least {MIN_RESAMPLES} resamples, given {num_resamples}")
    figures = _figures(contexts, False, num_resamples, seed)
    # Centred measures do not see a shift, and without it a large mean would cost fourth powers their digits.
    shifted = contexts.double() - contexts.double().mean(dim=0)
    return figures + _figures(shifted, True, num_resamples, seed)


def _figures(contexts: Tensor, centred: bool, num_resamples: int, seed: int) -> list[SpectrumFigure]:
    values = _values(Moments.of(contexts), centred)
    blocks = _blocks(contexts) if num_resamples else []
    draws = [_values(moments, centred) for moments in _resampled(blocks, num_resamples, seed)]
    figures = []
    for name, measure in SPECTRUM_MEASURES.items():
        interval = _standard_interval(values[name], [draw[name] for draw in draws], len(blocks))
        if interval is not None:
            interval = measure.clipped(interval, contexts.shape[1])
        figure = SpectrumFigure(name, centred, values[name], interval, measure.unit, len(contexts), measure.source)
        figures.append(figure)
    return figures


def _values(moments: Moments, centred: bool) -> dict[str, float | None]:
    spectrum = Spectrum(moments, centred)
    return {name: measure.function(spectrum) for name, measure in SPECTRUM_MEASURES.items()}


def _blocks(contexts: Tensor) -> list[Moments]:
    """Moments of blocks of one length, so that all draws have as many tokens; none for n < 100.

    Up to a block of tokens at the end is in none of them.
    """
    length = max(len(contexts) // NUM_BLOCKS, MIN_BLOCK_LENGTH)
    num_blocks = len(contexts) // length
    if num_blocks < MIN_BLOCKS:
        return []
    return [Moments.of(block) for block in contexts[: num_blocks * length].split(length)]


def _resampled(blocks: Sequence[Moments], num_resamples: int, seed: int) -> Iterator[Moments]:
    """Moments of ``num_resamples`` draws of as many blocks as there are."""
    if not blocks:
        return iter(())
    shape = (num_resamples, len(blocks))
    drawn = torch.randint(len(blocks), shape, generator=derived_generator("spectrum", seed))
    return weighted_moments(blocks, functional.one_hot(drawn, len(blocks)).sum(dim=1))


def _standard_interval(value: float | None, draws: Sequence[float | None], num_blocks: int) -> Interval | None:
    defined = [draw for draw in draws if draw is not None]
    if value is None or not draws or len(defined) < len(draws):
        return None
    # Draws scatter around the blocks' own mean, so by (b - 1) / b too little in the square.
    spread = float(torch.tensor(defined, dtype=torch.float64).std()) * math.sqrt(num_blocks / (num_blocks - 1))
    margin = t_margin(spread, num_blocks - 1)
    return value - margin, value + margin
