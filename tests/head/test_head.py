"""Cross-entropy by blocks against the direct computation and its automatic gradient."""

import pytest
import torch
from core_helpers import rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from newllm_core.head import cross_entropy as head
from newllm_core.head import rounded_softmax
from newllm_core.head.cross_entropy import Head, choose_head, frozen_head_cross_entropy
from newllm_core.runs.files import RunError

METHODS = ["direct", "blocks", "blocks-bf16"]


def inputs(
    count: int, width: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = rng(seed)
    hidden = scale * torch.randn(count, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab, (count,), generator=generator)
    targets[0], targets[-1] = 0, vocab - 1
    return hidden.to(dtype).requires_grad_(), weight.to(dtype), targets


def by_autograd(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = functional.cross_entropy(hidden @ weight.T, targets)
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    return loss.detach(), hidden.grad, weight.grad


def relative(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(params=[(7, 5), (2048, 512)], ids=["small blocks", "usual blocks"])
def block_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head._BLOCK_COLUMNS, "cpu", request.param[0])
    monkeypatch.setitem(head._BLOCK_ROWS, "cpu", request.param[1])
    monkeypatch.setattr(rounded_softmax, "_BLOCK_COLUMNS", request.param[0])
    monkeypatch.setattr(rounded_softmax, "BLOCK_ROWS", request.param[1])


SHAPES = {"count": st.integers(1, 23), "width": st.integers(1, 9), "vocab": st.integers(2, 40)}


@given(**SHAPES, columns=st.integers(1, 45), rows=st.integers(1, 25), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_blocks_equal_autograd_over_any_shape(
    count: int, width: int, vocab: int, columns: int, rows: int, seed: int
) -> None:
    hidden, weight, targets = inputs(count, width, vocab, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head._BLOCK_COLUMNS, "cpu", columns)
        patch.setitem(head._BLOCK_ROWS, "cpu", rows)
        loss = frozen_head_cross_entropy(hidden, weight, targets)
        loss.backward()
    expected, gradient, _ = by_autograd(hidden, weight, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    assert float((hidden.grad - gradient).abs().max()) < 1e-13


@pytest.mark.parametrize("vocab", [6, 7, 8, 14, 20])
def test_vocabularies_smaller_than_equal_to_and_not_divisible_by_a_block(
    vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head._BLOCK_COLUMNS, "cpu", 7)
    hidden, weight, _ = inputs(vocab, 4, vocab)
    targets = torch.arange(vocab)
    loss = frozen_head_cross_entropy(hidden, weight, targets)
    loss.backward()
    expected, gradient, _ = by_autograd(hidden, weight, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-13)
    assert torch.allclose(hidden.grad, gradient, atol=1e-14, rtol=1e-12)


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_near_the_exact_ones_in_float32(method: str) -> None:
    hidden, weight, targets = inputs(60, 16, 3000, dtype=torch.float32)
    weight = weight * 0.3
    loss = frozen_head_cross_entropy(hidden, weight, targets, method=method)
    loss.backward()
    expected, gradient, _ = by_autograd(hidden, weight, targets)
    bf16 = method == "blocks-bf16"
    assert abs(loss.item() - expected.item()) < (3e-3 if bf16 else 1e-6)
    assert relative(hidden.grad, gradient) < (2e-2 if bf16 else 1e-5)


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_is_trained_gets_its_gradient(method: str) -> None:
    hidden, weight, targets = inputs(40, 16, 300, dtype=torch.float32)
    weight = (weight * 0.3).requires_grad_()
    frozen_head_cross_entropy(hidden, weight, targets, method=method).backward()
    _, gradient, weight_gradient = by_autograd(hidden, weight, targets)
    limit = 2e-2 if method == "blocks-bf16" else 1e-5
    assert relative(hidden.grad, gradient) < limit
    assert relative(weight.grad, weight_gradient) < limit


def test_the_gradient_of_a_trained_head_is_exact_in_float64() -> None:
    hidden, weight, targets = inputs(40, 8, 50)
    weight.requires_grad_()
    (3 * frozen_head_cross_entropy(hidden, weight, targets)).backward()
    _, gradient, weight_gradient = by_autograd(hidden, weight, targets)
    assert torch.allclose(hidden.grad, 3 * gradient, atol=1e-14)
    assert torch.allclose(weight.grad, 3 * weight_gradient, atol=1e-14)


def test_a_head_is_trained_where_the_hidden_states_are_not() -> None:
    hidden, weight, targets = inputs(5, 4, 9)
    weight.requires_grad_()
    frozen_head_cross_entropy(hidden.detach(), weight, targets).backward()
    assert torch.allclose(weight.grad, by_autograd(hidden, weight, targets)[2], atol=1e-14)


def test_gradients_flow_to_what_the_hidden_states_were_made_of() -> None:
    hidden, weight, targets = inputs(6, 4, 11)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    frozen_head_cross_entropy(scale * hidden.detach(), weight, targets).backward()
    _, gradient, _ = by_autograd(0.7 * hidden, weight, targets)
    assert scale.grad.item() == pytest.approx((gradient * hidden).sum().item())


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("method", METHODS)
def test_huge_logits_do_not_overflow(method: str) -> None:
    hidden, weight, targets = inputs(9, 8, 30, dtype=torch.float32, scale=1e4)
    loss = frozen_head_cross_entropy(hidden, weight, targets, method=method)
    loss.backward()
    expected, gradient, _ = by_autograd(hidden, weight, targets)
    assert (hidden @ weight.T).abs().max().item() > 1e4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2 if method == "blocks-bf16" else 1e-5)
    assert torch.isfinite(hidden.grad).all()
    if method != "blocks-bf16":
        assert torch.allclose(hidden.grad.double(), gradient, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_hidden_state_that_is_not_a_number_makes_the_loss_one(method: str) -> None:
    hidden, weight, targets = inputs(4, 3, 10, dtype=torch.float32)
    hidden.data[1, 1] = torch.nan
    assert torch.isnan(frozen_head_cross_entropy(hidden, weight, targets, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one(method: str) -> None:
    hidden, weight, _ = inputs(1, 5, 12, dtype=torch.float32)
    loss = Head(weight, method).loss(hidden, torch.tensor([11]))
    expected, _, _ = by_autograd(hidden, weight, torch.tensor([11]))
    assert loss.mean_nats.shape == () and loss.mean_nats.item() == pytest.approx(expected.item(), abs=2e-2)


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("method", METHODS)
def test_the_number_correct_is_that_of_the_arg_max(method: str) -> None:
    hidden, weight, targets = inputs(80, 16, 100, dtype=torch.float32)
    best = (hidden @ weight.T).argmax(dim=1)
    targets = torch.where(torch.arange(80) % 3 == 0, best, targets)
    expected = int((best == targets).sum())
    counted = Head(weight, method).loss(hidden, targets).num_correct
    assert not counted.requires_grad and counted.dtype == torch.int64
    # Rounded products may exchange two tokens of nearly the same logit.
    assert abs(int(counted) - expected) <= (1 if method == "blocks-bf16" else 0)


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("method", METHODS)
def test_token_figures_average_to_the_loss(method: str) -> None:
    hidden, weight, targets = inputs(33, 8, 50, dtype=torch.float32)
    prepared = Head(weight, method)
    figures, loss = prepared.token_figures(hidden, targets), prepared.loss(hidden, targets)
    assert figures.nats.shape == figures.correct.shape == (33,)
    assert figures.nats.mean().item() == pytest.approx(loss.mean_nats.item(), rel=1e-6)
    assert int(figures.correct.sum()) == int(loss.num_correct)
    assert not figures.nats.requires_grad
    trained = Head(weight.clone().requires_grad_(), method).token_figures(hidden, targets)
    assert torch.equal(trained.nats, figures.nats)


def test_token_figures_are_the_direct_ones() -> None:
    hidden, weight, targets = inputs(33, 8, 50)
    figures = Head(weight, "blocks").token_figures(hidden, targets)
    direct = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert torch.allclose(figures.nats, direct, atol=1e-13)
    assert torch.equal(figures.correct, (hidden @ weight.T).argmax(dim=1) == targets)


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_head_is_read_anew_at_each_call(method: str) -> None:
    hidden, weight, targets = inputs(6, 4, 9, dtype=torch.float32)
    weight.requires_grad_()
    prepared = Head(weight, method)
    with torch.no_grad():
        weight.mul_(2)
    again = Head(weight.detach(), method).loss(hidden, targets).mean_nats
    assert torch.equal(prepared.loss(hidden, targets).mean_nats, again)


@pytest.mark.parametrize("method", ["direct", "blocks"])
@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_outside_the_vocabulary_is_refused(method: str, target: int) -> None:
    hidden, weight, targets = inputs(3, 4, 9)
    targets[1] = target
    with pytest.raises(ValueError, match=r"expected targets in 0 … 8, given"):
        frozen_head_cross_entropy(hidden, weight, targets, method=method)


@pytest.mark.parametrize(
    ("hidden_shape", "targets_shape"), [((3, 5), (3,)), ((3, 4), (2,)), ((4,), (4,)), ((0, 4), (0,)), ((3, 4), (3, 1))]
)
def test_shapes_that_do_not_fit_are_refused(hidden_shape: tuple[int, ...], targets_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected hidden \[n >= 1, 4\] and targets \[n\], given"):
        frozen_head_cross_entropy(torch.zeros(hidden_shape), torch.zeros(9, 4), torch.zeros(targets_shape).long())


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown head method 'flash'; known: direct, blocks, blocks-bf16"):
        Head(torch.zeros(3, 2), "flash")


@pytest.mark.parametrize(
    ("device", "bf16", "triton", "expected"),
    [
        ("cpu", False, True, "blocks"), ("cpu", True, False, "blocks-bf16"), ("cuda", False, False, "blocks-bf16"),
        ("cuda", True, True, "fused"),
    ],
)  # fmt: skip
def test_auto_is_the_constant_of_the_device(
    device: str, bf16: bool, triton: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "has_bf16_products", lambda: bf16)
    monkeypatch.setattr(head, "runs_kernels", lambda device: triton)
    assert choose_head("auto", torch.device(device)) == expected
    assert choose_head("direct", torch.device(device)) == "direct"


def test_kernels_of_a_gpu_are_refused_where_there_is_none() -> None:
    with pytest.raises(RunError, match=r"head 'fused' .* needs a CUDA GPU and Triton; expected 'auto' on cpu"):
        choose_head("fused", torch.device("cpu"))
