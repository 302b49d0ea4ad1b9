"""The contexts of a whole stream: the loop that defines them, and the same contexts in parallel.

`exact_contexts` is *multiple shooting*: the stream is cut into segments that run in lock-step as one batch, each from
a guessed starting context; then each guess is replaced by the end of the segment before, and the segments whose start
moved run again until their trajectories meet the ones already stored. A block that forgets its start needs two or
three passes. After p passes the first p segments are exact whatever the block does, so nothing is ever approximated
further than `residual` says. A short probe measures first how fast this block forgets on this text; where it does
not, the contexts come from the loop. On a GPU a sweep is one kernel (`triton_lockstep.py`).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from newllm_core.losses import NotFiniteError
from newllm_core.model.layers import ContextBlock
from newllm_core.runs.reproducibility import runs_kernels

if TYPE_CHECKING:
    from newllm_core.contexts.triton_lockstep import LockStepKernel

# Seconds of one lock-step over seconds that one more row adds to it, at C = 500; measured on two CPU cores (12 at
# C = 500, falling with C²). On a GPU a row more is nearly free until the device is full.
_STEP_OVER_ROW = {"cpu": 12.0, "cuda": 2000.0}
_ROW_REFERENCE_DIM = 500
# Token parts kept at once, in numbers: 64 MiB in float32 on a CPU, where longer chunks gain nothing. A GPU has to be
# filled by every chunk anew: a sixteenth of its memory, and what 32 bits can count.
_CHUNK_NUMBERS = {"cpu": 2**24, "cuda": 2**30}
_CHUNK_SHARE_OF_DEVICE = 16
_PART_TOKENS = 65_536  # embedded at once where chunks are long
# Lock-steps between two comparisons with the stored trajectory: a comparison costs about one step.
_CHECK_EVERY = 8
_PROBE_SHARE = 40  # the probe may cost 1/40 of the loop
_PROBE_PLACES = 4
_MIN_PROBE_STEPS, _MAX_PROBE_STEPS = 24, 1024
_TINY_STREAM = 16
_SHORTEST_PARALLEL_STREAM = 256  # below, a loop takes milliseconds
# The kernel's lock-steps cost the same however few segments there are, a sweep about four of them.
_SHORTEST_KERNEL_SEGMENT = 32
_MAX_KERNEL_PROBE_STEPS = 256  # read from the GPU at once


class TokenEmbeds(Protocol):
    """`[N, E·T]`, a tensor or something that computes its slices when asked (model.StreamEmbeddings)."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class ExactContexts:
    """Contexts of a stream, and how far to trust them.

    Attributes:
        contexts: `[N, C]`, or `[N, L, C]` when all layers were asked for.
        end: `[C]`, the context after the last token.
        passes: lock-step sweeps of the chunk that needed most; 1 for the loop.
        residual: largest jump between a context and the one computed from its predecessor, beyond rounding;
            0.0 means equal to the loop up to rounding.
        success: whether `residual <= tolerance`.
        segment_length: tokens per segment; N where the loop was used.
        horizon: tokens the probe needed, or expects, until two starts agree within the tolerance; None: it does
            not expect them to.
    """

    contexts: Tensor
    end: Tensor
    passes: int
    residual: float
    success: bool
    segment_length: int
    horizon: int | None


class NotConvergedError(RuntimeError):
    """A limited number of passes did not reach the tolerance."""


