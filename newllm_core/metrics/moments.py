"""Sums over tokens that determine every measure of a spectrum, and that add up over blocks of tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS_AT_ONCE = 10  # 20 MB at context_dim 500


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over tokens that determine every measure of ``spectrum.py``; float64.

    Attributes:
        count: n.
        total: Σx, `[d]`.
        gram: Σxxᵀ, `[d, d]`.
        norm_weighted: Σ|x|²x, `[d]`.
        fourth: Σ|x|⁴.
    """

    count: int
    total: Tensor
    gram: Tensor
    norm_weighted: Tensor
    fourth: float

    @classmethod
    def of(cls, contexts: Tensor) -> "Moments":
        """Of `[n, d]`, n >= 1. Raises ValueError unless it is finite, fourth powers included."""
        if contexts.ndim != 2 or not contexts.numel():
            raise ValueError(f"moments: expected a matrix [n, d], n and d >= 1, given {list(contexts.shape)}")
        wide = contexts.detach().double()
        norms = wide.square().sum(dim=1)
        fourth = float(norms @ norms)
        if not math.isfinite(fourth):
            raise ValueError(f"moments: expected finite contexts, given {list(wide.shape)} with Σ|x|⁴ = {fourth}")
        return cls(len(wide), wide.sum(dim=0), wide.T @ wide, norms @ wide, fourth)

    @property
    def context_dim(self) -> int:
        return len(self.total)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of tokens. Raises ValueError for unlike dimensions."""
        (both,) = weighted_moments([self, other], torch.ones(1, 2, dtype=torch.int64))
        return both

    def packed(self) -> Tensor:
        """All sums in one row, `[d² + 2d + 2]`."""
        numbers = self.total.new_tensor([self.count, self.fourth])
        return torch.cat([numbers, self.total, self.norm_weighted, self.gram.flatten()])

    @classmethod
    def unpacked(cls, row: Tensor, context_dim: int) -> "Moments":
        """What ``packed`` gave, `[d² + 2d + 2]`."""
        numbers, total, weighted, gram = row.split([2, context_dim, context_dim, context_dim**2])
        return cls(round(float(numbers[0])), total, gram.view(context_dim, context_dim), weighted, float(numbers[1]))


def weighted_moments(blocks: Sequence[Moments], weights: Tensor) -> Iterator[Moments]:
    """Per row of ``weights`` `[num_draws, num_blocks]`, integers >= 0: the moments with each block so many times.

    Holds the blocks once more, 8 · num_blocks · d² bytes. Raises ValueError for other weights, for rows that draw
    nothing and for blocks of unlike dimensions.
    """
    dims = {block.context_dim for block in blocks}
    if len(dims) != 1:
        raise ValueError(f"moments: expected blocks of one dimension, given {sorted(dims)}")
    if weights.is_floating_point() or weights.ndim != 2 or weights.shape[1] != len(blocks):
        raise ValueError(
            f"moments: expected integer weights [num_draws, {len(blocks)}], given {weights.dtype} {list(weights.shape)}"
        )
    if bool((weights < 0).any()) or bool((weights.sum(dim=1) < 1).any()):
        raise ValueError("moments: expected weights >= 0 with a block drawn in every row, given others")
    (context_dim,) = dims
    packed = torch.stack([block.packed() for block in blocks])
    for some in weights.to(packed).split(DRAWS_AT_ONCE):
        for row in some @ packed:
            yield Moments.unpacked(row, context_dim)
