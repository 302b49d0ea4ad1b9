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
        self.part, self.summed = weight.new_empty(shape), weight.new_empty(shape)
        self.moments = weight.new_empty(num_rows, 1), weight.new_empty(num_rows, 1)
        self.stored = weight.new_empty(STEPS_AT_ONCE, len(self.layers), *shape)

    def walk(self, context: Tensor, positions: Tensor) -> Tensor:
        """The contexts of all layers `[k, L, n, C]` after each of up to STEPS_AT_ONCE tokens, until the next call.

        Args:
            context: `[n, C]`, before the first of them.
            positions: int64 `[k, n]`, of each token in the stream.
        """
        steps, count = positions.shape
        part, summed = self.part[:count], self.summed[:count]
        moments = self.moments[0][:count], self.moments[1][:count]
        stored = self.stored[:steps, :, :count]
        if context.data_ptr() == self.stored.data_ptr():
            context = context.clone()
        for step in range(steps):
            for number, layer in enumerate(self.layers):
                self.parts.take(number, positions[step], part)
                out = stored[step, number]
                layer.forward(context, part, summed, out, moments)
                context = out
        return stored

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
