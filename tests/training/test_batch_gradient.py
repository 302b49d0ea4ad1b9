"""The gradient written out against autograd's."""

from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, rng
from torch import Tensor

from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.gpu_memory import is_out_of_memory
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.training import batch_gradient
from newllm_core.training.batch_gradient import BatchGradient

TOKENS = make_tokens(90)
BATCHES = [slice(0, 40), slice(40, 90)]
SHAPES: list[dict[str, Any]] = [
    {}, {"num_layers": 3}, {"num_input_tokens": 3}, {"num_layers": 2, "num_input_tokens": 2},
    {"time_scales": True, "num_layers": 2}, {"token_input": "first-layer", "num_layers": 2},
]  # fmt: skip


def float64_model(**shape: Any) -> NewLLM:
    return make_model(**shape).double()


def inputs_of(model: NewLLM) -> tuple[Tensor, Tensor]:
    """What enters, and the gradient of what leaves, `[90, C]` each."""
    shape = len(TOKENS), model.config.context_dim
    first, second = (torch.randn(shape, generator=rng(seed), dtype=model.embedding.dtype) for seed in (1, 2))
    return first, second


def gradients(model: NewLLM) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.context_block.parameters() if parameter.grad is not None]


def by_autograd(model: NewLLM) -> tuple[Tensor, list[Tensor]]:
    inputs, led = inputs_of(model)
    contexts = model.context_block(inputs, StreamEmbeddings(model, TOKENS)[:])
    contexts.backward(led)
    return contexts.detach(), gradients(model)


def written_out(model: NewLLM, bf16: bool = False) -> tuple[Tensor, list[Tensor]]:
    inputs, led = inputs_of(model)
    gradient = BatchGradient(model.context_block, StreamEmbeddings(model, TOKENS), bf16, 50)
    gradient.begin()
    contexts = []
    for rows in BATCHES:
        contexts.append(gradient.forward(inputs[rows], rows).clone())
        gradient.backward(inputs[rows], lambda part, rows=rows: led[rows][part])
    gradient.finish()
    return torch.cat(contexts), gradients(model)


@pytest.mark.parametrize("rows_at_once", [7, 1024])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contexts_and_gradients_are_autograds(
    shape: dict[str, Any], rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_gradient, "_ROWS_AT_ONCE", rows_at_once)
    expected, found = by_autograd(float64_model(**shape)), written_out(float64_model(**shape))
    assert len(found[1]) == len(expected[1]) == len(list(float64_model(**shape).context_block.parameters()))
    assert torch.allclose(found[0], expected[0], rtol=0, atol=1e-12)
    for ours, autograds in zip(found[1], expected[1], strict=True):
        assert torch.allclose(ours, autograds, rtol=1e-10, atol=1e-12)


def test_bfloat16_products_stay_near() -> None:
    expected, found = written_out(make_model()), written_out(make_model(), bf16=True)
    assert not torch.equal(expected[0], found[0])
    assert float((expected[0] - found[0]).abs().max()) < 0.05
    for ours, exact in zip(found[1], expected[1], strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 0.02


def test_a_batch_that_does_not_fit_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out in the last piece; the batch is then computed again, and counts once."""
    monkeypatch.setattr(batch_gradient, "_ROWS_AT_ONCE", 7)
    model = float64_model(num_layers=2)
    inputs, led = inputs_of(model)
    gradient = BatchGradient(model.context_block, StreamEmbeddings(model, TOKENS), False, 90)
    gradient.begin()
    rows = slice(0, 90)

    def fails_at_the_end(part: slice) -> Tensor:
        if part.stop == 90:
            raise MemoryError
        return led[part]

    gradient.forward(inputs, rows)
    with pytest.raises(MemoryError) as caught:
        gradient.backward(inputs, fails_at_the_end)
    assert is_out_of_memory(caught.value)
    gradient.forward(inputs, rows)
    gradient.backward(inputs, lambda part: led[part])
    gradient.finish()
    _, expected = by_autograd(float64_model(num_layers=2))
    for ours, autograds in zip(gradients(model), expected, strict=True):
        assert torch.allclose(ours, autograds, rtol=1e-10, atol=1e-12)


def test_contexts_near_the_sought_ones_save_sweeps_and_change_nothing() -> None:
    model = float64_model()
    tokens, zero = make_tokens(600), torch.zeros(6, dtype=torch.float64)
    stream = StreamEmbeddings(model, tokens)
    expected = sequential_contexts(model.context_block, stream[:], zero)
    cold = exact_contexts(model.context_block, stream, zero, 1e-9, segment_length=50)
    warm = exact_contexts(model.context_block, stream, zero, 1e-9, segment_length=50, near=expected)
    assert warm.passes == 1 < cold.passes and warm.success and cold.success
    assert torch.allclose(warm.contexts, expected, rtol=0, atol=1e-8)
    shifted = exact_contexts(model.context_block, stream, zero, 1e-9, segment_length=50, near=expected + 0.1)
    assert torch.allclose(shifted.contexts, expected, rtol=0, atol=1e-7)
