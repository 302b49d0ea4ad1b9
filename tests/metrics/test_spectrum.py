"""Spectrum measures against closed forms, enumerations and repeated experiments with a known answer."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from core_helpers import rng
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, signal
from torch import Tensor

from newllm_core import metrics
from newllm_core.metrics.moments import Moments, weighted_moments
from newllm_core.metrics.rank import singular_values
from newllm_core.metrics.spectrum import (
    NUM_RESAMPLES,
    SPECTRUM_MEASURES,
    Spectrum,
    SpectrumFigure,
    calibrated_entropy_rank,
    entropy_rank,
    participation_ratio,
    power_law_exponent,
    spectrum_figures,
    squared_traces,
)

BOTH = pytest.mark.parametrize("centred", [False, True])


def noise(num_tokens: int, context_dim: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, context_dim, generator=rng(seed), dtype=torch.float64)


def spectrum(contexts: Tensor, centred: bool = False) -> Spectrum:
    return Spectrum(Moments.of(contexts), centred)


def values(contexts: Tensor) -> dict[tuple[str, bool], float | None]:
    return {(figure.name, figure.centred): figure.value for figure in spectrum_figures(contexts, num_resamples=0)}


def both_signs(rows: Tensor) -> Tensor:
    """Tokens with mean zero, so that centring changes nothing."""
    return torch.cat([rows, -rows])


def assert_same_moments(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.packed(), other.packed(), rtol=1e-10, atol=1e-9)


def test_moments_by_hand() -> None:
    moments = Moments.of(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
    assert moments.count == 2 and moments.total.tolist() == [1, 4]
    assert moments.gram.tolist() == [[1, 2], [2, 8]]
    assert moments.norm_weighted.tolist() == [5, 18] and moments.fourth == 41
    assert moments.gram.dtype == torch.float64


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_moments_of_two_parts_add_to_those_of_the_whole(first: int, second: int, dim: int, seed: int) -> None:
    whole = noise(first + second, dim, seed)
    assert_same_moments(Moments.of(whole[:first]) + Moments.of(whole[first:]), Moments.of(whole))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_weighted_sum_is_the_moments_of_repeated_blocks(weights: list[int], seed: int) -> None:
    blocks = noise(20, 3, seed).split([2, 5, 6, 7])
    (drawn,) = weighted_moments([Moments.of(block) for block in blocks], torch.tensor([weights]))
    repeated = torch.cat([block.repeat(weight, 1) for block, weight in zip(blocks, weights, strict=True)])
    assert_same_moments(drawn, Moments.of(repeated))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e3]))
@settings(deadline=None, max_examples=40)
def test_uncentred_ranks_are_those_of_metrics(rows: int, columns: int, seed: int, scale: float) -> None:
    contexts = scale * noise(rows, columns, seed)
    whole = spectrum(contexts)
    assert entropy_rank(whole) == pytest.approx(metrics.effective_rank(contexts), rel=1e-5)
    assert calibrated_entropy_rank(whole) == pytest.approx(metrics.calibrated_effective_rank(contexts), rel=1e-5)
    torch.testing.assert_close(whole.squares.sqrt()[: min(rows, columns)], singular_values(contexts))


@pytest.mark.parametrize("num_tokens", [12, 40, 200])
def test_centred_ranks_are_those_of_one_token_fewer(num_tokens: int) -> None:
    # Helmert's rows are orthonormal and orthogonal to the ones: they centre white noise into n - 1 tokens of it.
    contexts = noise(num_tokens, 12) + 3
    fewer = torch.from_numpy(linalg.helmert(num_tokens)) @ contexts
    centred = spectrum(contexts, centred=True)
    assert entropy_rank(centred) == pytest.approx(metrics.effective_rank(fewer), rel=1e-6)
    assert calibrated_entropy_rank(centred) == pytest.approx(metrics.calibrated_effective_rank(fewer), rel=1e-6)


@BOTH
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_directions_are_counted(rank: int, centred: bool) -> None:
    frame, _ = torch.linalg.qr(noise(8, 8))
    contexts = both_signs(frame[:rank]).repeat(500, 1)
    assert entropy_rank(spectrum(contexts, centred)) == pytest.approx(rank)
    assert participation_ratio(spectrum(contexts, centred)) == pytest.approx(rank, rel=0.01)


@BOTH
def test_participation_ratio_of_many_tokens_by_hand(centred: bool) -> None:
    # Eigenvalues in the ratio 9 : 1.
    contexts = both_signs(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).repeat(10_000, 1)
    assert participation_ratio(spectrum(contexts, centred)) == pytest.approx(100 / 82, rel=1e-3)


def test_two_points_span_one_direction_once_centred() -> None:
    contexts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    assert entropy_rank(spectrum(contexts)) == pytest.approx(2)
    assert entropy_rank(spectrum(contexts, centred=True)) == pytest.approx(1)
    assert participation_ratio(spectrum(contexts, centred=True)) == pytest.approx(1)


POPULATION = torch.tensor([[1.0, 0.0], [3.0, -1.0], [0.0, 2.0], [-1.0, 5.0]], dtype=torch.float64)


@BOTH
@pytest.mark.parametrize(("num_points", "sample_size"), [(4, 4), (3, 5)])
def test_trace_estimates_are_unbiased(num_points: int, sample_size: int, centred: bool) -> None:
    """The mean over all samples with replacement is the population's value, exactly."""
    population = POPULATION[:num_points]
    samples = [population[list(rows)] for rows in itertools.product(range(num_points), repeat=sample_size)]
    mean = torch.tensor([squared_traces(spectrum(sample, centred)) for sample in samples]).double().mean(dim=0)
    centre = population.mean(dim=0) if centred else 0
    matrix = (population - centre).T @ (population - centre) / num_points
    assert mean.tolist() == pytest.approx([float(matrix.trace() ** 2), float((matrix @ matrix).trace())], rel=1e-6)


