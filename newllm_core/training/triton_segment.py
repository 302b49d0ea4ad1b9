"""The recurrence of a training segment on a GPU, and its gradient: two kernels a token instead of some thirty-five.

Forward, per token: one product, then a kernel for gain, GELU, residual, LayerNorm and the next token's noise. Backward:
that kernel's gradient, then one product. What does not depend on the recurrence is done once for the whole segment: the
weights' gradient is one product over all tokens. The formulas are those of `model/layers.py`, whose gradients by
autograd are the reference.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_core.model.layers import ContextLayer


def segment_contexts(layer: ContextLayer, entering: Tensor, part: Tensor, noise: Tensor | None) -> Tensor:
    """Contexts `[B, T, C]` of a block of one layer, differentiable in its weights and in the token halves.

    Args:
        layer: of width C, float32.
        entering: `[B, C]`, before the first token; no gradient reaches it.
        part: `[B, T, C]`, the token halves.
        noise: `[T, B, C]`, added to what enters each token; None for none.
    """
    contexts: Tensor = _Segment.apply(  # type: ignore[no-untyped-call]
        entering, part.transpose(0, 1).contiguous(), noise, layer.norm.eps,
        layer.from_context.weight, layer.gain, layer.norm.weight, layer.norm.bias,
    )  # fmt: skip
    return contexts.transpose(0, 1)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, entering: Tensor, part: Tensor, noise: Tensor | None, epsilon: float,
        weight: Tensor, gain: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        tokens, rows, width = part.shape
        # What enters each token, noise included; the last row, behind the segment, is never read.
        read = part.new_empty(tokens + 1, rows, width)
        read[0] = entering if noise is None else entering + noise[0]
        before, normed, contexts = torch.empty_like(part), torch.empty_like(part), torch.empty_like(part)
        scales = part.new_empty(tokens, rows)
        for token in range(tokens):
            torch.addmm(part[token], read[token], weight.T, out=before[token])
            noisy = noise is not None and token + 1 < tokens
            _step[(rows,)](
                read[token], before[token], norm_weight if gain is None else gain, norm_weight, norm_bias,
                noise[token + 1] if noise is not None and noisy else part, normed[token], scales[token],
                contexts[token], read[token + 1], width, epsilon,
                GAIN=gain is not None, NOISE=noisy, COLUMNS=triton.next_power_of_2(width),
            )  # fmt: skip
        ctx.save_for_backward(read[:-1], before, normed, scales, weight, gain, norm_weight)
        return contexts

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        read, before, normed, scales, weight, gain, norm_weight = ctx.saved_tensors
        tokens, rows, width = before.shape
        wanted = upstream[0].contiguous()
        # Of each context, with what comes back through the tokens behind it; of the LayerNorm's input; of the product.
        arrived, raw, inner = (torch.empty_like(before) for _ in range(3))
        carried, through = torch.zeros_like(before[0]), torch.empty_like(before[0])
        for token in reversed(range(tokens)):
            _step_gradient[(rows,)](
                wanted[token], carried, before[token], normed[token], scales[token],
                norm_weight if gain is None else gain, norm_weight, arrived[token], raw[token], inner[token], through,
                width, GAIN=gain is not None, COLUMNS=triton.next_power_of_2(width),
            )  # fmt: skip
            torch.addmm(through, inner[token], weight, out=carried)
        weight_gradient = inner.flatten(0, 1).T @ read.flatten(0, 1)
        gain_gradient = None if gain is None else (raw * read).sum(dim=(0, 1))
        norm_gradients = (arrived * normed).sum(dim=(0, 1)), arrived.sum(dim=(0, 1))
        return None, inner, None, None, weight_gradient, gain_gradient, *norm_gradients


@triton.jit
def _step(
    read, before, gain, norm_weight, norm_bias, noise, normed, scales, contexts, following, width, epsilon,
    GAIN: tl.constexpr, NOISE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of one token: `LayerNorm(g ⊙ c + GELU(before))`, and the same with noise for the token behind it."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    place = row * width + column
    kept = tl.load(read + place, mask=inside, other=0.0)
    if GAIN:
        kept *= tl.load(gain + column, mask=inside, other=0.0)
    inner = tl.load(before + place, mask=inside, other=0.0)
    raw = kept + 0.5 * inner * (1 + tl.math.erf(inner * 0.7071067811865476))
    centred = tl.where(inside, raw - tl.sum(raw, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + epsilon)
    unit = centred * scale
    context = unit * tl.load(norm_weight + column, mask=inside, other=0.0)
    context += tl.load(norm_bias + column, mask=inside, other=0.0)
    tl.store(normed + place, unit, mask=inside)
    tl.store(scales + row, scale)
    tl.store(contexts + place, context, mask=inside)
    if NOISE:
        context += tl.load(noise + place, mask=inside, other=0.0)
    tl.store(following + place, context, mask=inside)


@triton.jit
def _step_gradient(
    wanted, carried, before, normed, scales, gain, norm_weight, arrived, raw, inner, through, width,
    GAIN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The same row backwards; ``through`` is what reaches the context before it past the product."""
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    place = row * width + column
    reached = tl.load(wanted + place, mask=inside, other=0.0) + tl.load(carried + place, mask=inside, other=0.0)
    tl.store(arrived + place, reached, mask=inside)
    unit = tl.load(normed + place, mask=inside, other=0.0)
    scaled = reached * tl.load(norm_weight + column, mask=inside, other=0.0)
    mean, along = tl.sum(scaled, axis=0) / width, tl.sum(scaled * unit, axis=0) / width
    of_raw = tl.load(scales + row) * (scaled - mean - unit * along)
    tl.store(raw + place, of_raw, mask=inside)
    value = tl.load(before + place, mask=inside, other=0.0)
    # The derivative of GELU: Φ(x) + x φ(x).
    slope = 0.5 * (1 + tl.math.erf(value * 0.7071067811865476))
    slope += value * 0.3989422804014327 * tl.exp(-0.5 * value * value)
    tl.store(inner + place, of_raw * slope, mask=inside)
    if GAIN:
        of_raw *= tl.load(gain + column, mask=inside, other=0.0)
    tl.store(through + place, of_raw, mask=inside)
