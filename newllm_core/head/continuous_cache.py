"""The continuous cache (Grave, Joulin & Usunier 2017): words that followed a similar state come again.

`p = (1 - w) · p_model + w · p_cache`, where p_cache gives each of the last tokens of the text the weight
`softmax(scale · cosine - age / horizon)`: of the state before it with the present one, and of how many tokens ago that
was. The age is ours; without a horizon it does not count. Nothing is trained, and only the past is read.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 512  # of the similarities, computed at once


@dataclass(frozen=True)
class ContinuousCache:
    """``weight`` of the cache, 0 … 1; ``scale`` of the cosines; ``num_cached`` tokens it holds, at least one;
    ``horizon``: after so many tokens a cached one weighs 1/e of what it did, None: it always weighs the same."""

    weight: float
    scale: float
    num_cached: int
    horizon: float | None = None

    def scores(self, similar: Tensor, ages: Tensor) -> Tensor:
        """Whose softmax are the weights. Cosines `[..., M]`, and tokens since then, at least 1, `[..., M]`."""
        scores = similar * self.scale
        return scores if self.horizon is None else scores - ages.to(scores.dtype) / self.horizon


class CacheSettings(Protocol):
    """The fields of a config that a cache is made of."""

    @property
    def cache_weight(self) -> float: ...

    @property
    def cache_scale(self) -> float: ...

    @property
    def cache_tokens(self) -> int: ...

    @property
    def cache_horizon(self) -> float | None: ...


def configured_cache(config: CacheSettings | None) -> ContinuousCache | None:
    """The one that ``config`` asks for; None for a weight of 0."""
    if config is None or config.cache_weight == 0:
        return None
    return ContinuousCache(config.cache_weight, config.cache_scale, config.cache_tokens, config.cache_horizon)


@torch.no_grad()
def cached_nats(nats: Tensor, states: Tensor, tokens: Tensor, cache: ContinuousCache) -> Tensor:
    """The model's losses with the cache mixed in. The first target has an empty cache and keeps its loss.

    Args:
        nats: `[N - 1]`, of the targets ``tokens[1:]``; float64 is kept.
        states: `[N - 1, D]`, what was known before each target.
        tokens: `[N]` the text.
    """
    keys, targets = functional.normalize(states, dim=1), tokens[1:]
    mixed = nats.double().clone()
    for first in range(0, len(nats), _ROWS):
        rows = torch.arange(first, min(first + _ROWS, len(nats)), device=states.device)
        oldest = max(0, first - cache.num_cached)
        columns = torch.arange(oldest, int(rows[-1]), device=states.device)
        ages = rows[:, None] - columns
        scores = cache.scores(keys[rows] @ keys[columns].T, ages)
        shares = scores.masked_fill_((ages < 1) | (ages > cache.num_cached), -torch.inf).softmax(dim=1)
        hits = shares.masked_fill_(targets[columns] != targets[rows][:, None], 0.0).sum(dim=1)
        probability = (1 - cache.weight) * torch.exp(-mixed[rows.cpu()]) + cache.weight * hits.double().to(mixed.device)
        known = rows.cpu() > 0  # nothing is cached before the first target
        mixed[rows.cpu()[known]] = -probability[known].log()
    return mixed
