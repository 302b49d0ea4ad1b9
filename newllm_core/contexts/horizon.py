"""How fast a block forgets its start on this text: a short probe, and the segment length that it makes best."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from newllm_core.contexts.steps import STEPS_AT_ONCE, LockStep
from newllm_core.model.layers import ContextBlock
from newllm_core.model.stream import PartsByToken, TokenParts

if TYPE_CHECKING:
    from newllm_core.contexts.triton_lockstep import LockStepKernel

# Seconds of one lock-step over seconds that one more row adds to it, at C = 500; measured on two CPU cores (12 at
# C = 500, falling with C²). On a GPU a row more is nearly free until the device is full.
_STEP_OVER_ROW = {"cpu": 12.0, "cuda": 2000.0}
_ROW_REFERENCE_DIM = 500
_PROBE_SHARE = 40  # the probe may cost 1/40 of the loop
_PROBE_PLACES = 4
MIN_PROBE_STEPS, _MAX_PROBE_STEPS = 24, 1024
_MAX_KERNEL_PROBE_STEPS = 256  # read from the GPU at once
_SHORTEST_PARALLEL_STREAM = 256  # below, a loop takes milliseconds
# The kernel's lock-steps cost the same however few segments there are, a sweep about four of them.
_SHORTEST_KERNEL_SEGMENT = 32


def probe_places(num_tokens: int, in_kernel: bool = False) -> list[slice]:
    """Where a stream is probed: four places, equally long; none for a stream too short for that."""
    if num_tokens < _SHORTEST_PARALLEL_STREAM:
        return []
    longest = _MAX_KERNEL_PROBE_STEPS if in_kernel else _MAX_PROBE_STEPS
    steps = min(max(num_tokens // _PROBE_SHARE, MIN_PROBE_STEPS), longest, num_tokens // _PROBE_PLACES)
    firsts = [place * num_tokens // _PROBE_PLACES for place in range(_PROBE_PLACES)]
    return [slice(first, first + steps) for first in firsts]


def plan_segments(
    block: ContextBlock, parts_of: Callable[[Sequence[slice]], TokenParts], num_tokens: int, in_chunk: int,
    tolerance: float,
) -> tuple[int, int | None]:  # fmt: skip
    """(segment length, horizon) for single operations; the length is N where the loop is expected to be faster.

    ``parts_of`` gives the token halves of some places, one behind the other. With horizon h, S tokens a segment and N
    tokens a chunk, the sweeps take about S + h lock-steps of N / S rows: least at S = √(h · N / (step over row)).
    """
    places = probe_places(num_tokens)
    if not places:
        return num_tokens, None
    distances = _distances(block, parts_of(places), len(places), tolerance)
    horizon = extrapolated_horizon(distances, tolerance)
    if horizon is None:
        return num_tokens, None
    device = block.context_layers()[0].norm.weight.device
    step_over_row = max(_STEP_OVER_ROW[device.type] * (_ROW_REFERENCE_DIM / block.context_dim) ** 2, 1.0)
    length = max(round(math.sqrt(horizon * in_chunk / step_over_row)), 2 * STEPS_AT_ONCE)
    loop_steps = in_chunk * (1 + 1 / step_over_row)
    parallel_steps = (length + horizon) * (1 + in_chunk / length / step_over_row)
    return (length, horizon) if 1.5 * parallel_steps < loop_steps else (num_tokens, horizon)


def plan_kernel_segments(
    kernel: "LockStepKernel", block: ContextBlock, embeds: Tensor, num_tokens: int, in_chunk: int, tolerance: float
) -> tuple[int, int | None]:
    """The same for sweeps that are a kernel, from a probe of ``embeds`` `[places, n, E·T]`.

    A lock-step costs the same until every multiprocessor has its rows, and S + h of them are needed whatever S.
    """
    horizon = extrapolated_horizon(_walked_distances(kernel, block, embeds, tolerance), tolerance)
    if horizon is None:
        return num_tokens, None
    length = max(math.ceil(in_chunk / kernel.rows_at_once(embeds.device)), _SHORTEST_KERNEL_SEGMENT)
    return (length if 1.5 * (length + horizon) < in_chunk else num_tokens), horizon


def extrapolated_horizon(distances: list[float], tolerance: float) -> int | None:
    """Tokens until trajectories from two unlike starts agree, measured or extrapolated from the latter half of the
    probe; None where they do not approach each other."""
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
    parts = PartsByToken(block.token_parts(embeds.flatten(0, 1)))
    return _distances(block, parts, len(embeds), stop_below)


@torch.no_grad()
def _distances(block: ContextBlock, parts: TokenParts, streams: int, stop_below: float) -> list[float]:
    """The same for token halves of equally long streams, one behind the other."""
    context = _unlike_starts(block, streams)
    walker = LockStep(block, parts, len(context))
    positions = torch.arange(len(parts), device=context.device).view(streams, -1).repeat(2, 1).T.contiguous()
    distances: list[float] = []
    for some in positions.split(STEPS_AT_ONCE):
        walked = walker.walk(context, some)[:, -1]
        context = walked[-1]
        for distance in (walked[:, :streams] - walked[:, streams:]).abs().amax(dim=(1, 2)).tolist():
            distances.append(distance)
            if distance <= stop_below:
                return distances
    return distances


def _unlike_starts(block: ContextBlock, streams: int) -> Tensor:
    """For each stream the zero context, then for each a normal one. `[2 · streams, C]`."""
    generator = torch.Generator().manual_seed(0)
    weight = block.context_layers()[0].norm.weight
    unlike = torch.randn(streams, block.context_dim, generator=generator).to(weight)
    return torch.cat([torch.zeros_like(unlike), unlike])


@torch.no_grad()
def _walked_distances(kernel: "LockStepKernel", block: ContextBlock, embeds: Tensor, stop_below: float) -> list[float]:
    """`start_distances` in one kernel: all steps are walked, and those after the first small distance left out."""
    streams, steps, _ = embeds.shape
    starts = _unlike_starts(block, streams)
    rows = torch.arange(len(starts), device=starts.device)
    walked = starts.new_empty(len(starts) * steps, block.num_layers, block.context_dim)
    kernel.walk(block.token_parts(embeds.repeat(2, 1, 1).flatten(0, 1)), starts, rows, walked, steps, None)
    contexts = walked[:, -1].unflatten(0, (len(starts), steps))
    distances: list[float] = (contexts[:streams] - contexts[streams:]).abs().amax(dim=(0, 2)).tolist()
    small = [step for step, distance in enumerate(distances, start=1) if distance <= stop_below]
    return distances[: small[0]] if small else distances
