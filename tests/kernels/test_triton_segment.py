"""A segment's contexts and gradients against autograd through the layer, token by token."""

import pytest
import torch
from core_helpers import rng
from torch import Tensor

from newllm_core.model.layers import ContextLayer
from newllm_core.training.triton_segment import segment_contexts


def _layer(width: int, gains: bool) -> ContextLayer:
    torch.manual_seed(3)
    layer = ContextLayer(width, 5, width, time_scales=gains)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5)
        layer.norm.bias.normal_(std=0.1)
    return layer


def _plainly(layer: ContextLayer, entering: Tensor, part: Tensor, noise: Tensor | None) -> Tensor:
    context, contexts = entering, []
    for token in range(part.shape[1]):
        if noise is not None:
            context = context + noise[token]
        context = layer.from_token_part(context, part[:, token])
        contexts.append(context)
    return torch.stack(contexts, dim=1)


@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("width", [7, 16])
def test_contexts_and_gradients_are_autograds(width: int, noisy: bool, gains: bool) -> None:
    layer, generator = _layer(width, gains), rng(1)
    entering = torch.randn(3, width, generator=generator)
    noise = 0.5 * torch.randn(6, 3, width, generator=generator) if noisy else None
    direction = torch.randn(3, 6, width, generator=generator)
    outcomes = []
    for way in (segment_contexts, _plainly):
        part = torch.randn(3, 6, width, generator=rng(2)).requires_grad_()
        contexts = way(layer, entering, part, noise)
        given = [part, layer.from_context.weight, layer.norm.weight, layer.norm.bias]
        given += [layer.gain] if layer.gain is not None else []
        outcomes.append([contexts.detach(), *torch.autograd.grad((contexts * direction).sum(), given)])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