@BOTH
def test_participation_ratio_of_few_tokens_is_nearer_the_truth_than_the_plain_one(centred: bool) -> None:
    spread = 0.97 ** torch.arange(50, dtype=torch.float64)
    truth = float(spread.square().sum() ** 2 / spread.pow(4).sum())
    few = [spectrum(noise(200, 50, seed) * spread, centred) for seed in range(10)]
    plain = [float(each.squares.sum() ** 2 / each.squares.square().sum()) for each in few]
    corrected = [participation_ratio(each) or math.nan for each in few]
    assert np.mean(plain) < 0.9 * truth
    assert np.mean(corrected) == pytest.approx(truth, rel=0.02)
    assert all(abs(one - truth) < abs(other - truth) for one, other in zip(corrected, plain, strict=True))


@BOTH
def test_participation_ratio_is_undefined_for_three_tokens(centred: bool) -> None:
    assert participation_ratio(spectrum(noise(3, 5), centred)) is None
    assert participation_ratio(spectrum(noise(1, 1).repeat(3, 1), centred)) is None
    assert participation_ratio(spectrum(noise(20, 2), centred)) is not None


def test_participation_ratio_is_undefined_where_no_two_tokens_share_a_direction() -> None:
    orthogonal, _ = torch.linalg.qr(noise(30, 30))
    assert participation_ratio(spectrum(orthogonal)) is None


@BOTH
def test_participation_ratio_stays_within_the_dimensions(centred: bool) -> None:
    found = [participation_ratio(spectrum(noise(60, 20, seed), centred)) for seed in range(20)]
    assert max(value for value in found if value is not None) == 20


def planted(exponent: float, dim: int) -> Tensor:
    """Tokens whose covariance and second moments have eigenvalues rank^-exponent, up to a common factor."""
    frame, _ = torch.linalg.qr(noise(dim, dim))
    return both_signs(torch.arange(1, dim + 1).double().pow(-exponent / 2)[:, None] * frame)


@BOTH
@given(exponent=st.floats(0, 3), dim=st.integers(28, 60))
@settings(deadline=None, max_examples=20)
def test_a_planted_exponent_is_recovered(centred: bool, exponent: float, dim: int) -> None:
    assert power_law_exponent(spectrum(planted(exponent, dim), centred)) == pytest.approx(exponent, abs=1e-6)


def test_the_exponent_is_that_of_the_middle_ranks() -> None:
    sizes = torch.arange(1, 61).double() ** -0.5
    sizes[:9], sizes[30:] = 10, 1e-3
    assert power_law_exponent(spectrum(torch.diag(sizes))) == pytest.approx(1)


def test_every_octave_weighs_the_same_in_the_exponent() -> None:
    # Ranks 10 … 40, bent at 20: the slope is that of a fit with weights 1 / rank.
    ranks = np.arange(1, 81)
    eigenvalues = np.where(ranks < 20, 20.0 / ranks, (20.0 / ranks) ** 3)
    middle = slice(9, 40)
    slope, _ = np.polyfit(np.log(ranks[middle]), np.log(eigenvalues[middle]), 1, w=ranks[middle] ** -0.5)
    found = power_law_exponent(spectrum(torch.from_numpy(np.diag(np.sqrt(eigenvalues)))))
    assert found == pytest.approx(-slope) and 1.01 < -slope < 2.99


