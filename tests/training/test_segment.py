"""A segment's contexts and gradients by hand against autograd through the layers, token by token."""

import pytest
import torch
from core_helpers import rng
from torch import Tensor

from newllm_core.model.layers import ContextBlock
from newllm_core.training.rounded import linear
from newllm_core.training.segment import segment_contexts

STREAMS, TOKENS, WIDTH, EMBED = 3, 6, 7, 5


def block(num_layers: int, gains: bool, token_input: str) -> ContextBlock:
    made = ContextBlock(WIDTH, EMBED, num_layers, 1, token_input, gains, rng(3)).double()
    with torch.no_grad():
        for parameter in made.parameters():  # LayerNorms start at ones and zeros, which hide what is not multiplied
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng(4), dtype=torch.float64))
    return made


def plainly(made: ContextBlock, entering: Tensor, parts: list[Tensor], noise: Tensor | None) -> Tensor:
    context, contexts = entering, []
    for token in range(len(parts[0])):
        if noise is not None:
            context = context + noise[token]
        context = made.forward_from_token_parts(context, [part[token] for part in parts])[-1]
        contexts.append(context)
    return torch.stack(contexts)


def by_hand(made: ContextBlock, entering: Tensor, parts: list[Tensor], noise: Tensor | None) -> Tensor:
    return segment_contexts(made.context_layers(), entering, parts, noise, rounded=False)


@pytest.mark.parametrize("token_input", ["every-layer", "first-layer"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_contexts_and_gradients_are_autograds(noisy: bool, gains: bool, num_layers: int, token_input: str) -> None:
    made, generator = block(num_layers, gains, token_input), rng(1)
    entering = torch.randn(STREAMS, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(TOKENS, STREAMS, WIDTH, generator=generator, dtype=torch.float64) if noisy else None
    direction = torch.randn(TOKENS, STREAMS, WIDTH, generator=generator, dtype=torch.float64)
    outcomes = []
    for way in (by_hand, plainly):
        embeds = torch.randn(TOKENS, STREAMS, EMBED, generator=rng(2), dtype=torch.float64).requires_grad_()
        contexts = way(made, entering, made.token_parts(embeds), noise)
        outcomes.append([contexts, *torch.autograd.grad((contexts * direction).sum(), [embeds, *made.parameters()])])
    for found, expected in zip(*outcomes, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_rounded_weight_gradient_is_near_and_changes_nothing_else() -> None:
    made = block(1, True, "every-layer").float()
    entering = torch.randn(STREAMS, WIDTH, generator=rng(1))
    embeds = torch.randn(TOKENS, STREAMS, EMBED, generator=rng(2))
    found = []
    for rounded in (False, True):
        contexts = segment_contexts(made.context_layers(), entering, made.token_parts(embeds), None, rounded)
        gradients = torch.autograd.grad(contexts.square().sum(), list(made.parameters()))
        found.append(dict(zip([name for name, _ in made.named_parameters()], gradients, strict=True)))
    exact, near = found
    for name in exact:
        if name.endswith("from_context.weight"):
            error = (near[name] - exact[name]).norm() / exact[name].norm()
            assert 0 < error < 2e-2
        else:
            assert torch.equal(near[name], exact[name])


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_rounded_linear_map_and_its_gradients_are_near(with_bias: bool) -> None:
    outcomes = []
    for rounded in (False, True):
        inputs = torch.randn(4, 8, 5, generator=rng(1)).requires_grad_()
        weight, bias = (torch.randn(*shape, generator=rng(2)).requires_grad_() for shape in ((6, 5), (6,)))
        mapped = linear(inputs, weight, bias if with_bias else None, rounded)
        given = [inputs, weight, *([bias] if with_bias else [])]
        outcomes.append([mapped, *torch.autograd.grad(mapped.square().sum(), given)])
    for exact, near in zip(*outcomes, strict=True):
        assert near.shape == exact.shape and near.dtype == exact.dtype
        assert 0 < (near - exact).norm() / exact.norm() < 2e-2
