"""Cross-entropy against the embedding matrix, without ever holding all logits.

With the head W `[V, E]` frozen, the gradient with respect to a hidden state is `Σ_v p_v w_v - w_target`: the softmax
weighted mean of W's rows, which is attention with K = V = W. So one sweep over blocks of the vocabulary that keeps a
running maximum and sum (Milakov & Gimelshein 2018) yields loss and gradient in memory O(batch · E + block), where the
direct computation holds 3.5 copies of `[batch, V]`. Products may be rounded to bfloat16 (on a CPU:
`rounded_softmax.py`); sums stay in the hidden states' own precision. On a GPU "fused" does the same with the library's
products and two kernels of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.head import rounded_softmax
from newllm_core.head.rounded_softmax import RoundedSoftmax, rounded_operand
from newllm_core.runs.files import RunError
from newllm_core.runs.products import has_bf16_products
from newllm_core.runs.reproducibility import runs_kernels

# Measured, not chosen at run time: a choice made anew at each run would make two runs differ. Where bfloat16 is faster
# (runs/products.py), V = 50,257 (benchmarks/head.py): blocks-bf16 > blocks > torch's linear_cross_entropy ≈ direct.
_DEVICE_CHOICE = {
    "cpu": "blocks", "cpu with bf16 products": "blocks-bf16", "cuda": "fused", "cuda without triton": "blocks-bf16",
}  # fmt: skip
_METHODS = ("direct", "blocks", "blocks-bf16", "fused")
_BLOCK_COLUMNS = {"cpu": 2048, "cuda": 8192}
_BLOCK_ROWS = {"cpu": 512, "cuda": 2048}


@dataclass(frozen=True)
class HeadLoss:
    """Mean cross-entropy in nats (differentiable), and how many targets were the arg-max."""

    mean_nats: Tensor
    num_correct: Tensor


def choose_head(name: str, device: torch.device) -> str:
    """`auto` becomes the constant of this kind of device; any other name stays.

    Raises RunError for `fused` where its kernels cannot run.
    """
    if name == "fused" and not runs_kernels(device):
        raise RunError(
            f"head 'fused' was asked for, which needs a CUDA GPU and Triton; expected 'auto' on {device.type}, or one "
            "of 'direct', 'blocks', 'blocks-bf16'"
        )
    if name != "auto":
        return name
    kind = device.type
    if kind == "cpu" and has_bf16_products():
        kind = "cpu with bf16 products"
    if kind == "cuda" and not runs_kernels(device):
        kind = "cuda without triton"
    return _DEVICE_CHOICE[kind]


def frozen_head_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, method: str = "blocks"
) -> Tensor:
    """Mean cross-entropy of `softmax(hidden @ head_weightᵀ)`, in nats.

    Differentiable in ``hidden`` (exactly, up to the products' rounding), and in ``head_weight`` where that requires
    a gradient.

    Args:
        hidden: `[n, E]`, n >= 1.
        head_weight: `[V, E]`.
        targets: `[n]` int64, 0 … V - 1.
        method: "blocks", "blocks-bf16", "direct", or on a GPU "fused".

    Raises ValueError for shapes that do not fit, an unknown method, or a target outside the vocabulary.
    """
    return Head(head_weight, method).loss(hidden, targets).mean_nats


@dataclass(frozen=True)
class TokenFigures:
    """Cross-entropy in nats `[n]`, and whether the target was the arg-max `[n]`."""

    nats: Tensor
    correct: Tensor


class Head:
    """A head weight prepared once (for bfloat16: converted once) and used for many batches.

    A frozen weight must not change while this object lives; a trained one is converted anew at each call.
    """

    def __init__(self, head_weight: Tensor, method: str) -> None:
        if method not in _METHODS:
            raise ValueError(f"unknown head method {method!r}; known: {', '.join(_METHODS)}")
        self.weight, self.method = head_weight, method
        self._frozen_operand = None if head_weight.requires_grad else self._operand()

    def _operand(self) -> Tensor:
        if self.method == "fused":
            from newllm_core.head.triton_cross_entropy import half_operand

            return half_operand(self.weight)
        weight = self.weight.detach()
        if self.method != "blocks-bf16":
            return weight
        return rounded_operand(weight) if weight.device.type == "cpu" else weight.to(torch.bfloat16)

    def loss(self, hidden: Tensor, targets: Tensor) -> HeadLoss:
        """`hidden [n, E], targets [n]` -> mean loss and number of correct arg-max predictions."""
        self._check(hidden, targets)
        if self.method == "direct":
            return _direct(hidden, self.weight, targets)
        operand = self._operand() if self._frozen_operand is None else self._frozen_operand
        mean_nats, num_correct = _BlockedCrossEntropy.apply(hidden, self.weight, targets, operand)  # type: ignore[no-untyped-call]
        return HeadLoss(mean_nats, num_correct)

    @torch.no_grad()
    def token_figures(self, hidden: Tensor, targets: Tensor) -> TokenFigures:
        """`hidden [n, E], targets [n]` -> the same token by token, `[n]`, without gradients: for evaluation."""
        self._check(hidden, targets)
        if self.method == "direct":
            logits = hidden @ self.weight.T
            return TokenFigures(
                functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=1) == targets
            )
        operand = self._operand() if self._frozen_operand is None else self._frozen_operand
        figures = [part.figures for part in _sweep_rows(hidden, self.weight, targets, operand, wants_mean=False)]
        return TokenFigures(torch.cat([f.nats for f in figures]), torch.cat([f.correct for f in figures]))

    def _check(self, hidden: Tensor, targets: Tensor) -> None:
        fits = hidden.ndim == 2 and hidden.shape[1] == self.weight.shape[1] and targets.shape == hidden.shape[:1]
        if not fits or not len(hidden):
            raise ValueError(
                f"cross-entropy: expected hidden [n >= 1, {self.weight.shape[1]}] and targets [n], "
                f"given {list(hidden.shape)} and {list(targets.shape)}"
            )
        # On a GPU this comparison would make every step wait; there an index out of range stops the kernel itself.
        if targets.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < len(self.weight):
            raise ValueError(
                f"cross-entropy: expected targets in 0 … {len(self.weight) - 1}, "
                f"given {int(targets.min())} … {int(targets.max())}"
            )


_BIAS_COLUMNS = 2


def with_output_bias(head_weight: Tensor, bias: Tensor) -> Tensor:
    """The head with a fixed bias per token: `[V, E], [V]` -> `[V, E + 2]`, to be used with ``with_unit_columns``.

    In two columns, the bias as bfloat16 has it and what that rounds off: rounded products keep it to 16 bits.
    """
    rounded = bias.to(torch.bfloat16).to(bias.dtype)
    return torch.cat([head_weight, rounded[:, None], (bias - rounded)[:, None]], dim=1)


def with_unit_columns(hidden: Tensor) -> Tensor:
    """Hidden states for such a head. `[n, E]` -> `[n, E + 2]`."""
    return torch.cat([hidden, hidden.new_ones(len(hidden), _BIAS_COLUMNS)], dim=1)


def _direct(hidden: Tensor, weight: Tensor, targets: Tensor) -> HeadLoss:
    logits = hidden @ weight.T
    return HeadLoss(functional.cross_entropy(logits, targets), (logits.argmax(dim=1) == targets).sum())


@dataclass(frozen=True)
class _RowSweep:
    rows: slice
    figures: TokenFigures
    gradient: Tensor | None  # of the summed nats for these rows of hidden


def _sweep_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, operand: Tensor, wants_mean: bool
) -> Iterator[_RowSweep]:
    """A few rows at a time, so that memory does not grow with the batch. A float16 operand is the fused kernels'."""
    if operand.dtype == torch.float16:
        yield from _sweep_fused(hidden, weight, targets, operand, wants_mean)
        return
    rounded = operand.dtype == torch.bfloat16 and hidden.device.type == "cpu"
    step = rounded_softmax.BLOCK_ROWS if rounded else _BLOCK_ROWS[hidden.device.type]
    for first in range(0, len(hidden), step):
        rows = slice(first, first + step)
        softmax = _swept(hidden[rows], targets[rows], operand, wants_mean, rounded)
        target_rows = weight.detach().index_select(0, targets[rows])
        # The target's own logit is never rounded: it costs nothing, and halves the loss's rounding.
        nats = softmax.log_sum() - (hidden[rows] * target_rows).sum(dim=1)
        gradient = softmax.expected_row() - target_rows if wants_mean else None
        yield _RowSweep(rows, TokenFigures(nats, softmax.correct), gradient)


def _swept(
    hidden: Tensor, targets: Tensor, operand: Tensor, wants_mean: bool, rounded: bool
) -> "RoundedSoftmax | _OnlineSoftmax":
    if rounded:
        softmax = RoundedSoftmax(hidden, targets, operand, wants_mean)
        if softmax.in_range():
            return softmax
    return _OnlineSoftmax(hidden, targets, operand[:, : hidden.shape[1]], wants_mean)


def _sweep_fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, operand: Tensor, wants_gradient: bool
) -> Iterator[_RowSweep]:
    from newllm_core.head.triton_cross_entropy import BLOCK_ROWS, fused_rows, logits_buffer

    buffer = logits_buffer(min(BLOCK_ROWS, len(hidden)), operand)
    for first in range(0, len(hidden), BLOCK_ROWS):
        rows = slice(first, min(first + BLOCK_ROWS, len(hidden)))
        found = fused_rows(hidden[rows], weight.detach(), targets[rows], operand, buffer, wants_gradient)
        yield _RowSweep(rows, TokenFigures(found.nats, found.correct), found.gradient)