def test_the_exponent_needs_five_ranks_from_the_tenth() -> None:
    assert power_law_exponent(spectrum(noise(100, 27))) is None
    assert power_law_exponent(spectrum(noise(100, 28))) is not None
    assert power_law_exponent(spectrum(noise(13, 60))) is None
    assert power_law_exponent(spectrum(noise(14, 60))) is not None
    assert power_law_exponent(spectrum(noise(14, 60), centred=True)) is None


@pytest.mark.parametrize("contexts", [torch.zeros(200, 30), torch.full((200, 30), 0.1, dtype=torch.float64)])
def test_centred_measures_of_equal_tokens_are_undefined(contexts: Tensor) -> None:
    centred = [figure for figure in spectrum_figures(contexts, num_resamples=25) if figure.centred]
    assert [(figure.value, figure.interval) for figure in centred] == [(None, None)] * len(SPECTRUM_MEASURES)
    assert entropy_rank(spectrum(contexts, centred=True)) is None


def test_uncentred_measures_of_zeros_are_undefined() -> None:
    assert set(values(torch.zeros(10, 30)).values()) == {None}


@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_no_measure_sees_scale_order_or_rotation(scale: float, seed: int) -> None:
    contexts = noise(60, 30, seed) * torch.arange(1, 31) + 1
    rotation, _ = torch.linalg.qr(noise(30, 30, seed + 1))
    moved = scale * contexts[torch.randperm(60, generator=rng(seed))] @ rotation
    assert values(moved) == pytest.approx(values(contexts), rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 1e5])
def test_centred_figures_do_not_see_a_shift(shift: float) -> None:
    contexts = noise(300, 30)
    for figure, shifted in zip(spectrum_figures(contexts, 25), spectrum_figures(contexts + shift, 25), strict=True):
        assert figure.value is not None and figure.interval is not None and shifted.interval is not None
        if figure.centred:
            assert shifted.value == pytest.approx(figure.value, rel=1e-8)
            assert shifted.interval == pytest.approx(figure.interval, rel=1e-8)
        else:
            assert shifted.value != pytest.approx(figure.value, rel=0.01)


def test_repeated_blocks_push_ranks_down() -> None:
    # Why the interval is built from the draws' spread and not from their percentiles.
    contexts = noise(300, 50)
    blocks = [Moments.of(block) for block in contexts.split(10)]
    drawn = torch.randint(30, (50, 30), generator=rng(1))
    draws = weighted_moments(blocks, torch.nn.functional.one_hot(drawn, 30).sum(dim=1))
    ranks = [entropy_rank(Spectrum(moments, False)) or math.nan for moments in draws]
    assert max(ranks) < metrics.effective_rank(contexts)


DECAY = 0.8 ** np.arange(12)


def autocorrelated(seed: int, num_tokens: int = 2000, memory: float = 0.8) -> Tensor:
    """A stationary Gaussian stream with covariance diag(DECAY²), each token alike the one before: [n, 12]."""
    fresh = np.random.default_rng(seed).standard_normal((num_tokens + 100, 12)) * math.sqrt(1 - memory**2)
    return torch.from_numpy(signal.lfilter([1], [1, -memory], fresh, axis=0)[100:] * DECAY)


def covered_and_width(name: str, truth: float, streams: list[Tensor]) -> tuple[float, float]:
    """Share of intervals that hold the truth, centred and not together, and their mean width."""
    figures = [f for index, stream in enumerate(streams) for f in spectrum_figures(stream, 25, seed=index)]
    intervals = [figure.interval for figure in figures if figure.name == name and figure.interval is not None]
    assert len(intervals) == 2 * len(streams)
    widths = [high - low for low, high in intervals]
    return float(np.mean([low <= truth <= high for low, high in intervals])), float(np.mean(widths))


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
def test_intervals_hold_the_truth_of_a_stream_with_memory_and_only_by_their_blocks(name: str) -> None:
    share = DECAY / DECAY.sum()
    truths = {
        "effective_rank": math.exp(-(share * np.log(share)).sum()),
        "participation_ratio": (DECAY**2).sum() ** 2 / (DECAY**4).sum(),
    }
    streams = [autocorrelated(seed) for seed in range(100)]
    covered, width = covered_and_width(name, truths[name], streams)
    assert covered >= 0.85
    # Same tokens, same values; out of order they pass for independent ones.
    shuffled = [stream[torch.randperm(2000, generator=rng(seed))] for seed, stream in enumerate(streams)]
    missed, narrow = covered_and_width(name, truths[name], shuffled)
    assert missed < 0.75 and narrow < 0.6 * width