@torch.no_grad()
def sequential_contexts(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> Tensor:
    """The definition: `c_i = block(c_{i-1}, e_i)`, token by token. `[N, E·T], [C]` -> `[N, C]`."""
    return _sequential(block, token_embeds, initial)


def _sequential(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> Tensor:
    if not len(token_embeds):
        return initial.new_empty(0, block.context_dim)
    context = initial.unsqueeze(0)
    contexts = []
    for token_embed in token_embeds.split(1):
        context = block(context, token_embed)
        contexts.append(context)
    return torch.cat(contexts)


@torch.no_grad()
def exact_contexts(
    block: ContextBlock,
    token_embeds: TokenEmbeds,
    initial: Tensor,
    tolerance: float = 1e-5,
    *,
    all_layers: bool = False,
    segment_length: int | None = None,
    max_passes: int | None = None,
    out: Tensor | None = None,
) -> ExactContexts:
    """The contexts of `sequential_contexts`, by multiple shooting (docs/method.md, section 8).

    Args:
        block: L layers of width C.
        token_embeds: `[N, E·T]` after `embed_norm`, a tensor or `StreamEmbeddings`; N >= 1.
        initial: `[C]`, the context before the first token.
        tolerance: largest accepted jump, in units of a context's component (about 1 after LayerNorm).
        all_layers: return every layer's context, `[N, L, C]`.
        segment_length: tokens per segment; None measures and chooses, N or more is the loop.
        max_passes: give up after so many sweeps of a chunk instead of falling back to the loop.
        out: `[N, L, C]`, written in place, on any device, e.g. a memory-mapped file.

    Raises NotConvergedError when `max_passes` did not reach the tolerance, ValueError for an empty stream or an
    argument out of its range, NotFiniteError.
    """
    num_tokens = len(token_embeds)
    plain_call = segment_length is None and max_passes is None and out is None and not all_layers
    if plain_call and 0 < num_tokens <= _TINY_STREAM and tolerance > 0:
        return _tiny_stream(block, token_embeds[0:num_tokens], initial)
    shape = (num_tokens, block.num_layers, block.context_dim)
    out = initial.new_empty(shape) if out is None else out
    _check_arguments(shape, out, tolerance, segment_length, max_passes)
    horizon, kernel = None, _kernel(block, initial, out)
    if segment_length is None:
        segment_length, horizon = _plan_segments(block, token_embeds, tolerance, kernel)
    if segment_length >= num_tokens:
        end = _loop_stream(block, token_embeds, initial, out, kernel)
        contexts = out if all_layers else out[:, -1]
        return ExactContexts(contexts, end, 1, 0.0, True, num_tokens, horizon)
    chunk = max(segment_length, _chunk_tokens(block, initial.device))
    context, passes, residual = initial, 1, 0.0
    for first in range(0, num_tokens, chunk):
        rows = slice(first, min(first + chunk, num_tokens))
        # Computed where the block is, kept where the caller wants it.
        chunk_out = out[rows] if out.device == initial.device else torch.empty_like(out[rows], device=initial.device)
        parts = _token_parts(block, token_embeds, rows, kernel)
        shooting = _Shooting(block, parts, context, chunk_out, segment_length, tolerance, kernel)
        shooting.solve(max_passes)
        # A view would keep a caller's whole buffer alive, and change with it.
        context = chunk_out[-1, -1].clone()
        if chunk_out.device != out.device:
            out[rows] = chunk_out
        passes, residual = max(passes, shooting.passes), max(residual, shooting.residual)
    contexts = out if all_layers else out[:, -1]
    return ExactContexts(contexts, context, passes, residual, residual <= tolerance, segment_length, horizon)


def _tiny_stream(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> ExactContexts:
    """The definition itself: preparing anything would take longer than these few steps."""
    contexts = _sequential(block, token_embeds, initial)
    end = contexts[-1]
    _refuse_not_finite(end)
    return ExactContexts(contexts, end, 1, 0.0, True, len(contexts), None)


def _check_arguments(
    shape: tuple[int, int, int], out: Tensor, tolerance: float, segment_length: int | None, max_passes: int | None
) -> None:
    if shape[0] < 1 or not tolerance > 0:
        raise ValueError(f"exact_contexts: expected tokens and tolerance > 0, given {shape[0]} and {tolerance}")
    for name, value in (("segment_length", segment_length), ("max_passes", max_passes)):
        if value is not None and value < 1:
            raise ValueError(f"exact_contexts: expected {name} of at least 1, or None, given {value}")
    if out.shape != shape:
        raise ValueError(f"exact_contexts: expected out {list(shape)}, given {list(out.shape)}")


def _kernel(block: ContextBlock, initial: Tensor, out: Tensor) -> "LockStepKernel | None":
    """What walks segments on a GPU, in float32; elsewhere None, and the steps are single operations."""
    if not runs_kernels(initial.device) or initial.dtype != torch.float32 or not out.is_contiguous():
        return None
    from newllm_core.contexts.triton_lockstep import LARGEST_CONTEXT_DIM, LockStepKernel

    return LockStepKernel(block) if block.context_dim <= LARGEST_CONTEXT_DIM else None


def _token_parts(
    block: ContextBlock, token_embeds: TokenEmbeds, rows: slice, kernel: "LockStepKernel | None"
) -> list[Tensor]:
    """Each layer's token half of these tokens, L × `[n, C]`; for the kernel made piece by piece, so that the embeddings
    of a long chunk are never held."""
    if kernel is None:
        return block.token_parts(token_embeds[rows])
    parts = None
    for first in range(rows.start, rows.stop, _PART_TOKENS):
        piece = slice(first, min(first + _PART_TOKENS, rows.stop))
        values = block.token_parts(token_embeds[piece])
        if parts is None:
            parts = values[0].new_empty(len(values), rows.stop - rows.start, block.context_dim)
        for layer, value in enumerate(values):
            parts[layer, piece.start - rows.start : piece.stop - rows.start] = value
    assert parts is not None  # a chunk has tokens
    return list(parts)


def _loop_stream(
    block: ContextBlock, token_embeds: TokenEmbeds, initial: Tensor, out: Tensor, kernel: "LockStepKernel | None"
) -> Tensor:
    """The loop over a whole stream, chunk by chunk; returns the last context `[C]`."""
    chunk = _chunk_tokens(block, initial.device)
    for first in range(0, len(token_embeds), chunk):
        rows = slice(first, min(first + chunk, len(token_embeds)))
        parts = _token_parts(block, token_embeds, rows, kernel)
        # Either the steps as single operations, or all of them in one kernel.
        walk = partial(_loop, block) if kernel is None else kernel.loop
        initial = walk(parts, initial, out[rows])
    _refuse_not_finite(initial)
    return initial


def _loop(block: ContextBlock, parts: list[Tensor], initial: Tensor, out: Tensor) -> Tensor:
    """Token by token, all layers into ``out`` `[n, L, C]`; returns the last context `[C]`."""
    context = initial.unsqueeze(0)
    stored = []
    for row in zip(*(part.split(1) for part in parts), strict=True):
        contexts = block.forward_from_token_parts(context, row)
        context = contexts[-1]
        stored.append(contexts)
    for layer, values in enumerate(zip(*stored, strict=True)):
        out[:, layer] = torch.cat(values)
    return context[0]


def _refuse_not_finite(ends: Tensor) -> None:
    """A context that is not finite stays so to the end of its segment, so the ends tell."""
    if not math.isfinite(ends.sum().item()):
        raise NotFiniteError("contexts are not finite: weights, embeddings or the initial context are not")


class _Shooting:
    """One chunk of a stream, its segments, and the sweeps over them."""

    def __init__(
        self, block: ContextBlock, parts: list[Tensor], initial: Tensor, out: Tensor, segment_length: int,
        tolerance: float, kernel: "LockStepKernel | None",
    ) -> None:  # fmt: skip
        self.block, self.out, self.tolerance, self.kernel = block, out, tolerance, kernel
        self.length = segment_length
        self.num_tokens = len(out)
        self.parts = parts
        self.num_segments = math.ceil(self.num_tokens / segment_length)
        self.starts = initial.new_zeros(self.num_segments, block.context_dim)
        self.starts[0] = initial
        self.passes, self.residual = 0, 0.0

    def solve(self, max_passes: int | None) -> None:
        """Sweep until no segment's start moves; past twice the expected sweeps the rest is left to the loop."""
        moved = self._sweep(torch.arange(self.num_segments, device=self.out.device), first_pass=True)
        patience = max_passes or self._expected_passes_doubled()
        while len(moved):
            if self.passes >= patience:
                self._give_up(moved, max_passes)
                break
            self.starts[moved] = self.out[moved * self.length - 1, -1]
            _refuse_not_finite(self.starts[moved])
            moved = self._sweep(moved, first_pass=False)
        _refuse_not_finite(self.out[-1, -1])

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
        walk = partial(_loop, self.block) if self.kernel is None else self.kernel.loop
        walk([part[first:] for part in self.parts], self.out[first - 1, -1], self.out[first:])

    def _sweep(self, active: Tensor, first_pass: bool) -> Tensor:
        """Run the active segments in lock-step; returns the segments whose start has moved by that."""
        self.passes += 1
        if self.kernel is not None:
            return self._walk(self.kernel, active, first_pass)
        context = self.starts[active]
        for step in range(self.length):
            position = active * self.length + step
            if step and int(active[-1]) == self.num_segments - 1 and int(position[-1]) >= self.num_tokens:
                # Only the last segment can be shorter than the others.
                active, position, context = active[:-1], position[:-1], context[:-1]
                if not len(active):
                    return active
            layers = self.block.forward_from_token_parts(context, [part[position] for part in self.parts])
            context, contexts = layers[-1], torch.stack(layers, dim=1)
            if not first_pass and step % _CHECK_EVERY == _CHECK_EVERY - 1:
                apart = self._still_apart(context, position)
                active, position, context, contexts = active[apart], position[apart], context[apart], contexts[apart]
                if not len(active):
                    return active
            self.out[position] = contexts
        return active[active < self.num_segments - 1] + 1

    def _walk(self, kernel: "LockStepKernel", active: Tensor, first_pass: bool) -> Tensor:
        """The same in one kernel."""
        stop = None if first_pass else (self.tolerance, _CHECK_EVERY)
        met, apart = kernel.walk(self.parts, self.starts, active, self.out, self.length, stop)
        if first_pass:
            return active[active < self.num_segments - 1] + 1
        self.residual = max(self.residual, float(apart.max()))
        return active[~met & (active < self.num_segments - 1)] + 1

    def _still_apart(self, context: Tensor, position: Tensor) -> Tensor:
        """Which active segments differ from the stored trajectory. The others go on as stored: what they differ by
        is the jump from the token before, their residual."""
        change = (context - self.out[position, -1]).abs().amax(dim=1)
        apart = ~(change <= self.tolerance)
        met = change[~apart]
        if len(met):
            self.residual = max(self.residual, float(met.max()))
        return apart


def _chunk_tokens(block: ContextBlock, device: torch.device) -> int:
    numbers = _CHUNK_NUMBERS[device.type]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        numbers = min(numbers, total // _CHUNK_SHARE_OF_DEVICE // torch.float32.itemsize)
    return max(4096, numbers // (block.num_layers * block.context_dim))


def _plan_segments(
    block: ContextBlock, token_embeds: TokenEmbeds, tolerance: float, kernel: "LockStepKernel | None"
) -> tuple[int, int | None]:
    """(segment length, horizon). With horizon h, S tokens a segment and N tokens a chunk, the sweeps take about
    S + h lock-steps of N / S rows: least at S = √(h · N / (step over row))."""
    num_tokens = len(token_embeds)
    if num_tokens < _SHORTEST_PARALLEL_STREAM:
        return num_tokens, None
    horizon = _probe_horizon(block, token_embeds, tolerance, kernel)
    if horizon is None:
        return num_tokens, None
    device = token_embeds[0:1].device
    in_chunk = min(num_tokens, _chunk_tokens(block, device))
    if kernel is not None:
        # A lock-step costs the same until every multiprocessor has its rows, and S + h of them are needed whatever S.
        length = max(math.ceil(in_chunk / kernel.rows_at_once(device)), _SHORTEST_KERNEL_SEGMENT)
        return (length if 1.5 * (length + horizon) < in_chunk else num_tokens), horizon
    step_over_row = max(_STEP_OVER_ROW[device.type] * (_ROW_REFERENCE_DIM / block.context_dim) ** 2, 1.0)
    length = max(round(math.sqrt(horizon * in_chunk / step_over_row)), 2 * _CHECK_EVERY)
    loop_steps = in_chunk * (1 + 1 / step_over_row)
    parallel_steps = (length + horizon) * (1 + in_chunk / length / step_over_row)
    return (length, horizon) if 1.5 * parallel_steps < loop_steps else (num_tokens, horizon)


def _probe_horizon(
    block: ContextBlock, token_embeds: TokenEmbeds, tolerance: float, kernel: "LockStepKernel | None" = None
) -> int | None:
    """Tokens until trajectories from two unlike starts agree, measured or extrapolated from the latter half of the
    probe; None where they do not approach each other."""
    num_tokens = len(token_embeds)
    longest = _MAX_PROBE_STEPS if kernel is None else _MAX_KERNEL_PROBE_STEPS
    steps = min(max(num_tokens // _PROBE_SHARE, _MIN_PROBE_STEPS), longest, num_tokens // _PROBE_PLACES)
    firsts = [place * num_tokens // _PROBE_PLACES for place in range(_PROBE_PLACES)]
    embeds = torch.stack([token_embeds[first : first + steps] for first in firsts])
    if kernel is None:
        distances = start_distances(block, embeds, stop_below=tolerance)
    else:
        distances = _walked_distances(kernel, block, embeds, stop_below=tolerance)
    if distances[-1] <= tolerance:
        return len(distances)
    half = len(distances) // 2
    slope = (math.log(distances[-1]) - math.log(distances[half])) / (len(distances) - 1 - half)
    if not slope < 0:
        return None
    return len(distances) + math.ceil(math.log(distances[-1] / tolerance) / -slope)


@torch.no_grad()
def start_distances(block: ContextBlock, embeds: Tensor, stop_below: float) -> list[float]:
    """Largest component-wise distance after each token between trajectories from the zero context and from a
    context of unit normal components (what LayerNorm gives), over all streams.

    Args:
        embeds: `[streams, n, E·T]`.
        stop_below: end when the distance is this small.
    """
    streams, steps, _ = embeds.shape
    context = _unlike_starts(block, embeds)
    parts = [part.repeat(2, 1, 1) for part in block.token_parts(embeds)]
    distances: list[float] = []
    for step in range(steps):
        context = block.forward_from_token_parts(context, [part[:, step] for part in parts])[-1]
        distances.append(float((context[:streams] - context[streams:]).abs().max()))
        if distances[-1] <= stop_below:
            break
    return distances


def _unlike_starts(block: ContextBlock, embeds: Tensor) -> Tensor:
    """For each of ``embeds`` `[streams, n, E·T]` the zero context, then for each a normal one. `[2 · streams, C]`."""
    generator = torch.Generator().manual_seed(0)
    unlike = torch.randn(len(embeds), block.context_dim, generator=generator).to(embeds)
    return torch.cat([torch.zeros_like(unlike), unlike])


@torch.no_grad()
def _walked_distances(kernel: "LockStepKernel", block: ContextBlock, embeds: Tensor, stop_below: float) -> list[float]:
    """`start_distances` in one kernel: all steps are walked, and those after the first small distance left out."""
    streams, steps, _ = embeds.shape
    starts = _unlike_starts(block, embeds)
    rows = torch.arange(len(starts), device=starts.device)
    walked = starts.new_empty(len(starts) * steps, block.num_layers, block.context_dim)
    kernel.walk(block.token_parts(embeds.repeat(2, 1, 1).flatten(0, 1)), starts, rows, walked, steps, None)
    contexts = walked[:, -1].unflatten(0, (len(starts), steps))
    distances: list[float] = (contexts[:streams] - contexts[streams:]).abs().amax(dim=(0, 2)).tolist()
    small = [step for step, distance in enumerate(distances, start=1) if distance <= stop_below]
    return distances[: small[0]] if small else distances
