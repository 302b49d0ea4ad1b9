"""The sweep with rounded products: its sums against float64, ties, and what it does with logits out of range."""

import pytest
import torch
from core_helpers import rng
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.head import rounded_softmax
from newllm_core.head.cross_entropy import Head
from newllm_core.head.rounded_softmax import RoundedSoftmax


@given(
    st.integers(1, 12), st.integers(1, 8), st.integers(1, 40), st.integers(1, 45), st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_sums_means_and_arg_max_are_those_of_the_rounded_numbers(
    rows: int, width: int, vocab: int, columns: int, seed: int
) -> None:
    generator = rng(seed)
    hidden = torch.randn(rows, width, generator=generator).bfloat16().float()
    operand = torch.randn(vocab, width, generator=generator).bfloat16()
    targets = torch.randint(vocab, (rows,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounded_softmax, "_BLOCK_COLUMNS", columns)
        found = RoundedSoftmax(hidden, targets, operand, wants_mean=True)
    logits = hidden.double() @ operand.double().T
    assert found.in_range()
    torch.testing.assert_close(found.log_sum().double(), logits.logsumexp(dim=1), atol=0.05, rtol=0)
    mean = logits.softmax(dim=1) @ operand.double()
    torch.testing.assert_close(found.expected_row().double(), mean, atol=0.05 * float(operand.abs().max()), rtol=0)
    own = logits.gather(1, targets[:, None])[:, 0]
    rivals = logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1) if vocab > 1 else own - 1
    clear = (own - rivals).abs() > 0.1  # else rounding may exchange them
    assert torch.equal(found.correct[clear], (own > rivals)[clear])


@pytest.mark.parametrize("width", [1, 31, 32, 34])
def test_columns_of_zeros_up_to_a_whole_tile_change_nothing(width: int) -> None:
    generator = rng(width)
    hidden, weight = torch.randn(9, width, generator=generator), torch.randn(20, width, generator=generator)
    operand, targets = rounded_softmax.rounded_operand(weight), torch.arange(9)
    assert operand.shape == (20, 32 if width <= 32 else 64)
    padded, plain = (RoundedSoftmax(hidden, targets, one, True) for one in (operand, weight.bfloat16()))
    torch.testing.assert_close(padded.log_sum(), plain.log_sum(), atol=0.02, rtol=0)
    torch.testing.assert_close(padded.expected_row(), plain.expected_row(), atol=0.05, rtol=0)


@pytest.mark.parametrize("columns", [2, 3, 6, 100])
def test_of_equal_logits_the_first_is_the_arg_max(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_softmax, "_BLOCK_COLUMNS", columns)
    operand = torch.tensor([[0.0], [1.0], [2.0], [2.0], [1.0], [2.0]]).bfloat16()
    found = RoundedSoftmax(torch.ones(6, 1), torch.arange(6), operand, wants_mean=False)
    assert found.correct.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("logit", [-200.0, 80.0, 200.0, torch.inf, torch.nan])
def test_logits_at_the_ends_of_the_range_are_told(logit: float) -> None:
    found = RoundedSoftmax(torch.tensor([[1.0], [logit]]), torch.tensor([0, 0]), torch.ones(3, 1).bfloat16(), True)
    assert not found.in_range()


@pytest.mark.parametrize("logit", [-200.0, -60.0, 60.0, 200.0])
def test_a_batch_with_logits_out_of_range_has_its_loss_and_gradient_all_the_same(logit: float) -> None:
    hidden, targets = torch.tensor([[1.0, 0.0], [0.0, logit]], requires_grad=True), torch.tensor([1, 2])
    weight = torch.tensor([[0.5, 1.0], [1.0, 1.0], [0.25, 1.0]])  # the second row: equal logits
    loss = Head(weight, "blocks-bf16").loss(hidden, targets).mean_nats
    (gradient,) = torch.autograd.grad(loss, [hidden])
    exact = hidden.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact @ weight.double().T, targets)
    (expected_gradient,) = torch.autograd.grad(expected, [exact])
    torch.testing.assert_close(loss.double(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=0.01, rtol=0)
