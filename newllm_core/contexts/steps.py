"""Many segments of a stream, one token further at a time, as one batch: single operations into kept memory."""

import torch
from torch import Tensor

from newllm_core.model.arithmetic import LayerArithmetic
from newllm_core.model.layers import ContextBlock
from newllm_core.model.stream import TokenParts

STEPS_AT_ONCE = 8  # kept before they are compared or written: either costs about one step


class LockStep:
    """A block's weights as they are now, and memory for up to ``num_rows`` segments side by side.

    Args:
        parts: the token halves of the stream.
    """

    def __init__(self, block: ContextBlock, parts: TokenParts, num_rows: int) -> None:
        self.parts = parts
        self.layers = [LayerArithmetic(layer) for layer in block.context_layers()]
        weight = self.layers[0].norm_weight
        shape = num_rows, block.context_dim
        self.given = weight.new_empty(len(self.layers), STEPS_AT_ONCE * num_rows, block.context_dim)
        self.summed = weight.new_empty(shape)
        self.moments = weight.new_empty(num_rows, 1), weight.new_empty(num_rows, 1)
        self.stored = weight.new_empty(STEPS_AT_ONCE, len(self.layers), *shape)

    def walk(self, context: Tensor, positions: Tensor) -> Tensor:
        """The contexts of all layers `[k, L, n, C]` after each of up to STEPS_AT_ONCE tokens, until the next call.

        Args:
            context: `[n, C]`, before the first of them.
            positions: int64 `[k, n]`, of each token in the stream.
        """
        steps, count = positions.shape
        summed = self.summed[:count]
        moments = self.moments[0][:count], self.moments[1][:count]
        stored = self.stored[:steps, :, :count]
        if context.data_ptr() == self.stored.data_ptr():
            context = context.clone()
        parts = [part.unbind() for part in self._given(positions)]
        for step, outs in enumerate(stored):
            for layer, part, out in zip(self.layers, parts, outs, strict=True):
                layer.forward(context, part[step], summed, out, moments)
                context = out
        return stored

    def _given(self, positions: Tensor) -> list[Tensor]:
        """Each layer's token halves at ``positions`` `[k, n]`: L × `[k, n, C]`."""
        places = positions.flatten()
        for number in range(len(self.layers)):
            self.parts.take(number, places, self.given[number, : len(places)])
        return [given[: len(places)].unflatten(0, positions.shape) for given in self.given]

    def loop(self, initial: Tensor, first: int, out: Tensor) -> Tensor:
        """Token by token from position ``first`` on, all layers into ``out`` `[n, L, C]`; the last context `[C]`."""
        context = initial.unsqueeze(0)
        for start in range(0, len(out), STEPS_AT_ONCE):
            stop = min(start + STEPS_AT_ONCE, len(out))
            positions = torch.arange(first + start, first + stop, device=out.device).unsqueeze(1)
            stored = self.walk(context, positions)
            out[start:stop] = stored[:, :, 0]
            context = stored[-1, -1].clone()
        return context[0]
