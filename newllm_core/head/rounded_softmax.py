"""One sweep over the vocabulary on a CPU, with products of bfloat16 and as few other passes as PyTorch allows.

A block's logits are made, turned into their exponentials in place, and multiplied by the block's rows again. Nothing is
subtracted first: bfloat16 reaches as far as float32, and logits of a trained head stay far from its ends. Where they do
not, `in_range` says so, and the caller sweeps again with a running maximum.

The bits of numbers that are not negative are ordered as integers are, and the largest of integers is found in a sixth
of the time; so whether the target is the arg-max costs little.
"""

import torch
from torch import Tensor
from torch.nn import functional

# All rows of a batch at once: a block of the head is brought into the order that the matrix units read for each group
# of rows anew. Logits of 2,048 rows and 1,024 columns are 4 MB.
BLOCK_ROWS = 2048
_BLOCK_COLUMNS = 1024
# Columns that the matrix units take at once: with E + 2, as a bias makes them, products take up to twice as long.
_COLUMNS_AT_ONCE = 32
_SMALLEST, _LARGEST = 1e-30, 1e30  # sums of exponentials whose products with the head's rows are finite


def rounded_operand(weight: Tensor) -> Tensor:
    """The head `[V, E]` in bfloat16, with columns of zeros up to a multiple of 32."""
    return functional.pad(weight.to(torch.bfloat16), (0, -weight.shape[1] % _COLUMNS_AT_ONCE))


class RoundedSoftmax:
    """Sum of exponentials, whether the target is the arg-max, and the weighted mean of the head's rows.

    Args:
        hidden: `[n, E]`, n at most BLOCK_ROWS.
        targets: `[n]`.
        operand: bfloat16 `[V, E]`, the head; further columns must be zeros (``rounded_operand``).
        wants_mean: whether `expected_row` will be asked for.

    Attributes:
        correct: `[n]`, whether the target has the largest exponential, and the first of such.
    """

    def __init__(self, hidden: Tensor, targets: Tensor, operand: Tensor, wants_mean: bool) -> None:
        num_rows = len(hidden)
        self.correct = torch.zeros(num_rows, dtype=torch.bool)
        self._targets = targets
        self._best = torch.full((num_rows,), -1, dtype=torch.int16)
        self._total = hidden.new_zeros(num_rows)
        self._width = hidden.shape[1]
        rounded = functional.pad(hidden.to(operand.dtype), (0, operand.shape[1] - self._width))
        self._weighted = hidden.new_zeros(rounded.shape) if wants_mean else None
        # Reused for all blocks: fresh pages for each would cost as much as the exponentials.
        self._logits = operand.new_empty(num_rows * _BLOCK_COLUMNS)
        self._product = operand.new_empty(rounded.shape if wants_mean else 0)
        for first in range(0, len(operand), _BLOCK_COLUMNS):
            self._add_block(rounded, operand[first : first + _BLOCK_COLUMNS], first)

    def _add_block(self, hidden: Tensor, block: Tensor, first: int) -> None:
        shape = len(hidden), len(block)
        exponentials = torch.mm(hidden, block.T, out=self._logits[: shape[0] * shape[1]].view(shape)).exp_()
        self._note_best(exponentials.view(torch.int16), first)
        # Added up in float32; a block's sum is rounded, by less than its logits were.
        self._total.add_(exponentials.sum(dim=1))
        if self._weighted is not None:
            self._weighted.add_(torch.mm(exponentials, block, out=self._product))

    def _note_best(self, bits: Tensor, first: int) -> None:
        block_best = bits.amax(dim=1)
        better = block_best > self._best
        places = self._targets - first
        here = (places >= 0) & (places < bits.shape[1])
        own = bits.gather(1, places.clamp(0, bits.shape[1] - 1)[:, None])[:, 0]
        self.correct &= ~better
        rows = (here & better & (own == block_best)).nonzero()[:, 0]  # few
        self.correct[rows] = bits[rows].max(dim=1).indices == places[rows]
        torch.maximum(self._best, block_best, out=self._best)

    def in_range(self) -> bool:
        """Whether every row's sum is neither near zero nor near infinity; never with a logit that is not finite."""
        return bool(((self._total > _SMALLEST) & (self._total < _LARGEST)).all())

    def log_sum(self) -> Tensor:
        """Log of the sum of exponentials, `[n]`."""
        return self._total.log()

    def expected_row(self) -> Tensor:
        """`Σ_v p_v w_v`, `[n, E]`."""
        assert self._weighted is not None
        return self._weighted[:, : self._width] / self._total[:, None]
