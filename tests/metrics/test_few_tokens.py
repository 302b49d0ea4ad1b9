"""Effective rank from few tokens, against streams whose rank is known from many."""

import pytest
import torch
from torch import Tensor

from newllm_core.metrics.few_tokens import few_token_rank
from newllm_core.metrics.rank import calibrated_effective_rank, effective_rank
from newllm_core.metrics.spectrum import Interval

DIM = 40


def stream(num_tokens: int, seed: int, likeness: float = 0.0, dim: int = DIM) -> Tensor:
    """A Gaussian AR(1) stream with a falling spectrum: neighbours are alike by ``likeness``."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_tokens, dim, generator=generator, dtype=torch.float64)
    for place in range(1, num_tokens):
        steps[place] = likeness * steps[place - 1] + (1 - likeness**2) ** 0.5 * steps[place]
    return steps * torch.arange(1, dim + 1, dtype=torch.float64) ** -0.4


def covers(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def errors(likeness: float, num_tokens: int) -> tuple[float, float, float]:
    """Over 40 streams: mean error of the calibrated rank, mean error without its bias, share of intervals that cover.

    The truth is what 40,000 tokens give.
    """
    truth = effective_rank(stream(40_000, seed=99, likeness=likeness))
    streams = [stream(num_tokens, seed, likeness) for seed in range(40)]
    found = [few_token_rank(one) for one in streams]
    calibrated = sum(calibrated_effective_rank(one) for one in streams) / len(streams) - truth
    mean = sum(one.value for one in found) / len(found) - truth
    return calibrated, mean, sum(covers(one.interval, truth) for one in found) / len(found)


def test_most_of_the_bias_goes_where_neighbours_are_alike() -> None:
    """8 d tokens: -2.1 of 36.9 dimensions become -0.4; at 16 d, -1.1 become -0.1 and the intervals hold."""
    calibrated, halved, _ = errors(0.8, 8 * DIM)
    assert calibrated < -1.5 and abs(halved) < 0.3 * abs(calibrated)
    calibrated, halved, covered = errors(0.8, 16 * DIM)
    assert calibrated < -0.8 and abs(halved) < 0.2 * abs(calibrated) and covered >= 0.85


def test_nothing_is_lost_where_tokens_are_independent() -> None:
    calibrated, halved, covered = errors(0.0, 8 * DIM)
    assert abs(calibrated) < 0.1 and abs(halved) < 0.1 and covered >= 0.9


def test_white_noise_has_all_dimensions() -> None:
    noise = torch.randn(400, DIM, generator=torch.Generator().manual_seed(1))
    assert few_token_rank(noise, num_resamples=0).value == pytest.approx(DIM, abs=0.4)


def test_it_is_twice_the_whole_minus_the_mean_of_the_halves() -> None:
    tokens = stream(320, seed=5)
    whole, first, second = (calibrated_effective_rank(part) for part in (tokens, tokens[:160], tokens[160:]))
    assert few_token_rank(tokens, num_resamples=0).value == pytest.approx(2 * whole - (first + second) / 2)


def test_an_interval_is_repeatable_and_needs_enough_tokens() -> None:
    tokens = stream(320, seed=5)
    found = few_token_rank(tokens)
    assert found == few_token_rank(tokens) and covers(found.interval, found.value)
    assert (found.num_tokens, found.context_dim) == (320, DIM)
    assert few_token_rank(tokens, num_resamples=0).interval is None
    assert few_token_rank(tokens[:150]).interval is None


def test_too_few_tokens_and_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 tokens, given 3"):
        few_token_rank(torch.randn(3, DIM))
    with pytest.raises(ValueError, match="half of the contexts are zeros"):
        few_token_rank(torch.cat([torch.zeros(20, DIM), torch.randn(20, DIM)]))
    with pytest.raises(ValueError, match="finite"):
        few_token_rank(torch.full((20, DIM), torch.nan))
