"""Which tokens of the stream each rank computes in Phase 1, and what ranks tell each other about their contexts.

Of B batches and R ranks, each rank has B // R whole ones, one behind the other, and of each that is left its part. A
whole batch's loss needs nobody else; that of a shared one reads sums over all ranks. What enters a rank's stretch of
the stream is the context before it, which another rank has: one vector for each boundary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from newllm_core.contexts.shooting import TokenEmbeds, exact_contexts, planned_segments
from newllm_core.losses import WITHOUT_DRAWS, DiversityLoss, diversity_loss, diversity_over_ranks
from newllm_core.model.layers import ContextBlock
from newllm_core.model.stream import PartsByType
from newllm_core.runs.world import World

_WARM_UP_TOKENS = 256  # where the block is not expected to forget: what is wrong then is found, and made good


class StreamParts:
    """
    Attributes:
        batches: the pieces of batches that this rank computes, in the order of the stream.
        stretches: the same where one goes on where the one before ends, joined.
        everyones: the stretches of each rank, as many for each.
        num_batches: of the whole stream.
        residual: largest jump between two contexts of the stream, by the last ``exact``, on any rank.
    """

    def __init__(self, world: World, batches: Sequence[slice], algorithm: str) -> None:
        self.world, self.algorithm, self.num_batches, self.residual = world, algorithm, len(batches), 0.0
        shortest = min(rows.stop - rows.start for rows in batches)
        if shortest < world.size:
            raise ValueError(
                f"Phase 1: expected at least a token of each batch for {world.size} ranks, given {shortest}"
            )
        # Where losses draw random numbers all ranks compute all batches in order, so that they draw the same.
        self._each = len(batches) // world.size if world.is_alone or algorithm in WITHOUT_DRAWS else 0
        self._whole = batches[: self._each * world.size]
        self._shared = batches[len(self._whole) :]
        self.everyones = [self._joined(rank) for rank in range(world.size)]
        self.batches, self.stretches = self._pieces(world.rank), self.everyones[world.rank]
        self._of = {self.world.part(rows).start: rows for rows in self._shared}

    def _pieces(self, rank: int) -> list[slice]:
        own = self._whole[rank * self._each : (rank + 1) * self._each]
        return [*own, *(self.world.parts(rows)[rank] for rows in self._shared)]

    def _joined(self, rank: int) -> list[slice]:
        pieces = self._pieces(rank)
        own, parts = pieces[: self._each], pieces[self._each :]
        return [*([slice(own[0].start, own[-1].stop)] if own else []), *parts]

    def share(self, rows: slice) -> float:
        """Of the batch's tokens that this piece of it has."""
        batch = self._of.get(rows.start, rows)
        return (rows.stop - rows.start) / (batch.stop - batch.start)

    def counted(self, rows: slice) -> float:
        """How often this rank counts the loss of this piece's batch: a shared one is counted by the first alone."""
        return 1.0 if rows.start not in self._of or self.world.is_first else 0.0

    def diversity(self, rows: slice) -> DiversityLoss:
        """That of the whole batch, of this rank's piece."""
        batch = self._of.get(rows.start)
        if batch is None:
            return diversity_loss(self.algorithm)
        count = batch.stop - batch.start
        return diversity_over_ranks(
            self.algorithm, count, self.world.total, partial(self.world.gathered, count=count)
        )  # fmt: skip

    def exchange_ends(self, contexts: Tensor) -> None:
        """Each stretch's last row of ``contexts`` `[N, C]` becomes its rank's, on all ranks."""
        if self.world.is_alone:
            return
        for stretch, end in zip(chain(*self.everyones), self._everyones_ends(contexts), strict=True):
            contexts[stretch.stop - 1] = end

    def _everyones_ends(self, contexts: Tensor) -> Tensor:
        """`[R · stretches, C]`, rank by rank."""
        own = torch.stack([contexts[stretch.stop - 1] for stretch in self.stretches])
        return self.world.gathered(own, len(own) * self.world.size)

    def complete_on_first(self, contexts: Tensor, num_tokens: int) -> None:
        """The first ``num_tokens`` rows of ``contexts`` become those of the ranks that have them, on the first rank."""
        for rank, stretches in enumerate(self.everyones):
            for stretch in stretches:
                self.world.send_to_first(contexts[stretch.start : min(stretch.stop, num_tokens)], rank)

    def exact(
        self, block: ContextBlock, window: Callable[[slice], TokenEmbeds | PartsByType], initial: Tensor,
        tolerance: float, contexts: Tensor, near: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        """Exact contexts of this rank's stretches, into ``contexts`` `[N, L, C]`; what enters each of them, `[C]`.

        Each stretch starts from a context that is warmed up over the horizon before it. The contexts that the ranks
        before end with say how good that was: a stretch whose start is further from it than ``tolerance`` is computed
        again, from there. So after k rounds the first k stretches of the stream are exact whatever the block does.

        Args:
            window: embeddings or token halves of some rows of the stream.
            initial: `[C]`, before the first token.
            near: `[N, C]`, contexts near the sought ones; only rows of this rank's stretches are read.
        """
        length, horizon = planned_segments(block, window(self.stretches[0]), initial, tolerance)
        starts = [
            self._warmed_up(block, window, stretch.start, initial, tolerance, horizon) for stretch in self.stretches
        ]
        residual, moved = 0.0, list(range(len(starts)))
        while True:
            for number in moved:
                rows = self.stretches[number]
                found = exact_contexts(
                    block, window(rows), starts[number], tolerance, out=contexts[rows], segment_length=length,
                    near=None if near is None else near[rows],
                )  # fmt: skip
                residual = max(residual, found.residual)
            before = self._before(contexts[:, -1], initial)
            jumps = [float((start - end).abs().max()) for start, end in zip(starts, before, strict=True)]
            moved = [number for number, jump in enumerate(jumps) if not jump <= tolerance]
            worst, largest = self.world.largest([max(jumps), residual])
            if worst <= tolerance:
                self.residual = max(worst, largest)
                return starts
            starts = [end if number in moved else start for number, (start, end) in enumerate(zip(starts, before))]

    def _warmed_up(
        self, block: ContextBlock, window: Callable[[slice], TokenEmbeds | PartsByType], first: int, initial: Tensor,
        tolerance: float, horizon: int | None,
    ) -> Tensor:  # fmt: skip
        """The context before token ``first``, `[C]`."""
        if first == 0:
            return initial
        begin = max(first - (horizon or _WARM_UP_TOKENS), 0)
        start = torch.zeros_like(initial) if begin else initial
        return exact_contexts(block, window(slice(begin, first)), start, tolerance).end

    def _before(self, contexts: Tensor, initial: Tensor) -> list[Tensor]:
        """For each stretch of this rank the context that the one before it ends with."""
        stops = [stretch.stop for stretch in chain(*self.everyones)]
        ends = dict(zip(stops, self._everyones_ends(contexts), strict=True)) | {0: initial}
        return [ends[stretch.start] for stretch in self.stretches]