class _BlockedCrossEntropy(torch.autograd.Function):
    """Mean loss and number correct, scalars; the gradient `[n, E]` for ``hidden`` is ready when forward ends."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, operand: Tensor) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        gradient = torch.empty_like(hidden) if wants_hidden else None
        nats = hidden.new_empty(len(hidden))
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        for part in _sweep_rows(hidden, weight, targets, operand, wants_hidden):
            nats[part.rows] = part.figures.nats
            correct += part.figures.correct.sum()
            if gradient is not None and part.gradient is not None:
                torch.div(part.gradient, len(hidden), out=gradient[part.rows])
        # The weight's own gradient, of a head that is trained, is made of blocks in any case.
        fused = operand.dtype == torch.float16
        blocks = weight.detach().to(torch.bfloat16) if fused and wants_weight else operand[:, : weight.shape[1]]
        ctx.save_for_backward(gradient, *((hidden, targets, blocks) if wants_weight else ()))
        ctx.mark_non_differentiable(correct)
        return nats.mean(), correct

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scale = upstream[0]
        gradient, *for_weight = ctx.saved_tensors
        weight_gradient = _weight_gradient(*for_weight) * scale if for_weight else None
        return None if gradient is None else gradient * scale, weight_gradient, None, None


class _OnlineSoftmax:
    """One sweep over the vocabulary for a few rows: running maximum, sum, arg-max and weighted mean of W's rows."""

    def __init__(self, hidden: Tensor, targets: Tensor, operand: Tensor, wants_mean: bool) -> None:
        num_rows = len(hidden)
        self.maximum = hidden.new_full((num_rows, 1), -torch.inf)
        self.total = hidden.new_zeros(num_rows, 1)
        self.weighted = torch.zeros_like(hidden) if wants_mean else None
        self.best_id = torch.zeros(num_rows, dtype=torch.int64, device=hidden.device)
        columns = _BLOCK_COLUMNS[hidden.device.type]
        # Reused for all blocks: fresh pages for each would cost as much as the exponentials.
        self._products = torch.empty(num_rows * columns, dtype=operand.dtype, device=hidden.device)
        self._exponentials = hidden.new_empty(num_rows * columns)
        rounded = hidden.to(operand.dtype)
        for first in range(0, len(operand), columns):
            self._add_block(rounded, operand[first : first + columns], first)
        self.correct = self.best_id == targets

    def _add_block(self, hidden: Tensor, block: Tensor, first: int) -> None:
        shape = len(hidden), len(block)
        logits = torch.mm(hidden, block.T, out=self._products[: shape[0] * shape[1]].view(shape))
        block_best = logits.amax(dim=1, keepdim=True).to(self.maximum.dtype)
        self._note_best(logits, block_best, first)
        maximum = torch.maximum(self.maximum, block_best)
        shrink = torch.exp(self.maximum - maximum)
        self.maximum = maximum
        exponentials = self._exponentials[: shape[0] * shape[1]].view(shape)
        torch.sub(logits, maximum, out=exponentials).exp_()
        self.total.mul_(shrink).add_(exponentials.sum(dim=1, keepdim=True))
        if self.weighted is None:
            return
        self.weighted.mul_(shrink)
        if block.dtype == exponentials.dtype:
            self.weighted.addmm_(exponentials, block)
        else:
            self.weighted.add_(torch.mm(logits.copy_(exponentials), block))

    def _note_best(self, logits: Tensor, block_best: Tensor, first: int) -> None:
        """Keep the arg-max so far. Few rows find a better token in a later block, and on a CPU looking for its place
        in these alone is four times as fast; a GPU would have to wait to know which they are."""
        better = (block_best > self.maximum)[:, 0]
        if logits.device.type == "cuda":
            self.best_id = torch.where(better, logits.max(dim=1).indices + first, self.best_id)
            return
        rows = better.nonzero()[:, 0]
        self.best_id[rows] = logits[rows].max(dim=1).indices + first

    def log_sum(self) -> Tensor:
        """Log of the sum of exponentials, `[n]`."""
        return (self.maximum + self.total.log())[:, 0]

    def expected_row(self) -> Tensor:
        """`Σ_v p_v w_v`, `[n, E]`."""
        assert self.weighted is not None
        return self.weighted / self.total


def _weight_gradient(hidden: Tensor, targets: Tensor, operand: Tensor) -> Tensor:
    """Gradient of the mean loss for the head, `[V, E]`: `Σ_n (p_n - onehot_n) h_nᵀ / n`, from the same blocks."""
    gradient = hidden.new_zeros(operand.shape)
    columns = _BLOCK_COLUMNS[hidden.device.type]
    rows = _BLOCK_ROWS[hidden.device.type]
    for first_row in range(0, len(hidden), rows):
        part = hidden[first_row : first_row + rows]
        rounded = part.to(operand.dtype)
        log_sum = (
            _OnlineSoftmax(part, targets[first_row : first_row + rows], operand, wants_mean=False)
            .log_sum()
            .unsqueeze(1)
        )
        for first in range(0, len(operand), columns):
            logits = rounded @ operand[first : first + columns].T
            probabilities = torch.exp(logits.to(part.dtype) - log_sum)
            gradient[first : first + columns].addmm_(probabilities.T, part)
    gradient.index_add_(0, targets, hidden, alpha=-1)
    return gradient.div_(len(hidden))
