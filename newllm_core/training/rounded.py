"""A linear map whose three products, forward and backward, are of bfloat16; sums within them are of float32."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, rounded: bool) -> Tensor:
    """`inputs @ weightᵀ + bias` for `[..., in]`, `[out, in]`, `[out]`; in float32 throughout unless ``rounded``."""
    if not rounded:
        return torch.nn.functional.linear(inputs, weight, bias)
    flat: Tensor = _RoundedLinear.apply(inputs.reshape(-1, inputs.shape[-1]), weight)  # type: ignore[no-untyped-call]
    if bias is not None:
        flat = flat + bias
    return flat.view(*inputs.shape[:-1], len(weight))


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        rounded_inputs, rounded_weight = inputs.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(rounded_inputs, rounded_weight)
        ctx.kind = inputs.dtype
        return torch.mm(rounded_inputs, rounded_weight.T).to(inputs.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        arrived = upstream[0].to(torch.bfloat16)
        of_inputs = torch.mm(arrived, weight).to(ctx.kind) if ctx.needs_input_grad[0] else None
        of_weight = torch.mm(arrived.T, inputs).to(ctx.kind) if ctx.needs_input_grad[1] else None
        return of_inputs, of_weight
