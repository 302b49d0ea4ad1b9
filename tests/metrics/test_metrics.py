"""Measurements against closed forms and independent computations."""

import math

import pytest
import torch
from core_helpers import CONTRACTING, EXPANDING, NEUTRAL, make_block, make_embeds, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from newllm_core.contexts.shooting import sequential_contexts
from newllm_core.metrics import prediction
from newllm_core.metrics.convergence import Convergence, count_converged
from newllm_core.metrics.forgetting import contraction_rate, forgetting_horizon
from newllm_core.metrics.rank import StreamRank, calibrated_effective_rank, effective_rank, singular_values, stream_rank
from newllm_core.model import ContextBlock


def noise(num_tokens: int, context_dim: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, context_dim, generator=rng(seed), dtype=torch.float64)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e3]))
@settings(deadline=None, max_examples=40)
def test_effective_rank_is_that_of_the_singular_values(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = scale * noise(rows, columns, seed)
    sigma = torch.linalg.svdvals(matrix)
    assert torch.allclose(singular_values(matrix), sigma, rtol=1e-6, atol=float(sigma[0]) * 1e-6)
    share = sigma / sigma.sum()
    expected = math.exp(-float(torch.special.xlogy(share, share).sum()))
    assert effective_rank(matrix) == pytest.approx(expected, rel=1e-5)
    assert 1 - 1e-9 <= effective_rank(matrix) <= min(rows, columns) + 1e-9


@pytest.mark.parametrize("dim", [1, 2, 17])
def test_effective_rank_of_an_orthogonal_matrix_is_its_dimension(dim: int) -> None:
    orthogonal, _ = torch.linalg.qr(noise(dim, dim))
    assert effective_rank(orthogonal) == pytest.approx(dim)


def test_effective_rank_of_rank_one_is_one() -> None:
    assert effective_rank(noise(40, 1) @ noise(1, 9)) == pytest.approx(1)


def test_effective_rank_by_hand() -> None:
    # σ = 3, 1: p = 3/4, 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == pytest.approx(expected)


@given(st.floats(1e-6, 1e6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_effective_rank_does_not_see_scale_order_or_rotation(scale: float, seed: int) -> None:
    matrix = noise(20, 6, seed) * torch.arange(1, 7)
    rotation, _ = torch.linalg.qr(noise(6, 6, seed + 1))
    order = torch.randperm(20, generator=rng(seed))
    assert effective_rank(scale * matrix[order] @ rotation) == pytest.approx(effective_rank(matrix), rel=1e-6)


def test_effective_rank_is_of_the_uncentred_matrix() -> None:
    assert effective_rank(noise(500, 8) + 50) < 2 < 7 < effective_rank(noise(500, 8))


def test_effective_rank_of_zeros_is_undefined() -> None:
    with pytest.raises(ValueError, match="undefined for a matrix of zeros"):
        effective_rank(torch.zeros(4, 3))


NO_MATRICES = [torch.zeros(0, 3), torch.zeros(3), torch.full((2, 2), torch.nan), torch.full((2, 2), torch.inf)]


@pytest.mark.parametrize("matrix", NO_MATRICES)
def test_matrices_that_have_no_singular_values_are_refused(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected a finite matrix \[n, d\], given \["):
        effective_rank(matrix)


@pytest.mark.parametrize("num_tokens", [40, 100, 1000])
def test_calibrated_effective_rank_of_white_noise_is_the_dimension(num_tokens: int) -> None:
    assert effective_rank(noise(40, 40, seed=5)) < 35
    assert calibrated_effective_rank(noise(num_tokens, 40, seed=5)) == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize("num_tokens", [60, 120])
def test_calibration_removes_most_of_the_bias_of_few_tokens(num_tokens: int) -> None:
    spread = 0.97 ** torch.arange(40)
    truth = effective_rank(noise(20_000, 40) * spread)
    few = noise(num_tokens, 40, seed=1) * spread
    plain, calibrated = effective_rank(few), calibrated_effective_rank(few)
    assert plain < truth and abs(calibrated - truth) < 0.4 * abs(plain - truth)


def test_calibrated_effective_rank_of_rank_one_stays_near_one() -> None:
    assert calibrated_effective_rank(noise(400, 1) @ noise(1, 10)) == pytest.approx(1, abs=0.05)


def test_stream_rank_leaves_out_the_last_token() -> None:
    contexts = noise(50, 6)
    contexts[-1] *= 1e6
    rank = stream_rank(contexts, max_tokens=1000)
    assert rank.value == effective_rank(contexts[:-1]) and rank.num_tokens == 49


def test_stream_rank_measures_the_first_tokens_at_most() -> None:
    contexts = noise(50, 6)
    rank = stream_rank(contexts, max_tokens=20)
    assert rank.value == effective_rank(contexts[:20]) and rank.num_tokens == 20


def test_a_rank_is_shown_with_its_width_and_tokens() -> None:
    rank = StreamRank(627.29, 768, 31_023)
    assert str(rank) == "627.29/768 = 81.7% (31,023 tokens)"
    assert rank.record() == {"value": 627.29, "share": 627.29 / 768, "context_dim": 768, "tokens": 31_023}


def test_tokens_that_moved_less_than_the_threshold_are_counted() -> None:
    previous = torch.zeros(4, 2)
    contexts = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.3, 0.3], [1.0, 1.0]])
    # Mean squared changes 0, 0.02, 0.09, 1.
    assert [int(count_converged(contexts, previous, limit)) for limit in (0.01, 0.03, 0.1, 2.0)] == [1, 2, 3, 4]


def test_convergence_is_shown_with_its_counts() -> None:
    convergence = Convergence(1741, 6400)
    assert str(convergence) == "27.2% (1741/6400)"
    assert convergence.record() == {"rate": 1741 / 6400, "converged": 1741, "total": 6400}


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    assert prediction.perplexity(math.log(50257)) == pytest.approx(50257)
    assert prediction.perplexity(0.0) == 1.0
    assert prediction.perplexity(1e4) == math.exp(700)  # finite, so that a record can hold it


def test_perplexity_of_no_number_is_no_number() -> None:
    assert math.isnan(prediction.perplexity(math.nan))


def test_bits_per_byte_by_hand() -> None:
    # Four tokens of 3 bits each over 6 bytes.
    assert prediction.bits_per_byte(12 * math.log(2), 6) == pytest.approx(2.0)


def block_with_known_rate(seed: int) -> tuple[ContextBlock, float]:
    """`c -> LayerNorm(c + g)` with a constant g: its fixed point is g normalised, where c + g has standard deviation
    1 + s, s that of g. Every direction along the sphere shrinks by 1 / (1 + s) a token."""
    block = make_block((0.0, 0.0), context_dim=7, seed=seed)
    bias = noise(1, 7, seed)[0]
    block.layers[0].from_context.bias.data = bias
    spread = functional.gelu(bias).std(correction=0)
    return block, -math.log1p(float(spread))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_contraction_rate_of_a_block_that_can_be_solved(seed: int) -> None:
    block, expected = block_with_known_rate(seed)
    assert contraction_rate(block.float(), make_embeds(200)) == pytest.approx(expected, abs=1e-4)


def largest_exponent(block: ContextBlock, embeds: Tensor, settle: int) -> float:
    """Growth of the leading direction in a product of Jacobians, by QR at every token."""
    context, frame, growth = torch.zeros(1, block.context_dim, dtype=torch.float64), None, []
    for embed in embeds.split(1):
        jacobian = torch.autograd.functional.jacobian(lambda c, e=embed: block(c, e)[0], context)[:, 0]
        frame, triangle = torch.linalg.qr(jacobian if frame is None else jacobian @ frame)
        growth.append(math.log(abs(float(triangle[0, 0]))))
        context = block(context, embed).detach()
    return sum(growth[settle:]) / len(growth[settle:])


@pytest.mark.parametrize("kind", [CONTRACTING, NEUTRAL, EXPANDING])
def test_contraction_rate_is_the_growth_of_the_jacobians_product(kind: tuple[float, float]) -> None:
    block, embeds = make_block(kind, context_dim=12, num_layers=2), make_embeds(8 * 80)
    expected = [largest_exponent(block, stretch, settle=20) for stretch in embeds.split(80)]
    assert contraction_rate(block, embeds) == pytest.approx(sum(expected) / 8, abs=0.01)


def test_the_sign_of_the_rate_says_whether_starts_are_forgotten() -> None:
    embeds = make_embeds(1000)
    assert contraction_rate(make_block(CONTRACTING), embeds) < -0.2
    assert contraction_rate(make_block(EXPANDING), embeds) > 0.05


def test_contraction_rate_leaves_the_block_alone_and_measures_so_many_tokens() -> None:
    block, embeds = make_block(dtype=torch.float32), make_embeds(300, dtype=torch.float32)
    embeds[160:] = torch.nan
    assert math.isfinite(contraction_rate(block, embeds, max_tokens=160))
    assert next(block.parameters()).dtype == torch.float32


def test_contraction_rate_of_too_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 64 tokens, given 63"):
        contraction_rate(make_block(), make_embeds(63))
    assert math.isfinite(contraction_rate(make_block(), make_embeds(64)))


def test_the_forgetting_horizon_is_that_of_the_slowest_stretch() -> None:
    block, embeds = make_block(), make_embeds(400)
    found = forgetting_horizon(block, embeds)
    assert found.horizon is not None
    apart = []
    for stretch, start in zip(embeds.split(100), torch.randn(4, 32, generator=rng(0)).double(), strict=True):
        ends = [sequential_contexts(block, stretch, initial) for initial in (torch.zeros_like(start), start)]
        apart.append((ends[0] - ends[1]).abs().amax(dim=1))
    distances = torch.stack(apart).amax(dim=0).tolist()
    assert found.distances == pytest.approx(distances[: len(found.distances)], rel=1e-6)
    below = [distance <= 1e-6 * distances[0] for distance in distances]
    assert found.horizon == below.index(True) + 1


def test_a_larger_factor_is_reached_sooner() -> None:
    block, embeds = make_block(), make_embeds(400)
    horizons = [forgetting_horizon(block, embeds, factor).horizon for factor in (1e-1, 1e-3, 1e-6)]
    assert None not in horizons and horizons == sorted(set(horizons))  # type: ignore[type-var]


def test_a_block_that_does_not_forget_has_no_horizon() -> None:
    found = forgetting_horizon(make_block(EXPANDING), make_embeds(400))
    assert found.horizon is None and len(found.distances) == 100


def test_the_forgetting_horizon_of_too_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 4 tokens, given 3"):
        forgetting_horizon(make_block(), make_embeds(3))
