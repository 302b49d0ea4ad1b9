"""Where the contexts of a stream are kept, and how batches of them reach the device.

A cache of N contexts takes `N · L · C · 4` bytes: on the device while it fits there, in memory while it fits there and
into the run's `memory_budget_gb`, in a memory-mapped file beyond.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_core.gpu_memory import FLOAT_BYTES, GIB, device_memory_gb
from newllm_core.runs.files import RESULTS_DIR
from newllm_core.runs.host_memory import room_bytes
from newllm_core.runs.mapped import new_mapped

logger = logging.getLogger("newllm")

# Of what is free: the rest is for batches, the model, and other programs.
_CACHE_SHARE = 0.5


def allocate_contexts(num_tokens: int, num_layers: int, context_dim: int, device: torch.device) -> Tensor:
    """An empty float32 cache `[N, L, C]` in the nearest place with room. Raises RunError where there is none."""
    shape = (num_tokens, num_layers, context_dim)
    num_bytes = math.prod(shape) * FLOAT_BYTES
    if device.type == "cuda":
        total, allocated = device_memory_gb(device)
        if num_bytes <= _CACHE_SHARE * (total - allocated) * GIB:
            return torch.empty(shape, device=device)
    if num_bytes <= _CACHE_SHARE * room_bytes():
        return torch.empty(shape)
    logger.warning("contexts take %.1f GiB: kept in a file, which is slower", num_bytes / GIB)
    return new_mapped(shape, RESULTS_DIR)


def context_file(num_tokens: int, num_layers: int, context_dim: int, device: torch.device) -> Tensor | None:
    """A cache in a file where contexts on the CPU do not fit into memory; None where they do, or are on a GPU."""
    num_bytes = num_tokens * num_layers * context_dim * FLOAT_BYTES
    if device.type == "cuda" or num_bytes <= _CACHE_SHARE * room_bytes():
        return None
    return allocate_contexts(num_tokens, num_layers, context_dim, device)


@dataclass(frozen=True)
class Batch:
    """What predicts n tokens: `contexts [n, L, C]`, `tokens [n]`, and the `targets [n]` that follow them."""

    contexts: Tensor
    tokens: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, size: int) -> list["Batch"]:
        """Consecutive parts of at most ``size`` tokens."""
        parts = (self.contexts.split(size), self.tokens.split(size), self.targets.split(size))
        return [Batch(*part) for part in zip(*parts, strict=True)]


def context_batches(contexts: Tensor, tokens: Tensor, positions: Iterable[Tensor]) -> Iterator[Batch]:
    """A contiguous batch on the tokens' device for each of ``positions``, those of the predicting tokens.

    Where contexts have to travel to a GPU, the next batch is gathered and sent while the present one is used.

    Args:
        contexts: `[N, L, C]`, wherever they are kept.
        tokens: `[N]`.
        positions: int64 `[n]` each, 0 … N - 2, on any device.
    """

    def gather(rows: Tensor) -> Batch:
        chosen = contexts.index_select(0, rows.to(contexts.device))
        if chosen.device != tokens.device:
            chosen = chosen.pin_memory().to(tokens.device, non_blocking=True)
        rows = rows.to(tokens.device, non_blocking=True)
        return Batch(chosen, tokens[rows], tokens[rows + 1])

    if contexts.device == tokens.device:
        yield from map(gather, positions)
        return
    with ThreadPoolExecutor(max_workers=1) as ahead:
        pending = None
        for rows in positions:
            following = ahead.submit(gather, rows)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
