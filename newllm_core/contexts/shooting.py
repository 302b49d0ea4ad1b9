"""The contexts of a whole stream: the loop that defines them, and the same contexts in parallel.

`exact_contexts` is *multiple shooting*: the stream is cut into segments that run in lock-step as one batch, each from
a guessed starting context; then each guess is replaced by the end of the segment before, and the segments whose start
moved run again until their trajectories meet the ones already stored (`segments.py`). A block that forgets its start
needs two or three passes. After p passes the first p segments are exact whatever the block does, so nothing is ever
approximated further than `residual` says. A short probe measures first how fast this block forgets on this text
(`horizon.py`); where it does not, the contexts come from the loop. On a GPU a sweep is one kernel
(`triton_lockstep.py`), elsewhere single operations (`steps.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from newllm_core.contexts.horizon import plan_kernel_segments, plan_segments, probe_places
from newllm_core.contexts.segments import KernelSteps, MultipleShooting, NotConvergedError, refuse_not_finite
from newllm_core.contexts.steps import LockStep
from newllm_core.model.layers import ContextBlock
from newllm_core.model.stream import PartsByToken, PartsByType, StreamEmbeddings, TokenParts
from newllm_core.runs.reproducibility import runs_kernels

if TYPE_CHECKING:
    from newllm_core.contexts.triton_lockstep import LockStepKernel

__all__ = ["ExactContexts", "NotConvergedError", "TokenEmbeds", "exact_contexts", "sequential_contexts"]

# Token parts kept at once, in numbers: 64 MiB in float32 on a CPU, where longer chunks gain nothing. A GPU has to be
# filled by every chunk anew: a sixteenth of its memory, and what 32 bits can count.
_CHUNK_NUMBERS = {"cpu": 2**24, "cuda": 2**30}
_CHUNK_SHARE_OF_DEVICE = 16
_PART_TOKENS = 65_536  # embedded at once where chunks are long
_TINY_STREAM = 16


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


@torch.no_grad()
def sequential_contexts(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> Tensor:
    """The definition: `c_i = block(c_{i-1}, e_i)`, token by token. `[N, E·T], [C]` -> `[N, C]`."""
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
    token_embeds: TokenEmbeds | PartsByType,
    initial: Tensor,
    tolerance: float = 1e-5,
    *,
    all_layers: bool = False,
    segment_length: int | None = None,
    max_passes: int | None = None,
    out: Tensor | None = None,
    near: Tensor | None = None,
) -> ExactContexts:
    """The contexts of `sequential_contexts`, by multiple shooting (docs/method.md, section 8).

    Args:
        block: L layers of width C.
        token_embeds: `[N, E·T]` after `embed_norm`, a tensor or `StreamEmbeddings`; or the latter's token halves, made
            with the block's weights of now. N >= 1.
        initial: `[C]`, the context before the first token.
        tolerance: largest accepted jump, in units of a context's component (about 1 after LayerNorm).
        all_layers: return every layer's context, `[N, L, C]`.
        segment_length: tokens per segment; None measures and chooses, N or more is the loop.
        max_passes: give up after so many sweeps of a chunk instead of falling back to the loop.
        out: `[N, L, C]`, written in place, on any device, e.g. a memory-mapped file.
        near: `[N, C]`, contexts near the sought ones, e.g. of weights a step earlier: segments start there.

    Raises NotConvergedError when `max_passes` did not reach the tolerance, ValueError for an empty stream or an
    argument out of its range, NotFiniteError.
    """
    num_tokens = len(token_embeds)
    plain_call = segment_length is None and max_passes is None and out is None and not all_layers
    if plain_call and 0 < num_tokens <= _TINY_STREAM and tolerance > 0 and not isinstance(token_embeds, PartsByType):
        return _tiny_stream(block, token_embeds[0:num_tokens], initial)
    shape = (num_tokens, block.num_layers, block.context_dim)
    out = initial.new_empty(shape) if out is None else out
    _check_arguments(shape, out, tolerance, segment_length, max_passes)
    solver = _solver(block, token_embeds, initial, out)
    horizon = None
    if segment_length is None:
        segment_length, horizon = solver.plan(tolerance)
    sequential = segment_length >= num_tokens
    chunk = solver.chunk_tokens if sequential else max(segment_length, solver.chunk_tokens)
    context, passes, residual = initial, 1, 0.0
    for first in range(0, num_tokens, chunk):
        rows = slice(first, min(first + chunk, num_tokens))
        # Computed where the block is, kept where the caller wants it.
        found = out[rows] if out.device == initial.device else torch.empty_like(out[rows], device=initial.device)
        if sequential:
            context = solver.steps(rows, 1).loop(context, 0, found)
            refuse_not_finite(context)
        else:
            steps = solver.steps(rows, math.ceil(len(found) / segment_length))
            near_rows = None if near is None else near[rows]
            segments = MultipleShooting(steps, context, found, segment_length, tolerance, near_rows)
            segments.solve(max_passes)
            # A view would keep a caller's whole buffer alive, and change with it.
            context = found[-1, -1].clone()
            passes, residual = max(passes, segments.passes), max(residual, segments.residual)
        if found.device != out.device:
            out[rows] = found
    contexts = out if all_layers else out[:, -1]
    length = min(segment_length, num_tokens)
    return ExactContexts(contexts, context, passes, residual, residual <= tolerance, length, horizon)


@torch.no_grad()
def planned_segments(
    block: ContextBlock, token_embeds: TokenEmbeds | PartsByType, initial: Tensor, tolerance: float
) -> tuple[int, int | None]:
    """(tokens per segment, horizon) that `exact_contexts` would choose and find."""
    return _solver(block, token_embeds, initial, initial).plan(tolerance)


def _tiny_stream(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> ExactContexts:
    """The definition itself: preparing anything would take longer than these few steps."""
    contexts = sequential_contexts(block, token_embeds, initial)
    end = contexts[-1].clone()
    refuse_not_finite(end)
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


@dataclass(frozen=True)
class _Operations:
    """Steps as single operations. Token halves by type take little memory, those by token come chunk by chunk."""

    block: ContextBlock
    source: TokenEmbeds | PartsByType
    chunk_tokens: int

    def plan(self, tolerance: float) -> tuple[int, int | None]:
        num_tokens = len(self.source)
        in_chunk = min(num_tokens, self.chunk_tokens)
        return plan_segments(self.block, self._parts, num_tokens, in_chunk, tolerance)

    def steps(self, rows: slice, num_rows: int) -> LockStep:
        return LockStep(self.block, self._parts([rows]), num_rows)

    def _parts(self, places: Sequence[slice]) -> TokenParts:
        if isinstance(self.source, PartsByType):
            return self.source.at(places)
        return PartsByToken(self.block.token_parts(torch.cat([self.source[rows] for rows in places])))


@dataclass(frozen=True)
class _Kernel:
    """Sweeps as kernels of a GPU, in float32."""

    block: ContextBlock
    source: TokenEmbeds
    kernel: "LockStepKernel"
    chunk_tokens: int

    def plan(self, tolerance: float) -> tuple[int, int | None]:
        num_tokens = len(self.source)
        places = probe_places(num_tokens, in_kernel=True)
        if not places:
            return num_tokens, None
        embeds = torch.stack([self.source[rows] for rows in places])
        in_chunk = min(num_tokens, self.chunk_tokens)
        return plan_kernel_segments(self.kernel, self.block, embeds, num_tokens, in_chunk, tolerance)

    def steps(self, rows: slice, num_rows: int) -> KernelSteps:
        """Token halves piece by piece, so that the embeddings of a long chunk are never held."""
        parts = None
        for first in range(rows.start, rows.stop, _PART_TOKENS):
            piece = slice(first, min(first + _PART_TOKENS, rows.stop))
            values = self.block.token_parts(self.source[piece])
            if parts is None:
                parts = values[0].new_empty(len(values), rows.stop - rows.start, self.block.context_dim)
            for layer, value in enumerate(values):
                parts[layer, piece.start - rows.start : piece.stop - rows.start] = value
        assert parts is not None  # a chunk has tokens
        return KernelSteps(self.kernel, list(parts))


def _solver(
    block: ContextBlock, source: TokenEmbeds | PartsByType, initial: Tensor, out: Tensor
) -> _Operations | _Kernel:
    chunk, kernel = _chunk_tokens(block, initial.device), _kernel(block, initial, out)
    if kernel is not None and not isinstance(source, PartsByType):
        return _Kernel(block, source, kernel, chunk)
    by_type = PartsByType(block, source) if isinstance(source, StreamEmbeddings) else source
    return _Operations(block, by_type, len(by_type) if isinstance(by_type, PartsByType) else chunk)


def _kernel(block: ContextBlock, initial: Tensor, out: Tensor) -> "LockStepKernel | None":
    """What walks segments on a GPU, in float32; elsewhere None, and the steps are single operations."""
    if not runs_kernels(initial.device) or initial.dtype != torch.float32 or not out.is_contiguous():
        return None
    from newllm_core.contexts.triton_lockstep import LARGEST_CONTEXT_DIM, LockStepKernel

    return LockStepKernel(block) if block.context_dim <= LARGEST_CONTEXT_DIM else None


def _chunk_tokens(block: ContextBlock, device: torch.device) -> int:
    numbers = _CHUNK_NUMBERS[device.type]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        numbers = min(numbers, total // _CHUNK_SHARE_OF_DEVICE // torch.float32.itemsize)
    return max(4096, numbers // (block.num_layers * block.context_dim))
