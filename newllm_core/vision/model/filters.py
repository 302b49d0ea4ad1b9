"""Attention over few keys a query: the largest logits, of these the nucleus, and what their values add up to.

A CPU computes some heads' logits at a time, so that they and all that is made of them stay in its cache; of the whole
matrix only the few that are kept are ever written to memory. Source: docs/method.md, section 12.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CACHED_LOGITS = 2**18  # computed at once on a CPU: a megabyte, half of a core's second cache


@dataclass(frozen=True)
class KeptKeys:
    """Attention over the keys that passed both filters; the others weigh zero.

    Attributes:
        weights: `[..., k]`, rows sum to 1, zero outside the nucleus.
        indices: `[..., k]` of the keys.
        inside: bool `[..., k]`, in the nucleus.
    """

    weights: Tensor
    indices: Tensor
    inside: Tensor

    @property
    def tokens_kept(self) -> Tensor:
        """`[...]` int64, keys in the nucleus."""
        return self.inside.sum(dim=-1)


def filtered_softmax(values: Tensor, indices: Tensor, top_p: float) -> KeptKeys:
    """Softmax over the nucleus of what top-k left: logits ``values`` `[..., k]`, falling, of the keys ``indices``."""
    # The few keys come first: arithmetic that runs along many queries is several times as fast.
    mass = functional.softmax(values.movedim(-1, 0).contiguous(), dim=0)
    inside = nucleus(mass.detach(), top_p)
    within = mass * inside
    return KeptKeys((within / within.sum(dim=0)).movedim(0, -1), indices, inside.movedim(0, -1))


def nucleus(falling_mass: Tensor, top_p: float) -> Tensor:
    """True for the shortest prefix whose mass is above ``top_p`` (Holtzman et al. 2020).

    ``falling_mass`` `[k, ...]` falls along its first dimension and sums to 1 there; a bool of its shape. The first is
    always kept, and with ``top_p`` 1 all are.
    """
    if top_p >= 1:
        return torch.ones_like(falling_mass, dtype=torch.bool)
    # A key is kept while the mass before it is not yet above top_p.
    return falling_mass.cumsum(dim=0) - falling_mass <= top_p


def spread(weights: Tensor, indices: Tensor, num_keys: int) -> Tensor:
    """The whole rows: `[..., k]` -> `[..., num_keys]`."""
    rows = weights.new_zeros(*weights.shape[:-1], num_keys)
    return rows.scatter_(-1, indices, weights)


def strongest_keys(
    query: Tensor, key: Tensor, bias: Tensor | None, scale: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """The `k = min(top_k, n)` largest of the logits `scale · query · keyᵀ + bias`, falling; all n for ``top_k`` None.

    ``query`` `[heads, m, width]`, ``key`` `[heads, n, width]`, ``bias`` of the keys `[heads, n]`; values and indices
    `[heads, m, k]`.
    """
    kept = key.shape[1] if top_k is None else min(top_k, key.shape[1])
    values, indices = _StrongestKeys.apply(query, key, bias, scale, kept)  # type: ignore[no-untyped-call]
    return values, indices


def weighted_sum(weights: Tensor, indices: Tensor, value: Tensor) -> Tensor:
    """What each query's kept keys add up to: `[heads, m, k]` twice and `[heads, n, width]` -> `[heads, m, width]`."""
    mixed: Tensor = _WeightedSum.apply(weights.contiguous(), indices, value)  # type: ignore[no-untyped-call]
    return mixed


def largest_places(logits: Tensor, count: int) -> Tensor:
    """Which of n finite numbers is the largest, the next, …: `[..., n]` -> int64 `[..., count]`.

    On a CPU float32 numbers whose first 23 - log2 n binary digits agree count as equal, and any of them may come first:
    PyTorch's topk takes four times as long as NumPy's vectorised sort of numbers that carry their place.
    """
    num_keys = logits.shape[-1]
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or count == num_keys:
        return logits.topk(count, dim=-1).indices
    low_bits = (1 << (num_keys - 1).bit_length()) - 1
    marked = logits.view(torch.int32) & ~low_bits
    marked |= torch.arange(num_keys, dtype=torch.int32)
    marked.view(torch.float32).numpy().sort(axis=-1)
    return (marked[..., -count:] & low_bits).long().flip(-1)


def _parts(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Heads whose logits are computed at once: of `[heads, m, …]` and `[heads, n, …]`."""
    heads = len(query)
    size = max(1, _CACHED_LOGITS // (query.shape[1] * key.shape[1])) if query.device.type == "cpu" else heads
    return (slice(first, first + size) for first in range(0, heads, size))


class _StrongestKeys(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None, scale: float, kept: int
    ) -> tuple[Tensor, Tensor]:
        values = query.new_empty(*query.shape[:2], kept)
        indices = torch.empty_like(values, dtype=torch.int64)
        none = query.new_zeros(1)
        for part in _parts(query, key):
            start, share = (none, 0) if bias is None else (bias[part].unsqueeze(1), 1)
            logits = torch.baddbmm(start, query[part], key[part].mT, beta=share, alpha=scale)
            indices[part] = largest_places(logits, kept)
            torch.gather(logits, -1, indices[part], out=values[part])
        ctx.save_for_backward(query, key, indices)
        ctx.scale, ctx.has_bias = scale, bias is not None
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, indices = ctx.saved_tensors
        arrived = upstream[0] * ctx.scale
        of_query, of_key = torch.empty_like(query), torch.empty_like(key)
        for part in _parts(query, key):
            of_products = spread(arrived[part], indices[part], key.shape[1])
            torch.bmm(of_products, key[part], out=of_query[part])
            torch.bmm(of_products.mT, query[part], out=of_key[part])
        of_bias = None
        if ctx.has_bias:
            of_bias = key.new_zeros(key.shape[:2]).scatter_add_(-1, indices.flatten(1), upstream[0].flatten(1))
        return of_query, of_key, of_bias, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, indices: Tensor, value: Tensor) -> Tensor:
        mixed = value.new_empty(*weights.shape[:2], value.shape[2])
        for part in _parts(weights, value):
            torch.bmm(spread(weights[part], indices[part], value.shape[1]), value[part], out=mixed[part])
        ctx.save_for_backward(weights, indices, value)
        return mixed

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weights, indices, value = ctx.saved_tensors
        arrived = upstream[0].contiguous()
        of_weights, of_value = torch.empty_like(weights), torch.empty_like(value)
        for part in _parts(weights, value):
            whole = spread(weights[part], indices[part], value.shape[1])
            torch.bmm(whole.mT, arrived[part], out=of_value[part])
            torch.gather(torch.bmm(arrived[part], value[part].mT), -1, indices[part], out=of_weights[part])
        return of_weights, None, of_value
