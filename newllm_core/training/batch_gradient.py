"""The gradient of one large batch of the notes' objective on a CPU, without a graph.

What autograd does for `block(inputs, embeds)`, with three differences: token halves come from tables by token type, the
arithmetic goes some hundred rows at a time so that they stay in the cache, and nothing of a batch's size is allocated
twice. `tests/training/test_batch_gradient.py` holds it against autograd.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from newllm_core.model.arithmetic import LayerArithmetic
from newllm_core.model.layers import ContextBlock
from newllm_core.model.stream import PartsByType, StreamEmbeddings

_ROWS_AT_ONCE = 1024  # 2 MB an array at C = 500


class BatchGradient:
    """All of an iteration's batches: their contexts, and the gradient of the weights, summed over them.

    Args:
        block: whose parameters' `grad` it adds to.
        stream: the tokens.
        bf16: products of bfloat16 numbers.
        largest_batch: rows.
    """

    def __init__(self, block: ContextBlock, stream: StreamEmbeddings, bf16: bool, largest_batch: int) -> None:
        self.block, self.stream, self.bf16 = block, stream, bf16
        weight = block.context_layers()[0].norm.weight.detach()
        arrays = block.num_layers, largest_batch, block.context_dim
        # Per layer: what GELU is taken of, what LayerNorm is taken of, the context that leaves; LayerNorm's moments.
        self._part, self._summed, self._out = (weight.new_empty(arrays) for _ in range(3))
        self._means, self._deviations = (weight.new_empty(*arrays[:2], 1) for _ in range(2))
        # What enters a layer, as its products read it.
        self._rounded = weight.new_empty(arrays, dtype=torch.bfloat16) if bf16 else None

    def begin(self) -> PartsByType:
        """Take the weights as they are now; the token halves they give."""
        self.layers = [LayerArithmetic(layer, self.bf16) for layer in self.block.context_layers()]
        self.parts = PartsByType(self.block, self.stream)
        self.table_gradients = self.parts.zero_gradients()
        self.sums = [[torch.zeros_like(value) for value in self._trained(layer)] for layer in self.layers]
        return self.parts

    @torch.no_grad()
    def forward(self, inputs: Tensor, rows: slice) -> Tensor:
        """`[n, C]` that enter the tokens ``rows`` -> `[n, C]` that leave them, valid until the next call."""
        self.here = self.parts.at([rows])
        for part in _pieces(len(inputs)):
            context = inputs[part]
            positions = torch.arange(part.start, part.stop)
            for number, layer in enumerate(self.layers):
                given, summed, out = (kept[number, part] for kept in (self._part, self._summed, self._out))
                moments = self._means[number, part], self._deviations[number, part]
                self.here.take(number, positions, given)
                rounded = None if self._rounded is None else self._rounded[number, part]
                layer.forward(context, given, summed, out, moments, rounded)
                context = out
        return self._out[-1, : len(inputs)]

    @torch.no_grad()
    def backward(self, inputs: Tensor, led: Callable[[slice], Tensor]) -> None:
        """Add the gradient for what ``forward`` got; ``led`` gives that of some rows of the contexts, `[n, C]`.

        Nothing is added before everything has been computed: a batch that does not fit in memory leaves no trace.
        """
        norms = [[torch.zeros_like(layer.norm_weight) for _ in range(2)] for layer in self.layers]
        gains = [None if layer.gain is None else torch.zeros_like(layer.gain) for layer in self.layers]
        for part in _pieces(len(inputs)):
            gradient = led(part)
            for number in reversed(range(len(self.layers))):
                layer, given = self.layers[number], self._part[number, part]
                moments = self._means[number, part], self._deviations[number, part]
                summed, weight, bias = layer.backward(gradient, given, self._summed[number, part], moments)
                norms[number][0] += weight
                norms[number][1] += bias
                gain = gains[number]
                if gain is not None:
                    gain += (summed * self._entering(inputs, number)[part]).sum(dim=0)
                if number:
                    gradient = layer.context_gradient(summed, given)
        count = len(inputs)
        products = [
            layer.weight_gradient(self._multiplied(inputs, number), self._part[number, :count])
            for number, layer in enumerate(self.layers)
        ]
        for number, (sums, product, norm) in enumerate(zip(self.sums, products, norms, strict=True)):
            self.here.add_gradient(self.table_gradients, number, self._part[number, :count])
            found = [product, *norm, gains[number]]
            for total, value in zip(sums, [value for value in found if value is not None], strict=True):
                total += value

    def finish(self) -> None:
        """Add the sums to the parameters' gradients."""
        by_token = self.parts.weight_gradients(self.table_gradients)
        for layer, sums, (token_weight, bias) in zip(self.block.context_layers(), self.sums, by_token, strict=True):
            trained = [layer.from_context.weight, layer.norm.weight, layer.norm.bias, layer.gain]
            for parameter, gradient in zip([value for value in trained if value is not None], sums, strict=True):
                _add(parameter, gradient)
            _add(layer.from_context.bias, bias)
            if layer.from_token is not None and token_weight is not None:
                _add(layer.from_token.weight, token_weight)

    def _entering(self, inputs: Tensor, number: int) -> Tensor:
        """What entered a layer, `[n, C]`."""
        return inputs if number == 0 else self._out[number - 1, : len(inputs)]

    def _multiplied(self, inputs: Tensor, number: int) -> Tensor:
        """The same as the products of ``forward`` read it."""
        return self._entering(inputs, number) if self._rounded is None else self._rounded[number, : len(inputs)]

    @staticmethod
    def _trained(layer: LayerArithmetic) -> list[Tensor]:
        """What has a sum of its own: recurrent weights, LayerNorm's two, and the gain where there is one."""
        own = torch.empty(layer.weight.shape, dtype=layer.norm_weight.dtype)
        return [own, layer.norm_weight, layer.norm_bias, *([] if layer.gain is None else [layer.gain])]


def _pieces(count: int) -> Iterator[slice]:
    for first in range(0, count, _ROWS_AT_ONCE):
        yield slice(first, min(first + _ROWS_AT_ONCE, count))


def _add(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
