"""The losses of Phase 1, by hand, against torch's covariance, and what the cheap one does not see."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from core_helpers import rng
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.losses import (
    ALGORITHM_DESCRIPTIONS,
    DIVERSITY_ALGORITHMS,
    LOG_DET_EPSILON,
    LOG_DET_WEIGHT,
    cvfp_loss,
    diversity_loss,
    effective_rank_loss,
    log_det_loss,
    mcdl_loss,
    odcm_loss,
    odcm_terms,
    participation_loss,
    register_diversity_loss,
    sigreg_loss,
    user_loss_fingerprint,
)
from newllm_core.metrics.rank import effective_rank


def random_contexts(num_tokens: int, context_dim: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(num_tokens, context_dim, generator=rng(seed), dtype=torch.float64)


def test_cvfp_is_the_mean_squared_difference_of_raw_values() -> None:
    contexts = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    previous = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    # (1 + 0 + 4 + 9) / 4
    assert cvfp_loss(contexts, previous).item() == 3.5


def test_cvfp_sees_length_not_only_direction() -> None:
    contexts = random_contexts(5, 4)
    assert cvfp_loss(contexts, contexts).item() == 0
    assert cvfp_loss(2 * contexts, contexts).item() == pytest.approx(contexts.square().mean().item())


def test_mcdl_of_a_square_by_hand() -> None:
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    # Mean (1, 1); eight deviations of 1; -sqrt(8) / 4.
    assert mcdl_loss(square).item() == pytest.approx(-(8**0.5) / 4)


def test_mcdl_does_not_change_when_all_contexts_are_shifted() -> None:
    contexts = random_contexts(7, 3)
    assert mcdl_loss(contexts + 5).item() == pytest.approx(mcdl_loss(contexts).item())


def test_mcdl_does_not_see_rank() -> None:
    """A known weakness: after LayerNorm all contexts have the same length, and two opposite points, rank one, are the
    optimum. Contexts spread over every dimension are never better, nearly orthogonal ones hardly worse."""
    num_tokens, context_dim = 400, 16
    spread = torch.nn.functional.layer_norm(random_contexts(num_tokens, context_dim), (context_dim,))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(num_tokens // 2).unsqueeze(1)
    collapsed = signs * spread[0]
    assert torch.linalg.matrix_rank(collapsed) == 1
    assert torch.linalg.matrix_rank(spread) == context_dim - 1
    assert mcdl_loss(collapsed).item() <= mcdl_loss(spread).item()
    assert odcm_loss(collapsed).item() > odcm_loss(spread).item()


# Columns (0, 2, 1) and (0, 1, 2): means 1, deviations (-1, 1, 0) and (-1, 0, 1), variances 1, covariance 1/2.
BY_HAND = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def test_odcm_by_hand() -> None:
    # Hinge: 1 - sqrt(1 + 1e-4) < 0. Off-diagonal: 0.04 · (0.25 + 0.25) / 2.
    terms = odcm_terms(BY_HAND)
    assert terms["variance"].item() == 0
    assert terms["covariance"].item() == pytest.approx(0.01)
    assert odcm_loss(BY_HAND).item() == pytest.approx(0.01)


def test_odcm_hinge_of_small_variances_by_hand() -> None:
    # A tenth of the scale: variances 0.01, covariance 0.005.
    terms = odcm_terms(BY_HAND / 10)
    assert terms["variance"].item() == pytest.approx(1 - 0.0101**0.5)
    assert terms["covariance"].item() == pytest.approx(0.04 * 2 * 0.005**2 / 2)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0]))
@settings(deadline=None, max_examples=30)
def test_odcm_agrees_with_torch_cov(num_tokens: int, context_dim: int, seed: int, scale: float) -> None:
    contexts = random_contexts(num_tokens, context_dim, seed, scale)
    covariance = torch.cov(contexts.T).reshape(context_dim, context_dim)
    variance = torch.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    mixed = covariance.clone().fill_diagonal_(0).square().sum() / context_dim
    assert odcm_loss(contexts).item() == pytest.approx((variance + 0.04 * mixed).item(), rel=1e-9, abs=1e-12)


def test_odcm_refuses_a_single_token() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, given 1"):
        odcm_loss(torch.zeros(1, 4))


@pytest.mark.parametrize("name", DIVERSITY_ALGORITHMS)
def test_gradients_are_the_derivatives(name: str) -> None:
    def with_the_same_slices(contexts: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        return diversity_loss(name)(contexts)

    contexts = random_contexts(6, 4, scale=0.7).requires_grad_()
    assert torch.autograd.gradcheck(with_the_same_slices, (contexts,))


def test_cvfp_gradient_is_the_derivative() -> None:
    contexts, previous = random_contexts(4, 3).requires_grad_(), random_contexts(4, 3, seed=1)
    assert torch.autograd.gradcheck(cvfp_loss, (contexts, previous))


def test_mcdl_gradient_of_equal_contexts_is_finite() -> None:
    contexts = torch.ones(4, 3, requires_grad=True)
    mcdl_loss(contexts).backward()
    assert torch.isfinite(contexts.grad).all()


def test_every_algorithm_has_a_description() -> None:
    assert ALGORITHM_DESCRIPTIONS.keys() == DIVERSITY_ALGORITHMS.keys()


def test_an_unknown_algorithm_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown diversity algorithm 'mcdl'; known: MCDL, ODCM"):
        diversity_loss("mcdl")


def clouds(num_tokens: int = 2000, context_dim: int = 16) -> dict[str, torch.Tensor]:
    """Contexts of unit components like LayerNorm's: one point, two points, rank 4, all directions."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.ones(context_dim)
    signs[::2] = -1
    sides = torch.where(torch.arange(num_tokens) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    low = torch.randn(num_tokens, 4, generator=generator) @ torch.randn(4, context_dim, generator=generator)
    isotropic = torch.randn(num_tokens, context_dim, generator=generator)
    norm = torch.nn.functional.layer_norm
    return {
        "one point": signs.expand(num_tokens, -1).clone(),
        "two points": sides * signs,
        "rank 4": norm(low, (context_dim,)),
        "isotropic": norm(isotropic, (context_dim,)),
    }


def values(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    return {cloud: float(DIVERSITY_ALGORITHMS[name](contexts)) for cloud, contexts in clouds().items()}


@pytest.mark.parametrize("name", ["PR", "SIGReg", "ER"])
def test_rank_seeing_losses_order_two_points_below_low_rank_below_isotropic(name: str) -> None:
    loss = values(name)
    assert loss["one point"] > loss["two points"] - 1e-4
    assert loss["two points"] > loss["rank 4"] + 0.01 > loss["isotropic"] + 0.02


def test_mcdl_does_not_tell_two_points_from_an_isotropic_cloud() -> None:
    loss = values("MCDL")
    assert loss["two points"] == pytest.approx(loss["isotropic"], rel=0.01)
    assert loss["two points"] == pytest.approx(loss["rank 4"], rel=0.05)


def test_odcm_hinge_alone_is_content_with_two_points() -> None:
    terms = {cloud: odcm_terms(contexts) for cloud, contexts in clouds().items()}
    assert float(terms["two points"]["variance"]) <= float(terms["isotropic"]["variance"]) + 1e-6
    # Only its second term, weighted 0.04, sees the collapse.
    assert float(terms["two points"]["covariance"]) > 10 * float(terms["isotropic"]["covariance"])


def test_log_det_loss_is_that_of_the_eigenvalues_and_least_where_all_variances_are_equal() -> None:
    contexts = torch.randn(40, 6, dtype=torch.float64, generator=rng(3)) + 0.5
    eigenvalues = torch.linalg.eigvalsh(torch.cov(contexts.T, correction=0))
    expected = (eigenvalues - (eigenvalues + LOG_DET_EPSILON).log()).mean()
    assert float(log_det_loss(contexts)) == pytest.approx(float(expected), abs=1e-12)
    centred = contexts - contexts.mean(dim=0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(contexts.T, correction=0))).T
    best = white * math.sqrt(LOG_DET_WEIGHT - LOG_DET_EPSILON)
    for other in (0.99 * best, 1.01 * best, best * torch.linspace(0.9, 1.1, 6)):
        assert float(log_det_loss(other)) > float(log_det_loss(best))
    loss = values("LogDet")  # a point has no trace, so it is not the worst
    assert loss["two points"] > loss["rank 4"] + 0.01 > loss["isotropic"] + 0.02


def test_participation_loss_is_the_log_of_the_number_of_equal_directions() -> None:
    basis = torch.eye(8, dtype=torch.float64)[:3]
    contexts = torch.cat([basis, -basis])
    assert float(participation_loss(contexts)) == pytest.approx(-math.log(3), abs=1e-9)
    assert float(participation_loss(contexts * 7)) == pytest.approx(-math.log(3), abs=1e-9)


def test_effective_rank_loss_is_minus_the_log_of_the_effective_rank_and_has_its_gradient() -> None:
    contexts = torch.randn(40, 6, dtype=torch.float64, generator=rng(2)) + 0.5
    assert float(effective_rank_loss(contexts)) == pytest.approx(-math.log(effective_rank(contexts)), abs=1e-9)
    assert torch.autograd.gradcheck(effective_rank_loss, contexts.requires_grad_())
    isotropic = torch.cat([torch.eye(6), -torch.eye(6)])  # all eigenvalues equal: no gap between any two
    gradient = torch.autograd.grad(effective_rank_loss(isotropic.requires_grad_()), isotropic)[0]
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-6)


