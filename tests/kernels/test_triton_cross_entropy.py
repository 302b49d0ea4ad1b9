"""The fused head against float64: loss, gradient, arg-max; odd sizes, a bias, a head of another type."""

import pytest
import torch
from core_helpers import rng
from torch import Tensor
from torch.nn import functional

from newllm_core.head import triton_cross_entropy
from newllm_core.head.cross_entropy import Head, with_output_bias, with_unit_columns
from newllm_core.head.triton_cross_entropy import fused_rows, half_operand, logits_buffer

# (rows, tokens, width): multiples of eight and of a program's columns, and none of either.
SIZES = [(4, 4096, 16), (3, 50, 7), (5, 5003, 37), (1, 9, 770)]


def _inputs(rows: int, vocab_size: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = rng(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = 0.3 * torch.randn(vocab_size, width, generator=generator)
    return hidden, weight, torch.randint(vocab_size, (rows,), generator=generator)


def _reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = hidden.double().requires_grad_()
    nats = functional.cross_entropy(wide @ weight.double().T, targets, reduction="none")
    (gradient,) = torch.autograd.grad(nats.sum(), wide)
    return nats.detach(), gradient


@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_the_softmaxs(size: tuple[int, int, int]) -> None:
    hidden, weight, targets = _inputs(*size)
    operand = half_operand(weight)
    found = fused_rows(hidden, weight, targets, operand, logits_buffer(len(hidden) + 1, operand), True)
    nats, gradient = _reference(hidden, weight, targets)
    assert (found.nats - nats).abs().max() < 5e-3
    assert found.gradient is not None
    assert (found.gradient - gradient).norm() / gradient.norm() < 2e-3


def test_without_a_gradient_the_losses_are_the_same() -> None:
    hidden, weight, targets = _inputs(3, 1000, 12)
    operand = half_operand(weight)
    buffer = logits_buffer(3, operand)
    both = [fused_rows(hidden, weight, targets, operand, buffer, wanted) for wanted in (True, False)]
    assert both[1].gradient is None
    assert torch.allclose(both[0].nats, both[1].nats, atol=1e-3)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, targets = _inputs(4, 300, 16)
    operand = half_operand(100 * weight)
    found = fused_rows(hidden, 100 * weight, targets, operand, logits_buffer(4, operand), True)
    nats, _ = _reference(hidden, 100 * weight, targets)
    assert ((found.nats - nats).abs() / nats.clamp_min(1)).max() < 1e-2


def test_of_equal_logits_the_first_is_the_arg_max() -> None:
    weight = torch.zeros(20, 8)
    weight[[4, 11], 0] = 1.0
    hidden = torch.ones(3, 8)
    operand = half_operand(weight)
    found = fused_rows(hidden, weight, torch.tensor([4, 11, 0]), operand, logits_buffer(3, operand), False)
    assert found.correct.tolist() == [True, False, False]


def test_no_token_of_the_padding_is_ever_predicted() -> None:
    weight = -torch.ones(9, 8)  # the padding's logits, zero, would be the largest
    operand = half_operand(weight)
    found = fused_rows(torch.ones(1, 8), weight, torch.tensor([0]), operand, logits_buffer(1, operand), False)
    assert found.correct.tolist() == [True]
    assert float(found.nats) == pytest.approx(float(torch.tensor(9.0).log()), abs=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_head_takes_many_blocks_of_rows_and_a_bias(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_cross_entropy, "BLOCK_ROWS", 4)
    hidden, weight, targets = _inputs(10, 130, 14)
    if with_bias:
        weight, hidden = with_output_bias(weight, torch.randn(130, generator=rng(5)) - 9), with_unit_columns(hidden)
    states = hidden.clone().requires_grad_()
    loss = Head(weight, "fused").loss(states, targets)
    (3 * loss.mean_nats).backward()
    nats, gradient = _reference(hidden, weight, targets)
    assert float(loss.mean_nats.detach()) == pytest.approx(float(nats.mean()), abs=2e-3)
    assert states.grad is not None
    assert (states.grad - 3 * gradient / 10).norm() / (3 * gradient / 10).norm() < 2e-3
    assert int(loss.num_correct) == int(((hidden @ weight.T).argmax(dim=1) == targets).sum())
    figures = Head(weight, "fused").token_figures(hidden, targets)
    assert (figures.nats - nats).abs().max() < 5e-3


def test_a_trained_heads_gradient_is_that_of_the_blocks() -> None:
    hidden, weight, targets = _inputs(6, 40, 8)
    gradients = []
    for method in ("fused", "blocks"):
        trained = weight.clone().requires_grad_()
        Head(trained, method).loss(hidden, targets).mean_nats.backward()
        assert trained.grad is not None
        gradients.append(trained.grad)
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 2e-2
