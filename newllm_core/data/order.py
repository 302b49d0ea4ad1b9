"""The order in which an epoch reads a text's positions: a permutation that can be entered at any place.

A permutation of all positions at once reads a row here and a row there, which a text that lies in a file makes slow.
``SegmentOrder`` shuffles segments of consecutive positions over the whole text, and then the positions of some segments
among each other. What stands at a place follows from seed, epoch and that place alone: who reads it, in which parts,
and what was read before, changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from newllm_core.runs.reproducibility import derived_generator

SEGMENTS_AT_ONCE = 64  # whose positions are shuffled among each other


@dataclass(frozen=True)
class SegmentOrder:
    """A permutation of 0 … ``num_positions`` - 1, for one epoch. ``segment``: consecutive positions that stay near."""

    num_positions: int
    segment: int
    seed: int
    epoch: int

    def positions(self, first: int, stop: int) -> Tensor:
        """What is read at the places ``first`` … ``stop`` - 1 of the epoch: int64 `[stop - first]`."""
        parts, window = [torch.empty(0, dtype=torch.int64)], self._window_of(first)
        while first < stop:
            start, end = self._start(window), min(stop, self._start(window + 1))
            parts.append(_window(self, window)[first - start : end - start])
            first, window = end, window + 1
        return torch.cat(parts)

    @cached_property
    def segments(self) -> Tensor:
        """Which segment is read when."""
        count = -(-self.num_positions // self.segment)
        return torch.randperm(count, generator=derived_generator("segments", self.seed, self.epoch))

    @cached_property
    def _short(self) -> tuple[int, int]:
        """When the last segment of the text is read, and how many positions it lacks."""
        place = int((self.segments == len(self.segments) - 1).nonzero())
        return place, len(self.segments) * self.segment - self.num_positions

    def _start(self, window: int) -> int:
        """The place where a window begins; the epoch's end for those behind the last."""
        segments = min(window * SEGMENTS_AT_ONCE, len(self.segments))
        place, lacking = self._short
        return segments * self.segment - (lacking if place < segments else 0)

    def _window_of(self, place: int) -> int:
        window = place // (SEGMENTS_AT_ONCE * self.segment)
        return window + 1 if self._start(window + 1) <= place else window


@lru_cache(maxsize=2)
def _window(order: SegmentOrder, window: int) -> Tensor:
    """All positions of a window, as they are read."""
    chosen = order.segments[window * SEGMENTS_AT_ONCE : (window + 1) * SEGMENTS_AT_ONCE].unsqueeze(1)
    positions = (chosen * order.segment + torch.arange(order.segment)).flatten()
    positions = positions[positions < order.num_positions]
    generator = derived_generator("window", order.seed, order.epoch, window)
    return positions[torch.randperm(len(positions), generator=generator)]


def epoch_batches(
    num_positions: int, batch: int, seed: int, epoch: int, *, shuffle: bool, segment: int | None, first: int = 0
) -> Iterator[Tensor]:
    """Positions `[batch]`, the last ones fewer, from batch ``first`` on, counted from 0.

    ``segment``: as of ``SegmentOrder``; None: all positions are shuffled at once. Without ``shuffle`` as they stand.
    """
    starts = range(first * batch, num_positions, batch)
    if shuffle and segment is None:
        order = torch.randperm(num_positions, generator=derived_generator("shuffle", seed, epoch))
        yield from (order[start : start + batch] for start in starts)
    elif shuffle and segment is not None:
        by_segments = SegmentOrder(num_positions, segment, seed, epoch)
        yield from (by_segments.positions(start, min(start + batch, num_positions)) for start in starts)
    else:
        yield from (torch.arange(start, min(start + batch, num_positions)) for start in starts)
