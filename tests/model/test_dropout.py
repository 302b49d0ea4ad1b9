"""Dropout by 16 drawn bits a component: how many are zeroed, what is left, its gradient, the generator."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newllm_core.model.dropout import dropout


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9])
def test_that_share_is_dropped_and_the_mean_stays(share: float) -> None:
    torch.manual_seed(1)
    count = 400_000
    found = dropout(torch.ones(count), share)
    spread = math.sqrt(share * (1 - share) / count)
    assert abs(float((found == 0).float().mean()) - share) < 5 * spread + 2**-16
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=2**-16 / (1 - share), atol=0)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(2)
    dropped = (dropout(torch.ones(400_000), 0.5) == 0).view(-1, 4).double()
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / math.sqrt(len(dropped))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_every_shape_is_kept_and_the_gradient_is_the_mask(shape: list[int]) -> None:
    values = torch.rand(shape) + 1
    values.requires_grad_()
    found = dropout(values, 0.4)
    assert found.shape == values.shape
    (gradient,) = torch.autograd.grad(found.sum(), [values])
    torch.testing.assert_close(found, values * gradient)


def test_no_share_changes_nothing_and_draws_nothing() -> None:
    torch.manual_seed(3)
    before, values = torch.get_rng_state(), torch.randn(3)
    after = torch.get_rng_state()
    assert dropout(values, 0.0) is values and torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)


def test_the_same_seed_drops_the_same() -> None:
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(dropout(torch.ones(1001), 0.3))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
