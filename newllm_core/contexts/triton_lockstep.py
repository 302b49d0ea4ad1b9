"""The lock-step of `exact_contexts` on a GPU: one kernel that walks a whole segment.

Each program carries a tile of segments from token to token: their contexts stay in registers, the recurrent weights
come from the cache at every step, and a later sweep ends for a tile once its trajectories have met the stored ones.
Nothing returns to the host before a sweep is over. As single operations a step takes about ten launches.

Products of float32 numbers are put together from three products of float16 ones on the matrix units (`a·b ≈ a₁b₁ +
a₁b₂ + a₂b₁` with `a = a₁ + a₂` to 22 bits, sums in float32), which is as exact as float32 to a few units in the last
place and several times as fast. Contexts come from a LayerNorm and are of order one; weights are brought there by a
power of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_core.model.layers import ContextBlock

# Of one program, measured on an H200 at C = 500: 16 segments side by side take 27 µs a step, 32 take 44.
TILE_ROWS = 16
_WARPS = 8
_TILE_INPUTS = 32  # whose weights are loaded at a time
_STAGES, _STAGES_WIDE = 3, 2  # tiles of weights in shared memory, up to and beyond C = 512
LARGEST_CONTEXT_DIM = 2048  # beyond, a tile's contexts do not fit into registers
_LARGEST_WEIGHT_EXPONENT = 8  # of two, after scaling: far from float16's largest, with small weights still normal


class LockStepKernel:
    """A block's weights as the kernel reads them, and the sweeps. All layers have width C."""

    def __init__(self, block: ContextBlock) -> None:
        layers = block.context_layers()
        self.num_layers, self.context_dim = len(layers), block.context_dim
        self.padded = max(triton.next_power_of_2(block.context_dim), 16)
        self.tile_inputs = min(_TILE_INPUTS, self.padded) if self.padded <= 1024 else _TILE_INPUTS // 2
        self.stages = _STAGES if self.padded <= 512 else _STAGES_WIDE
        weights = torch.stack([layer.from_context.weight.detach() for layer in layers])
        largest = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        # A power of two, so that scaling rounds nothing; it stays on the device.
        scale = torch.exp2(_LARGEST_WEIGHT_EXPONENT - largest.log2().ceil())
        self.unscale = (1 / scale).reshape(1)
        spare = self.padded - block.context_dim
        scaled = torch.nn.functional.pad(weights * scale, (0, spare, 0, spare))
        self.high = scaled.half()
        self.low = (scaled - self.high.float()).half()
        norms = [layer.norm for layer in layers]
        self.norm_weight = torch.stack([norm.weight.detach() for norm in norms])
        self.norm_bias = torch.stack([norm.bias.detach() for norm in norms])
        self.epsilon = norms[0].eps
        gains = [layer.gain.detach() for layer in layers if layer.gain is not None]
        self.has_gains = bool(gains)
        self.gains = torch.stack(gains) if gains else self.norm_weight  # the latter is never read

    def rows_at_once(self, device: torch.device) -> int:
        """Segments that keep every multiprocessor busy once."""
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        return processors * TILE_ROWS

    def loop(self, parts: list[Tensor], initial: Tensor, out: Tensor) -> Tensor:
        """One walk from token to token: L × `[n, C]`, `[C]` -> the last context `[C]`, and ``out`` `[n, L, C]`."""
        one = torch.zeros(1, dtype=torch.int64, device=out.device)
        self.walk(parts, initial.unsqueeze(0), one, out, len(out), None)
        return out[-1, -1].clone()

    def walk(
        self, parts: list[Tensor], starts: Tensor, segments: Tensor, out: Tensor, segment_length: int,
        stop_when_met: tuple[float, int] | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Carry the contexts of some segments through their tokens, into ``out``.

        Args:
            parts: the token halves, L × `[N, C]`.
            starts: `[num_segments, C]`, the context before each segment.
            segments: `[n]`, which to walk.
            out: `[N, L, C]`, contiguous, of less than 2^31 numbers.
            stop_when_met: (tolerance, steps between comparisons): a segment ends where no component of its last layer
                differs from what is stored by more than the tolerance; None walks to the end.

        Returns bool `[n]`, whether each segment met what was stored, and float32 `[n]`, by how much it differed there.
        """
        count, tiles = len(segments), triton.cdiv(len(segments), TILE_ROWS)
        met = torch.zeros(count, dtype=torch.bool, device=out.device)
        apart = torch.zeros(count, device=out.device)
        # Two places, each with the upper and the lower halves.
        states = torch.empty(2, 2, tiles * TILE_ROWS, self.padded, dtype=torch.float16, device=out.device)
        tolerance, every = stop_when_met or (0.0, 1)
        _walk[(tiles,)](
            _stacked(parts), starts, segments.int(), out, states, self.high, self.low, self.unscale, self.gains,
            self.norm_weight, self.norm_bias, met, apart, count, len(out), segment_length, out.shape[0] * out.shape[2],
            states.stride(1), tolerance, self.epsilon,
            WIDTH=self.context_dim, PADDED=self.padded, LAYERS=self.num_layers, GAINS=self.has_gains,
            COMPARE=stop_when_met is not None, EVERY=every,
            ROWS=TILE_ROWS, INPUTS=self.tile_inputs, num_warps=_WARPS, num_stages=self.stages,
        )  # fmt: skip
        return met, apart


def _stacked(parts: list[Tensor]) -> Tensor:
    """L × `[N, C]` -> `[L, N, C]`, without a copy for one layer."""
    return parts[0].contiguous() if len(parts) == 1 else torch.stack(parts)


@triton.jit
def _store_halves(states, low_offset, place, values):
    """A context as two float16 numbers a component, for the next product."""
    high = values.to(tl.float16)
    tl.store(states + place, high)
    tl.store(states + low_offset + place, (values - high.to(tl.float32)).to(tl.float16))


@triton.jit
def _product(
    states, low_offset, high, low, row, column,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """`context @ weightᵀ`, scaled as the weights are. `[ROWS, PADDED]`."""
    total = tl.zeros((ROWS, PADDED), tl.float32)
    for first in range(0, WIDTH, INPUTS):
        inputs = first + tl.arange(0, INPUTS)
        place = row[:, None] * PADDED + inputs[None, :]
        state_high, state_low = tl.load(states + place), tl.load(states + low_offset + place)
        weight = column[None, :] * PADDED + inputs[:, None]
        weight_high, weight_low = tl.load(high + weight), tl.load(low + weight)
        total = tl.dot(state_low, weight_high, total)
        total = tl.dot(state_high, weight_low, total)
        total = tl.dot(state_high, weight_high, total)
    return total


# One compilation for all lengths: it takes seconds.
@triton.jit(do_not_specialize=["count", "num_tokens", "segment_length", "part_stride"])
def _walk(
    parts, starts, segments, out, states, high, low, unscale, gains, norm_weight, norm_bias, met, apart,
    count, num_tokens, segment_length, part_stride, low_offset, tolerance, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, LAYERS: tl.constexpr, GAINS: tl.constexpr, COMPARE: tl.constexpr,
    EVERY: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    real = column < WIDTH
    live = row < count
    segment = tl.load(segments + row, mask=live, other=0)
    first = segment * segment_length
    place = row[:, None] * PADDED + column[None, :]
    known = live[:, None] & real[None, :]
    context = tl.load(starts + segment[:, None] * WIDTH + column[None, :], mask=known, other=0.0)
    _store_halves(states, low_offset, place, context)
    tl.debug_barrier()
    scale = tl.load(unscale)
    step = tl.program_id(0) * 0  # a tensor also under the interpreter
    turn = step
    walking = live & (first < num_tokens)
    left = tl.max(walking.to(tl.int32), axis=0)
    while (step < segment_length) & (left > 0):
        position = first + step
        walking = walking & (position < num_tokens)
        here = walking[:, None] & real[None, :]
        for layer in tl.static_range(LAYERS):
            total = _product(
                states + turn * 2 * low_offset, low_offset,
                high + layer * PADDED * PADDED, low + layer * PADDED * PADDED,
                row, column, WIDTH, PADDED, ROWS, INPUTS,
            )  # fmt: skip
            part = tl.load(
                parts + layer * part_stride + position[:, None] * WIDTH + column[None, :], mask=here, other=0.0
            )
            before = total * scale + part
            kept = context
            if GAINS:
                kept *= tl.load(gains + layer * WIDTH + column, mask=real, other=0.0)[None, :]
            raw = kept + 0.5 * before * (1 + tl.math.erf(before * 0.7071067811865476))
            raw = tl.where(real[None, :], raw, 0.0)
            centred = tl.where(real[None, :], raw - (tl.sum(raw, axis=1) / WIDTH)[:, None], 0.0)
            variance = tl.sum(centred * centred, axis=1) / WIDTH
            normed = centred * tl.rsqrt(variance + epsilon)[:, None]
            context = normed * tl.load(norm_weight + layer * WIDTH + column, mask=real, other=0.0)[None, :]
            context += tl.load(norm_bias + layer * WIDTH + column, mask=real, other=0.0)[None, :]
            # Into the other of two places: no warp may overwrite what another still reads.
            turn = 1 - turn
            _store_halves(states + turn * 2 * low_offset, low_offset, place, context)
            tl.debug_barrier()
            stored = out + (position[:, None] * LAYERS + layer) * WIDTH + column[None, :]
            if COMPARE and layer == LAYERS - 1:  # noqa: SIM102 (the first is known when compiled, the second is not)
                if step % EVERY == EVERY - 1:
                    change = tl.abs(context - tl.load(stored, mask=here, other=0.0))
                    largest = tl.max(tl.where(here, change, 0.0), axis=1)
                    ends = walking & (largest <= tolerance)
                    tl.store(met + row, ends, mask=ends)
                    tl.store(apart + row, largest, mask=ends)
                    walking = walking & ~ends
                    here = walking[:, None] & real[None, :]
            tl.store(stored, context, mask=here)
        step += 1
        left = tl.max(walking.to(tl.int32), axis=0)