@pytest.mark.parametrize("name", sorted(DIVERSITY_ALGORITHMS))
def test_contexts_that_are_all_the_same_give_the_worst_value_and_no_nan(name: str) -> None:
    constant = torch.full((50, 6), 0.3)
    torch.manual_seed(0)
    loss = DIVERSITY_ALGORITHMS[name](constant)
    assert math.isfinite(float(loss))
    torch.manual_seed(0)
    assert float(loss) > float(
        DIVERSITY_ALGORITHMS[name](torch.randn(50, 6, generator=torch.Generator().manual_seed(1)))
    )


def test_sigreg_is_the_trapezoid_rule_over_all_17_knots() -> None:
    contexts = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    ours = float(sigreg_loss(contexts))
    torch.manual_seed(5)
    slices = torch.nn.functional.normalize(torch.randn(5, 256, dtype=torch.float64), dim=0)
    knots = torch.linspace(-5, 5, 17, dtype=torch.float64)
    empirical = torch.exp(1j * (contexts @ slices).unsqueeze(-1) * knots).mean(dim=0)
    normal = torch.exp(-0.5 * knots**2)
    statistic = torch.trapezoid((empirical - normal).abs() ** 2 * normal, knots, dim=-1).mean()
    assert ours == pytest.approx(float(statistic), rel=1e-12)


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """The algorithms by name; afterwards as they were before the test."""
    kept = [(table, dict(table)) for table in (DIVERSITY_ALGORITHMS, ALGORITHM_DESCRIPTIONS)]
    yield DIVERSITY_ALGORITHMS
    for table, content in kept:
        table.clear()
        table.update(content)