def test_figures_name_measure_centring_tokens_and_source() -> None:
    figures = spectrum_figures(noise(120, 30).float(), num_resamples=25)
    found = [(figure.name, figure.centred) for figure in figures]
    assert found == [(name, centred) for centred in (False, True) for name in SPECTRUM_MEASURES]
    for figure in figures:
        measure = SPECTRUM_MEASURES[figure.name]
        assert (figure.num_tokens, figure.source, figure.unit) == (120, measure.source, measure.unit)


def test_a_figure_s_record_is_json_and_a_missing_one_is_null() -> None:
    figure = SpectrumFigure("effective_rank", True, 2.5, (2.0, 3.0), "dimensions", 120, "Roy & Vetterli 2007")
    whole = {
        "name": "effective_rank",
        "centred": True,
        "value": 2.5,
        "interval": [2.0, 3.0],
        "unit": "dimensions",
        "tokens": 120,
        "source": "Roy & Vetterli 2007",
    }
    assert json.loads(json.dumps(figure.record(), allow_nan=False)) == whole
    missing = SpectrumFigure("effective_rank", True, None, None, "dimensions", 120, "Roy & Vetterli 2007")
    assert missing.record() == whole | {"value": None, "interval": None}


@pytest.mark.parametrize("num_tokens", [100, 439, 1000])
def test_intervals_lie_around_the_value_and_within_the_range(num_tokens: int) -> None:
    for figure in spectrum_figures(noise(num_tokens, 30), num_resamples=25):
        assert figure.value is not None and figure.interval is not None
        low, high = figure.interval
        assert low <= figure.value <= high and low < high
        assert low >= (0 if figure.unit == "exponent" else 1) and (figure.unit == "exponent" or high <= 30)


def test_below_a_hundred_tokens_and_without_resamples_there_is_no_interval() -> None:
    few, plain = spectrum_figures(noise(99, 30)), spectrum_figures(noise(200, 30), num_resamples=0)
    assert all(figure.value is not None and figure.interval is None for figure in few + plain)


def test_the_same_seed_draws_the_same_intervals() -> None:
    contexts = noise(400, 30)
    assert spectrum_figures(contexts, 25, seed=1) == spectrum_figures(contexts, 25, seed=1)
    assert spectrum_figures(contexts, 25, seed=1) != spectrum_figures(contexts, 25, seed=2)
    assert spectrum_figures(contexts) == spectrum_figures(contexts, NUM_RESAMPLES, seed=42)


NO_MATRICES = [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 0), torch.full((2, 2), torch.nan)]


@pytest.mark.parametrize("matrix", [*NO_MATRICES, torch.full((2, 2), 1e80, dtype=torch.float64)])
def test_contexts_without_finite_moments_are_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"moments: expected .*, given \["):
        Moments.of(matrix)
    with pytest.raises(ValueError, match=r"moments: expected .*, given \["):
        spectrum_figures(matrix)


@pytest.mark.parametrize("num_resamples", [-1, 1, 24])
def test_too_few_resamples_are_refused(num_resamples: int) -> None:
    with pytest.raises(ValueError, match=f"expected 0 or at least 25 resamples, given {num_resamples}"):
        spectrum_figures(noise(200, 3), num_resamples)


WRONG_WEIGHTS = [
    (torch.ones(1, 2), "expected integer weights"),
    (torch.ones(1, 3, dtype=torch.int64), "expected integer weights .num_draws, 2., given torch.int64"),
    (torch.tensor([[2, -1]]), "expected weights >= 0"),
    (torch.tensor([[1, 0], [0, 0]]), "a block drawn in every row"),
]


@pytest.mark.parametrize(("weights", "message"), WRONG_WEIGHTS)
def test_weights_that_count_no_blocks_are_refused(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(weighted_moments([Moments.of(noise(4, 3)), Moments.of(noise(5, 3))], weights))


def test_moments_of_unlike_dimensions_do_not_add() -> None:
    with pytest.raises(ValueError, match=r"expected blocks of one dimension, given \[2, 3\]"):
        Moments.of(noise(4, 3)) + Moments.of(noise(4, 2))
