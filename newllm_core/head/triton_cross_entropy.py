"""The frozen head's cross-entropy on a GPU: two matrix products, and a Triton kernel after each.

For some rows at a time: logits `h Wᵀ` in half precision by the library's product; a kernel that turns each row into
`exp(logit - maximum)` in place and keeps the row's maximum and sum in float32; `Σ_v exp(…) w_v` by another product,
added up in float32; and a kernel that divides by the sum, subtracts the target's row, and takes the loss. A logit is
written once and read twice, the second time from the cache, and the matrix units do nearly all of the arithmetic. One
kernel for all of it, as attention has, would keep a gradient of width 768 in registers and have none left for logits.

Half precision is float16, not bfloat16: as fast, eight times as exact, and there on every GPU since 2017. Its range
holds logits up to 65,504; beyond, the loss is infinite and training stops with its usual error.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

# Exponentials are stored 2^15 times as large: the smallest float16 is then a share of 2e-12 in the softmax instead of
# 6e-8, and 50,257 of those would add up.
_SCALE_EXPONENT = tl.constexpr(15)
_LOG2_E = tl.constexpr(math.log2(math.e))
# Sides of the operands are multiples of this, so that every row starts at a multiple of 16 bytes: with 50,257 columns
# the library's product takes six times as long as with 50,264 (H200, CUDA 13.0).
_ALIGNED = 8
# Rows whose logits are held at once: 154 MB at 50,257 tokens, beside 77 MB of the rounded head at E = 768; 2,048 are no
# faster (H200).
BLOCK_ROWS = 1536
_COLUMNS = 4096  # that a program reads at once
_WARPS = 8


@dataclass(frozen=True)
class RowFigures:
    """Of n rows: cross-entropy in nats `[n]`, whether the target was the arg-max `[n]`, and the gradient of the summed
    nats `[n, E]`, where it was asked for."""

    nats: Tensor
    correct: Tensor
    gradient: Tensor | None


def half_operand(weight: Tensor) -> Tensor:
    """The head as the products read it: `[V, E]` -> float16 `[V', E']`, zeros up to multiples of eight."""
    return _aligned(weight.detach(), also_rows=True)


def _aligned(matrix: Tensor, also_rows: bool = False) -> Tensor:
    rows, columns = matrix.shape
    return functional.pad(matrix.to(torch.float16), (0, -columns % _ALIGNED, 0, -rows % _ALIGNED if also_rows else 0))


def logits_buffer(num_rows: int, operand: Tensor) -> Tensor:
    """Room for the logits of ``num_rows`` rows: float16 `[num_rows, V']`."""
    return operand.new_empty(num_rows, len(operand))


def fused_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, operand: Tensor, buffer: Tensor, wants_gradient: bool
) -> RowFigures:
    """Cross-entropy of `softmax(hidden @ weightᵀ)` row by row.

    Args:
        hidden: float32 `[n, E]`, n at most the buffer's rows.
        weight: float32 `[V, E]`; the target's own logit and row are taken from it unrounded.
        targets: int64 `[n]`.
        operand: `half_operand(weight)`.
        buffer: `logits_buffer`, overwritten.
    """
    num_rows = len(hidden)
    logits = buffer[:num_rows]
    torch.mm(_aligned(hidden), operand.T, out=logits)
    maximum, total = hidden.new_empty(num_rows), hidden.new_empty(num_rows)
    correct = torch.empty(num_rows, dtype=torch.bool, device=hidden.device)
    _exponentials[(num_rows,)](
        logits, targets, maximum, total, correct, logits.stride(0),
        VOCAB_SIZE=len(weight), ALIGNED_SIZE=len(operand), WRITE=wants_gradient, COLUMNS=_COLUMNS, num_warps=_WARPS,
    )  # fmt: skip
    weighted = _float32_product(logits, operand) if wants_gradient else maximum  # the latter is never read
    gradient = torch.empty_like(hidden) if wants_gradient else None
    nats = torch.empty_like(maximum)
    _loss_and_gradient[(num_rows,)](
        hidden, weight, targets, maximum, total, weighted, nats, nats if gradient is None else gradient,
        hidden.shape[1], hidden.stride(0), weight.stride(0), weighted.stride(0),
        WRITE=wants_gradient, COLUMNS=triton.next_power_of_2(hidden.shape[1]),
    )  # fmt: skip
    return RowFigures(nats, correct, gradient)


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """Product of two float16 matrices, added up and kept in float32."""
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # under Triton's interpreter


@triton.jit
def _exponentials(
    logits, targets, maximum, total, correct, row_stride,
    VOCAB_SIZE: tl.constexpr, ALIGNED_SIZE: tl.constexpr, WRITE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row: its maximum, its scaled exponentials and their sum, and whether the target is the first maximum."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * row_stride
    offsets = tl.arange(0, COLUMNS)
    target = tl.load(targets + row)
    own = tl.load(start + target).to(tl.float32)
    largest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for first in range(0, VOCAB_SIZE, COLUMNS):
        column = first + offsets
        # The mask ends at a multiple of eight, or each number would be loaded by itself.
        values = tl.load(start + column, mask=column < ALIGNED_SIZE, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, tl.where(column < VOCAB_SIZE, values, float("-inf")))
    top = tl.max(largest, axis=0)
    sums = tl.zeros((COLUMNS,), tl.float32)
    earlier = tl.zeros((COLUMNS,), tl.int32)
    for first in range(0, VOCAB_SIZE, COLUMNS):
        column = first + offsets
        inside = column < ALIGNED_SIZE
        values = tl.load(start + column, mask=inside, other=float("-inf")).to(tl.float32)
        values = tl.where(column < VOCAB_SIZE, values, float("-inf"))
        earlier += ((values == top) & (column < target)).to(tl.int32)
        powers = tl.exp2((values - top) * _LOG2_E + _SCALE_EXPONENT)
        if WRITE:
            rounded = powers.to(logits.dtype.element_ty)
            tl.store(start + column, rounded, mask=inside)
            # Summed as rounded, so that the softmax adds up to 1.
            powers = rounded.to(tl.float32)
        sums += powers
    tl.store(maximum + row, top)
    tl.store(total + row, tl.sum(sums, axis=0))
    tl.store(correct + row, (own == top) & (tl.sum(earlier, axis=0) == 0))


@triton.jit
def _loss_and_gradient(
    hidden, weight, targets, maximum, total, weighted, nats, gradient, width, hidden_stride, weight_stride,
    weighted_stride, WRITE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row: `log Σ exp - h·w_target`, and `Σ_v p_v w_v - w_target`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    target = tl.load(targets + row)
    states = tl.load(hidden + row * hidden_stride + column, mask=inside, other=0.0)
    own_row = tl.load(weight + target * weight_stride + column, mask=inside, other=0.0)
    sums = tl.load(total + row)
    log_sum = tl.load(maximum + row) + tl.log(sums) - _SCALE_EXPONENT / _LOG2_E
    # The target's own logit is never rounded: it costs nothing, and halves the loss's rounding.
    tl.store(nats + row, log_sum - tl.sum(states * own_row, axis=0))
    if WRITE:
        means = tl.load(weighted + row * weighted_stride + column, mask=inside, other=0.0) / sums
        tl.store(gradient + row * width + column, means - own_row, mask=inside)