def variance_loss(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.var(dim=0).mean()


def deviation_loss(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.std(dim=0).mean()


def without_source() -> Callable[[torch.Tensor], torch.Tensor]:
    names: dict[str, Any] = {}
    exec("def typed(contexts):\n    return contexts.sum()", names)
    return names["typed"]


def test_a_registered_loss_is_known_by_its_name(registry: dict[str, Any]) -> None:
    register_diversity_loss("my-loss_2.0", "variance", variance_loss)
    assert diversity_loss("my-loss_2.0") is variance_loss
    assert ALGORITHM_DESCRIPTIONS["my-loss_2.0"] == "variance"
    with pytest.raises(ValueError, match=r"known: MCDL, ODCM, .*my-loss_2\.0$"):
        diversity_loss("my-loss")


def test_a_second_registration_replaces_the_first_and_its_fingerprint(registry: dict[str, Any]) -> None:
    fingerprints = []
    for loss in (variance_loss, deviation_loss, variance_loss):
        register_diversity_loss("mine", loss.__name__, loss)
        assert diversity_loss("mine") is loss and ALGORITHM_DESCRIPTIONS["mine"] == loss.__name__
        fingerprints.append(user_loss_fingerprint("mine"))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    assert all(fingerprint is not None and len(fingerprint) == 64 for fingerprint in fingerprints)


def test_a_built_in_loss_has_no_fingerprint_and_an_unknown_one_is_an_error() -> None:
    assert [user_loss_fingerprint(name) for name in DIVERSITY_ALGORITHMS] == [None] * len(DIVERSITY_ALGORITHMS)
    with pytest.raises(ValueError, match="unknown diversity algorithm 'mine'; known: MCDL, ODCM"):
        user_loss_fingerprint("mine")


@pytest.mark.parametrize("name", sorted(DIVERSITY_ALGORITHMS))
def test_a_built_in_name_is_refused(registry: dict[str, Any], name: str) -> None:
    before = diversity_loss(name)
    with pytest.raises(ValueError, match=f"diversity algorithm '{name}' is built in; choose another name"):
        register_diversity_loss(name, "mine", variance_loss)
    assert diversity_loss(name) is before and ALGORITHM_DESCRIPTIONS[name] != "mine"


@pytest.mark.parametrize("name", ["a/b", "/", "../mine", "a\\b", "", "two words", "mine\n", "spread²"])
def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(registry: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of letters, digits, '_', '.', '-', given") as refusal:
        register_diversity_loss(name, "mine", variance_loss)
    assert str(refusal.value).endswith(repr(name))
    assert name not in registry


@pytest.mark.parametrize(
    "loss",
    [without_source(), torch.sum, partial(variance_loss), torch.nn.Flatten()],
    ids=["exec", "C", "partial", "module"],
)
def test_a_loss_whose_source_cannot_be_read_is_refused(registry: dict[str, Any], loss: Any) -> None:
    with pytest.raises(ValueError, match="'mine': expected a function whose source can be read"):
        register_diversity_loss("mine", "mine", loss)
    assert "mine" not in registry and "mine" not in ALGORITHM_DESCRIPTIONS


def test_a_loss_that_takes_its_constants_from_elsewhere_is_refused(registry: dict[str, Any]) -> None:
    def make(factor: float) -> Any:
        return lambda contexts: factor * contexts.mean()

    with pytest.raises(ValueError, match="variables of an enclosing function"):
        register_diversity_loss("mine", "scaled", make(2.0))
    assert "mine" not in registry
