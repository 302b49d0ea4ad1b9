"""Noise on the contexts that training starts from, on a CPU: rows of a small table of normal numbers, with signs.

What a GPU draws is in `device_noise.py`.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from newllm_core.runs.reproducibility import derived_generator

# Rows of noise are drawn for blocks of this many token positions, so that it does not depend on the batches.
_NOISE_BLOCK = 1000
_NOISE_ROWS = 4096  # of the table they are taken from


def context_noise(rows: slice, context_dim: int, std: float, seed: int, iteration: int) -> Tensor:
    """Noise `[rows, C]` that depends on seed, iteration and token position, not on how tokens are batched.

    Each token gets a row of a table of normal numbers, drawn anew for every iteration, with a sign of its own: tokens
    that share a row are uncorrelated still, and so many numbers would take longer to draw than to use.
    """
    return torch.cat([
        table[rows] * signs for _, table, rows, signs in noise_blocks(rows, context_dim, seed, iteration)
    ]).mul_(std)  # fmt: skip


@lru_cache(maxsize=1)
def noise_table(context_dim: int, seed: int, iteration: int) -> Tensor:
    """Normal numbers `[4096, C]` of one iteration."""
    return torch.randn(_NOISE_ROWS, context_dim, generator=derived_generator("noise", seed, iteration))


def noise_blocks(
    rows: slice, context_dim: int, seed: int, iteration: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Block by block which of ``rows``, counted from their first, get what: table, rows of it, signs `[n, 1]`."""
    table = noise_table(context_dim, seed, iteration)
    for block in range(rows.start // _NOISE_BLOCK, (rows.stop - 1) // _NOISE_BLOCK + 1):
        generator = derived_generator("noise rows", seed, iteration, block)
        drawn = torch.randint(2 * _NOISE_ROWS, (_NOISE_BLOCK,), generator=generator)
        start = block * _NOISE_BLOCK
        first, last = max(rows.start, start), min(rows.stop, start + _NOISE_BLOCK)
        drawn = drawn[first - start : last - start]
        signs = (1 - 2 * (drawn % 2)).to(table).unsqueeze(1)
        yield slice(first - rows.start, last - rows.start), table, drawn // 2, signs
