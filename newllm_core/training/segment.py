"""The recurrence of a training segment on a CPU, and its gradient, without a graph of every token.

A token is a dozen small operations, and autograd adds a node, a zero-filled gradient and a sum to each. Here a step
back is four operations; what does not depend on the recurrence is done once for the whole segment: GELU's slopes, and
a weight's gradient as one product over all tokens. The formulas are those of `model/layers.py`, whose gradients by
autograd are the reference; on a GPU, `triton_segment.py` does the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm_core.model.layers import ContextLayer

_GIVEN = 5  # tensors of a layer: its token half and its parameters


def segment_contexts(
    layers: Sequence[ContextLayer], entering: Tensor, parts: Sequence[Tensor], noise: Tensor | None, rounded: bool
) -> Tensor:
    """The last layer's contexts `[T, B, C]`, differentiable in the layers' weights and in the token halves.

    Args:
        layers: of width C, from the token input upwards.
        entering: `[B, C]`, before the first token; no gradient reaches it.
        parts: of each layer `[T, B, C]`, the token halves.
        noise: `[T, B, C]`, added to what enters each token; None for none.
        rounded: whether the product that makes the weights' gradient is of bfloat16; the recurrence never is.
    """
    given: list[Tensor | None] = []
    for layer, part in zip(layers, parts, strict=True):
        # `from_context.bias` is in the token half already.
        given += [part, layer.from_context.weight, layer.gain, layer.norm.weight, layer.norm.bias]
    epsilons = [layer.norm.eps for layer in layers]
    contexts: Tensor = _Segment.apply(entering, noise, epsilons, rounded, *given)  # type: ignore[no-untyped-call]
    return contexts


class _Layer:
    """One layer's weights, and what is kept of every token: GELU's input and the LayerNorm's `[T, B, C]`, that one's
    mean and scale `[B, 1]`, and the context that came in `[B, C]`."""

    def __init__(
        self, epsilon: float, part: Tensor, weight: Tensor, gain: Tensor | None, norm_weight: Tensor, norm_bias: Tensor
    ) -> None:
        self.weight, self.gain, self.norm_weight, self.norm_bias = weight, gain, norm_weight, norm_bias
        self.epsilon, self.width = epsilon, list(norm_weight.shape)
        # Products with so few rows are half as slow again when they read a transposed matrix.
        self.transposed = weight.T.contiguous()
        part = part.contiguous()
        self.before, self.raw = torch.empty_like(part), torch.empty_like(part)
        self.parts, self.befores, self.raws = part.unbind(), self.before.unbind(), self.raw.unbind()
        self.read, self.means, self.scales = list[Tensor](), list[Tensor](), list[Tensor]()
        self.read_room: Tensor | None = None
        self.of_gain = None if gain is None else torch.zeros_like(self.parts[0])  # summed over tokens, `[B, C]`

    def step(self, context: Tensor, token: int) -> Tensor:
        """The token's context, from the one before it (or the layer below); both `[B, C]`."""
        before = torch.addmm(self.parts[token], context, self.transposed, out=self.befores[token])
        raw = torch.ops.aten.gelu.out(before, out=self.raws[token])
        raw = raw.add_(context) if self.gain is None else raw.addcmul_(context, self.gain)
        output, mean, scale = torch.native_layer_norm(raw, self.width, self.norm_weight, self.norm_bias, self.epsilon)
        self.read.append(context)
        self.means.append(mean)
        self.scales.append(scale)
        return output

    def room_to_read(self) -> Sequence[Tensor]:
        """For what each token reads, `[B, C]`, where it is written for this layer alone: then nothing is stacked."""
        self.read_room = torch.empty_like(self.before)
        return self.read_room.unbind()

    def start_back(self) -> None:
        """GELU's slopes of all tokens, and room for the gradients of a LayerNorm's output and of a product."""
        slopes = torch.ops.aten.gelu_backward(torch.ones_like(self.before), self.before)
        self.arrived, self.inner = torch.empty_like(slopes), torch.empty_like(slopes)
        self.slopes, self.arrivals, self.inners = slopes.unbind(), self.arrived.unbind(), self.inner.unbind()

    def step_back(self, wanted: Tensor, carried: Tensor | None, token: int) -> Tensor:
        """From the gradients of a token's output, to be added up, to that of the context that it read."""
        arrived = self.arrivals[token]
        if carried is None:
            arrived.copy_(wanted)
        else:
            torch.add(wanted, carried, out=arrived)
        of_raw: Tensor = torch.ops.aten.native_layer_norm_backward(
            arrived, self.raws[token], self.width, self.means[token], self.scales[token], self.norm_weight,
            self.norm_bias, [True, False, False],
        )[0]  # fmt: skip
        inner = torch.mul(of_raw, self.slopes[token], out=self.inners[token])
        if self.gain is not None and self.of_gain is not None:
            self.of_gain.addcmul_(of_raw, self.read[token])
            of_raw.mul_(self.gain)
        return torch.addmm(of_raw, inner, self.weight)

    def gradients(self, rounded: bool) -> list[Tensor | None]:
        """Of token half, weight, gain, and the LayerNorm's weight and bias, once all tokens have been stepped back."""
        read = torch.stack(self.read) if self.read_room is None else self.read_room
        _, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            self.arrived, self.raw, self.width, torch.stack(self.means), torch.stack(self.scales), self.norm_weight,
            self.norm_bias, [False, True, True],
        )  # fmt: skip
        kind = torch.bfloat16 if rounded else read.dtype
        of_weight = self.inner.flatten(0, 1).to(kind).T @ read.flatten(0, 1).to(kind)
        of_gain = None if self.of_gain is None else self.of_gain.sum(dim=0)
        return [self.inner, of_weight.to(read.dtype), of_gain, of_norm_weight, of_norm_bias]


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, entering: Tensor, noise: Tensor | None, epsilons: list[float], rounded: bool, *given: Any
    ) -> Tensor:
        layers = [_Layer(epsilon, *given[_GIVEN * i : _GIVEN * (i + 1)]) for i, epsilon in enumerate(epsilons)]
        noises = None if noise is None else list(zip(noise.unbind(), layers[0].room_to_read(), strict=True))
        context, contexts = entering, []
        for token in range(len(layers[0].parts)):
            if noises is not None:
                added, room = noises[token]
                context = torch.add(context, added, out=room)
            for layer in layers:
                context = layer.step(context, token)
            contexts.append(context)
        ctx.layers, ctx.rounded = layers, rounded
        return torch.stack(contexts)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *lower, last = ctx.layers
        wanted, carried = upstream[0].contiguous().unbind(), None
        for layer in ctx.layers:
            layer.start_back()
        for token in reversed(range(len(wanted))):
            carried = last.step_back(wanted[token], carried, token)
            for layer in reversed(lower):
                carried = layer.step_back(carried, None, token)
        found = [gradient for layer in ctx.layers for gradient in layer.gradients(ctx.rounded)]
        del ctx.layers  # memory of the whole segment
        return None, None, None, None, *found
