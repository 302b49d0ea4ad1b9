"""The sweeps of `exact_contexts` over one chunk of a stream, until no segment's start moves."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from newllm_core.contexts.steps import STEPS_AT_ONCE, LockStep
from newllm_core.losses import NotFiniteError

if TYPE_CHECKING:
    from newllm_core.contexts.triton_lockstep import LockStepKernel


class NotConvergedError(RuntimeError):
    """A limited number of passes did not reach the tolerance."""


def refuse_not_finite(ends: Tensor) -> None:
    """A context that is not finite stays so to the end of its segment, so the ends tell. Raises NotFiniteError."""
    if not math.isfinite(ends.sum().item()):
        raise NotFiniteError("contexts are not finite: weights, embeddings or the initial context are not")


class KernelSteps:
    """Sweeps on a GPU, each in one kernel. ``parts``: token halves of the chunk, L × `[N, C]`."""

    def __init__(self, kernel: "LockStepKernel", parts: list[Tensor]) -> None:
        self.kernel, self.parts = kernel, parts

    def loop(self, initial: Tensor, first: int, out: Tensor) -> Tensor:
        """As `LockStep.loop`."""
        return self.kernel.loop([part[first : first + len(out)] for part in self.parts], initial, out)


class MultipleShooting:
    """A chunk of N tokens, cut into segments, and how far its contexts have got.

    Args:
        steps: what carries the segments on: a `LockStep` of the chunk with a row for each of them, or `KernelSteps`.
        initial: `[C]`, the context before the first token.
        out: `[N, L, C]`, written.
        length: tokens of a segment.
        tolerance: largest accepted jump.
        near: `[N, C]`, contexts near the sought ones, where the segments start at first; None: the zero context.
    """

    def __init__(
        self, steps: LockStep | KernelSteps, initial: Tensor, out: Tensor, length: int, tolerance: float,
        near: Tensor | None,
    ) -> None:  # fmt: skip
        self.steps, self.out, self.length, self.tolerance = steps, out, length, tolerance
        self.num_segments = math.ceil(len(out) / length)
        later = torch.arange(1, self.num_segments, device=out.device)
        guesses = initial.new_zeros(len(later), len(initial)) if near is None else near[later * length - 1]
        self.starts = torch.cat([initial.unsqueeze(0), guesses])
        self.passes, self.residual = 0, 0.0

    def solve(self, max_passes: int | None) -> None:
        """Sweep until no segment's start moves; past twice the expected sweeps the rest is left to the loop.

        Raises NotConvergedError after ``max_passes``, NotFiniteError.
        """
        moved = self._moved(self._sweep(torch.arange(self.num_segments, device=self.out.device), first_pass=True))
        patience = max_passes or self._expected_passes_doubled()
        while len(moved):
            if self.passes >= patience:
                self._give_up(moved, max_passes)
                break
            self.starts[moved] = self.out[moved * self.length - 1, -1]
            refuse_not_finite(self.starts[moved])
            moved = self._moved(self._sweep(moved, first_pass=False))
        refuse_not_finite(self.out[-1, -1])

    def _moved(self, changed: Tensor) -> Tensor:
        """Of the segments behind a changed one, those whose start is not what the one before now ends with."""
        ends = self.out[changed * self.length - 1, -1]
        refuse_not_finite(ends)
        jump = (ends - self.starts[changed]).abs().amax(dim=1)
        moved = jump > self.tolerance
        self._accept(jump[~moved])
        return changed[moved]

    def _accept(self, jumps: Tensor) -> None:
        if len(jumps):
            self.residual = max(self.residual, float(jumps.max()))

    def _expected_passes_doubled(self) -> int:
        """A sweep costs about a tenth of the loop; the probe expects two to four of them."""
        return min(self.num_segments, 2 + max(6, self.num_segments // 8))

    def _give_up(self, moved: Tensor, max_passes: int | None) -> None:
        if max_passes is not None:
            raise NotConvergedError(
                f"exact_contexts: {len(moved)} of {self.num_segments} segments of {self.length} tokens still move "
                f"after {max_passes} passes (tolerance {self.tolerance}); allow more passes, or None for the loop"
            )
        # Everything before the first segment that still moves is exact already.
        first = int(moved[0]) * self.length
        self.steps.loop(self.out[first - 1, -1], first, self.out[first:])

    def _sweep(self, active: Tensor, first_pass: bool) -> Tensor:
        """Run the active segments in lock-step; returns the segments behind those that ran to their end."""
        self.passes += 1
        if isinstance(self.steps, KernelSteps):
            done = self._walk_kernel(self.steps, active, first_pass)
        else:
            done = self._walk(self.steps, active, first_pass)
        return done[done < self.num_segments - 1] + 1

    def _walk(self, steps: LockStep, active: Tensor, first_pass: bool) -> Tensor:
        context, ahead = self.starts[active], torch.arange(STEPS_AT_ONCE, device=active.device).unsqueeze(1)
        for first in range(0, self.length, STEPS_AT_ONCE):
            positions = active * self.length + first + ahead[: self.length - first]
            stored = steps.walk(context, positions.clamp(max=len(self.out) - 1))
            context = stored[-1, -1]
            if first_pass:
                self._write_all(first, stored)
                continue
            # The last segment may be shorter: what it would read behind the chunk is not written.
            inside = positions < len(self.out)
            compared = len(positions) == STEPS_AT_ONCE
            if compared:
                apart = self._apart(context, positions[-1], inside[-1])
                inside[-1] &= apart
            self.out[positions[inside]] = stored.transpose(1, 2)[inside]
            if compared and not bool(apart.all()):
                active, context = active[apart], context[apart]
                if not len(active):
                    break
        return active

    def _write_all(self, first: int, stored: Tensor) -> None:
        """Contexts `[k, L, n, C]` of all segments, from their token ``first`` on."""
        whole = len(self.out) // self.length
        segments = self.out[: whole * self.length].unflatten(0, (whole, self.length))
        segments[:, first : first + len(stored)] = stored[:, :, :whole].permute(2, 0, 1, 3)
        rest = self.out[whole * self.length + first :][: len(stored)]
        if len(rest):
            rest.copy_(stored[: len(rest), :, -1])

    def _apart(self, context: Tensor, position: Tensor, inside: Tensor) -> Tensor:
        """Which active segments differ from the stored trajectory. The others go on as stored: what they differ by
        is the jump from the token before, their residual."""
        change = (context - self.out[position.clamp(max=len(self.out) - 1), -1]).abs().amax(dim=1)
        apart = ~(change <= self.tolerance) | ~inside
        self._accept(change[~apart])
        return apart

    def _walk_kernel(self, steps: KernelSteps, active: Tensor, first_pass: bool) -> Tensor:
        """The same in one kernel."""
        stop = None if first_pass else (self.tolerance, STEPS_AT_ONCE)
        met, apart = steps.kernel.walk(steps.parts, self.starts, active, self.out, self.length, stop)
        if first_pass:
            return active
        self.residual = max(self.residual, float(apart.max()))
        return active[~met]
