"""Effective rank of endlessly many tokens, from few.

Few tokens make an effective rank too low, and calibration by white noise removes a part of that only: real contexts
have a falling spectrum, and neighbours are alike. Both halves of the same tokens tell how much is still missing: the
bias falls about as 1/n, so twice the calibrated rank of all minus the mean of the halves' is free of it to first order
(the jackknife by halves, Quenouille 1956, Biometrika 43). The halves are consecutive, so that they lack what half as
many tokens lack; every other token would lack less.

What is left is of second order: for a Gaussian stream with autocorrelation 0.8 and a falling spectrum, d = 40, the
calibrated rank lay 2.1 dimensions low at 320 tokens and 1.1 at 640, this one 0.4 and 0.1
(`tests/metrics/test_few_tokens.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_core.intervals import Interval, t_margin
from newllm_core.metrics.moments import Moments, weighted_moments
from newllm_core.metrics.spectrum import (
    MIN_BLOCK_LENGTH,
    MIN_BLOCKS,
    NUM_BLOCKS,
    NUM_RESAMPLES,
    Spectrum,
    calibrated_entropy_rank,
)
from newllm_core.runs.reproducibility import derived_generator

MIN_TOKENS = 4  # two a half


@dataclass(frozen=True)
class FewTokenRank:
    """``value`` in dimensions, 1 … d; ``interval`` 95 %, None for fewer than 200 tokens and without resamples."""

    value: float
    interval: Interval | None
    num_tokens: int
    context_dim: int


def few_token_rank(contexts: Tensor, num_resamples: int = NUM_RESAMPLES, seed: int = 42) -> FewTokenRank:
    """Calibrated, uncentred effective rank of `[n, d]`, without its bias of few tokens to first order in 1/n.

    The interval is the standard one, from resampled blocks of consecutive tokens within each half: scatter between
    streams of this length, as in ``spectrum.py``. Three eigenvalue problems `[d, d]`, and three a resample.

    Raises ValueError for fewer than 4 tokens, for contexts that are not finite, and where one half is all zeros.
    """
    num_tokens, context_dim = contexts.shape
    if num_tokens < MIN_TOKENS:
        raise ValueError(f"few_token_rank: expected at least {MIN_TOKENS} tokens, given {num_tokens}")
    halves = contexts[: num_tokens // 2], contexts[num_tokens // 2 :]
    value = _extrapolated(*(Moments.of(half) for half in halves))
    length = max(num_tokens // NUM_BLOCKS, MIN_BLOCK_LENGTH)
    blocks = [_blocks(half, length) for half in halves]
    interval = None
    if num_resamples and sum(map(len, blocks)) >= 2 * MIN_BLOCKS:
        draws = torch.tensor(_draws(blocks, num_resamples, seed), dtype=torch.float64)
        # Blocks are drawn within their halves, and scatter around the mean of these: by (b - 1) / b too little.
        in_half = min(map(len, blocks))
        spread = float(draws.std()) * math.sqrt(in_half / (in_half - 1))
        margin = t_margin(spread, sum(map(len, blocks)) - 2)
        interval = max(value - margin, 1.0), min(value + margin, float(context_dim))
    return FewTokenRank(min(max(value, 1.0), float(context_dim)), interval, num_tokens, context_dim)


def _extrapolated(first: Moments, second: Moments) -> float:
    return 2 * _rank(first + second) - (_rank(first) + _rank(second)) / 2


def _rank(moments: Moments) -> float:
    rank = calibrated_entropy_rank(Spectrum(moments, centred=False))
    if rank is None:
        raise ValueError("few_token_rank: undefined where half of the contexts are zeros")
    return rank


def _blocks(half: Tensor, length: int) -> list[Moments]:
    """Moments of blocks of one length; up to a block at the end is in none of them."""
    count = len(half) // length
    return [Moments.of(block) for block in half[: count * length].split(length)] if count else []


def _draws(blocks: Sequence[Sequence[Moments]], num_resamples: int, seed: int) -> list[float]:
    resampled = []
    for number, half in enumerate(blocks):
        generator = derived_generator("few tokens", seed, number)
        drawn = torch.randint(len(half), (num_resamples, len(half)), generator=generator)
        resampled.append(weighted_moments(half, torch.nn.functional.one_hot(drawn, len(half)).sum(dim=1)))
    return [_extrapolated(first, second) for first, second in zip(*resampled, strict=True)]
