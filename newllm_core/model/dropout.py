"""Dropout whose mask costs a sixth on a CPU, and dropout of some rows of a batch that several ranks compute."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_STEPS = 2**16  # of the share that is dropped


def dropout(values: Tensor, share: float, rows: "RowsOf | None" = None) -> Tensor:
    """Zeroes a ``share``, 0 … 1 exclusive, of the components and scales up the others by 1 / (1 - share).

    PyTorch's own on a CPU draws each component by itself, 12 ns (torch 2.13); here one draw of 64 bits decides over
    four components, from the same generator, with the share rounded to a multiple of 2⁻¹⁶.

    ``rows``: where ``values`` `[T, n, ...]` are those of a larger batch `[T, count, ...]`.
    """
    if not share:
        return values
    shape = list(values.shape)
    if rows is not None:
        shape[1] = rows.count
    if values.device.type != "cpu":
        if rows is None:
            return functional.dropout(values, share)
        return values * functional.dropout(values.new_ones(shape), share).narrow(1, rows.first, values.shape[1])
    dropped, count = round(share * _STEPS), math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[:count].view(shape)
    if rows is not None:
        drawn = drawn.narrow(1, rows.first, values.shape[1])
    mask = (drawn >= dropped - _STEPS // 2).to(values.dtype).mul_(_STEPS / (_STEPS - dropped))
    return values * mask


@dataclass(frozen=True)
class RowsOf:
    """Some rows of a larger batch, from ``first`` on of ``count``. Their dropout is drawn for the whole batch: it
    is the same whoever computes which rows, and all ranks' generators go on alike."""

    first: int
    count: int


def batch_dropout(values: Tensor, share: float, rows: RowsOf | None) -> Tensor:
    """`dropout` of a batch `[n, ...]`, or of its ``rows``."""
    return dropout(values.unsqueeze(0), share, rows).squeeze(0)
