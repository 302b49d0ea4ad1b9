"""The continuous cache (Grave, Joulin & Usunier 2017): words that followed a similar state come again.

`p = (1 - w) · p_model + w · p_cache`, where p_cache gives each of the last tokens of the text the weight
`softmax(scale · cosine)` of the state before it with the present one. Nothing is trained, and only the past is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 512  # of the similarities, computed at once


@dataclass(frozen=True)
class ContinuousCache:
    """``weight`` of the cache, 0 … 1; ``scale`` of the cosines; ``num_cached`` tokens it holds, at least one."""

    weight: float
    scale: float
    num_cached: int


@torch.no_grad()
def cached_nats(
    nats: Tensor, states: Tensor, tokens: Tensor, *, weight: float, scale: float, num_cached: int
) -> Tensor:
    """The model's losses with the cache mixed in.

    Args:
        nats: `[N - 1]`, of the targets ``tokens[1:]``; float64 is kept.
        states: `[N - 1, D]`, what was known before each target.
        tokens: `[N]` the text.
        weight: of the cache, 0 … 1. The first target has an empty cache and keeps its loss.
        scale: of the cosine similarities, the softmax's inverse temperature.
        num_cached: how many tokens the cache holds.
    """
    keys, targets = functional.normalize(states, dim=1), tokens[1:]
    mixed = nats.double().clone()
    for first in range(0, len(nats), _ROWS):
        rows = torch.arange(first, min(first + _ROWS, len(nats)), device=states.device)
        oldest = max(0, first - num_cached)
        columns = torch.arange(oldest, int(rows[-1]), device=states.device)
        similar = (keys[rows] @ keys[columns].T).mul_(scale)
        beyond = (columns >= rows[:, None]) | (columns < rows[:, None] - num_cached)
        shares = similar.masked_fill_(beyond, -torch.inf).softmax(dim=1)
        hits = shares.masked_fill_(targets[columns] != targets[rows][:, None], 0.0).sum(dim=1)
        probability = (1 - weight) * torch.exp(-mixed[rows.cpu()]) + weight * hits.double().to(mixed.device)
        known = rows.cpu() > 0  # nothing is cached before the first target
        mixed[rows.cpu()[known]] = -probability[known].log()
    return mixed
