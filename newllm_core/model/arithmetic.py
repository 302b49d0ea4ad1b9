"""A context layer's arithmetic without a graph, into memory that is given: what long loops on a CPU are made of.

`ContextLayer.from_token_part` and its gradient written out. Autograd does the same (the tests hold one against the
other) but keeps and allocates more than it computes with: there a fresh array of some megabytes costs as much as a
product.
"""

import torch
from torch import Tensor

from newllm_core.model.layers import ContextLayer

_OPS = torch.ops.aten


class LayerArithmetic:
    """One layer's weights, for the time in which nobody changes them.

    Args:
        layer: its weights are read, not copied.
        bf16: multiply bfloat16 numbers; sums, LayerNorm and everything stored stay as they were.
    """

    def __init__(self, layer: ContextLayer, bf16: bool = False) -> None:
        self.bf16 = bf16
        self.weight = self._rounded(layer.from_context.weight.detach())
        # In float32, products of few rows are half as slow again when they read a transposed matrix.
        self.transposed = self.weight.T if bf16 else self.weight.T.contiguous()
        self.gain = None if layer.gain is None else layer.gain.detach()
        self.width = layer.norm.normalized_shape
        self.norm_weight, self.norm_bias = layer.norm.weight.detach(), layer.norm.bias.detach()
        self.epsilon = layer.norm.eps

    def forward(
        self,
        context: Tensor,
        part: Tensor,
        summed: Tensor,
        out: Tensor,
        moments: tuple[Tensor, Tensor],
        rounded: Tensor | None = None,
    ) -> None:
        """One step of n rows.

        Args:
            context: `[n, C]`, that enters.
            part: `[n, C]`, the token half; becomes what GELU is taken of.
            summed: `[n, C]`, becomes what LayerNorm is taken of.
            out: `[n, C]`, becomes the context that leaves.
            moments: `[n, 1]` each, become LayerNorm's mean and inverse deviation.
            rounded: `[n, C]` bfloat16, becomes ``context`` where products are of such numbers; for `weight_gradient`.
        """
        if self.bf16:
            entering = context.bfloat16() if rounded is None else rounded.copy_(context)
            part.add_(torch.mm(entering, self.transposed))
        else:
            part.addmm_(context, self.transposed)
        _OPS.gelu.out(part, out=summed)
        summed.add_(context) if self.gain is None else summed.addcmul_(context, self.gain)
        _OPS.native_layer_norm.out(
            summed, self.width, self.norm_weight, self.norm_bias, self.epsilon,
            out0=out, out1=moments[0], out2=moments[1],
        )  # fmt: skip

    def backward(
        self, led: Tensor, part: Tensor, summed: Tensor, moments: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient of the context that leaves, and what ``forward`` left.

        Returns the gradients of the sum `[n, C]`, of LayerNorm's weight and of its bias `[C]`; ``part`` becomes the
        gradient of the token half.
        """
        summed_gradient, weight, bias = _OPS.native_layer_norm_backward(
            led, summed, self.width, moments[0], moments[1], self.norm_weight, self.norm_bias, [True, True, True]
        )
        _OPS.gelu_backward.grad_input(summed_gradient, part, grad_input=part)
        return summed_gradient, weight, bias

    def context_gradient(self, summed_gradient: Tensor, part_gradient: Tensor) -> Tensor:
        """Of the context that enters, `[n, C]`; from the gradients of the sum and of the token half."""
        kept = summed_gradient if self.gain is None else summed_gradient * self.gain
        return kept + torch.mm(self._rounded(part_gradient), self.weight)

    def weight_gradient(self, context: Tensor, part_gradient: Tensor) -> Tensor:
        """Of the recurrent weights, `[C, C]`: one product over all rows. ``context``: what entered, or that rounded."""
        return torch.mm(self._rounded(part_gradient).T, self._rounded(context)).to(part_gradient.dtype)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.bfloat16() if self.bf16 else values
