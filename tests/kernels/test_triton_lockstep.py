"""The lock-step kernel against the loop, and `exact_contexts` through it."""

import pytest
import torch
from core_helpers import CONTRACTING, EXPANDING, make_block, make_embeds
from torch import Tensor

from newllm_core.contexts import horizon, shooting
from newllm_core.contexts.segments import MultipleShooting
from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.contexts.triton_lockstep import LARGEST_CONTEXT_DIM, LockStepKernel
from newllm_core.model import ContextBlock

ROUNDING = 3e-5  # of float32 over some hundred steps


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shooting, "runs_kernels", lambda device: True)
    monkeypatch.setattr(horizon, "_SHORTEST_KERNEL_SEGMENT", 16)


def _block(context_dim: int = 20, num_layers: int = 1, gains: bool = False, kind: tuple[float, float] = CONTRACTING):  # type: ignore[no-untyped-def]
    block = make_block(kind, context_dim, num_layers=num_layers, dtype=torch.float32)
    if gains:
        for layer in block.context_layers():
            layer.gain = torch.nn.Parameter(torch.linspace(0.5, 1.2, context_dim))
    return block


def _loop(block: ContextBlock, embeds: Tensor) -> Tensor:
    return sequential_contexts(block, embeds, torch.zeros(block.context_dim))


@pytest.mark.parametrize("case", [(20, 1, False), (16, 2, True), (33, 1, True)])
def test_segments_in_lock_step_are_so_many_loops(case: tuple[int, int, bool]) -> None:
    block, embeds = _block(*case), make_embeds(50, dtype=torch.float32)
    out = torch.full((50, case[1], case[0]), torch.nan)
    starts = torch.zeros(4, case[0])
    # The last segment is shorter than the others.
    LockStepKernel(block).walk(block.token_parts(embeds), starts, torch.arange(4), out, 14, None)
    wanted = torch.cat([_loop(block, part) for part in embeds.split(14)])
    assert (out[:, -1] - wanted).abs().max() < ROUNDING


def test_only_the_segments_asked_for_are_written() -> None:
    block, embeds = _block(), make_embeds(40, dtype=torch.float32)
    out = torch.full((40, 1, 20), -5.0)
    LockStepKernel(block).walk(block.token_parts(embeds), torch.zeros(4, 20), torch.tensor([2]), out, 10, None)
    assert (out[:20] == -5).all() and (out[30:] == -5).all() and (out[20:30] != -5).all()


def test_a_segment_ends_where_it_meets_what_is_stored() -> None:
    block, embeds = _block(), make_embeds(64, dtype=torch.float32)
    kernel, parts = LockStepKernel(block), block.token_parts(embeds)
    out, starts = torch.empty(64, 1, 20), torch.zeros(2, 20)
    kernel.walk(parts, starts, torch.arange(2), out, 32, None)
    before = out.clone()
    starts[1] = out[31, 0] + 1
    met, apart = kernel.walk(parts, starts, torch.tensor([1]), out, 32, (0.05, 4))
    assert met.tolist() == [True] and 0 < float(apart) <= 0.05
    changed = (out != before).any(dim=2)[:, 0].nonzero()[:, 0].tolist()
    # From the segment's start up to the comparison at which the two met, and no further.
    assert changed == list(range(32, 32 + len(changed))) and (len(changed) + 1) % 4 == 0


@pytest.mark.parametrize("num_layers", [1, 2])
def test_exact_contexts_are_the_loops(num_layers: int) -> None:
    block, embeds = _block(num_layers=num_layers), make_embeds(300, dtype=torch.float32)
    found = exact_contexts(block, embeds, torch.zeros(20))
    assert found.success and found.segment_length < 300 and found.horizon is not None
    assert (found.contexts - _loop(block, embeds)).abs().max() < 1e-4


def test_a_block_that_does_not_forget_is_walked_in_one_segment() -> None:
    block, embeds = _block(kind=EXPANDING), make_embeds(300, dtype=torch.float32)
    found = exact_contexts(block, embeds, torch.zeros(20))
    assert found.segment_length == 300 and found.residual == 0
    assert torch.isfinite(found.contexts).all()


def test_what_does_not_meet_is_left_to_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    block, embeds = _block(), make_embeds(120, dtype=torch.float32)
    monkeypatch.setattr(MultipleShooting, "_expected_passes_doubled", lambda self: 1)
    found = exact_contexts(block, embeds, torch.zeros(20), segment_length=30)
    assert (found.contexts - _loop(block, embeds)).abs().max() < ROUNDING


def test_float64_and_very_wide_blocks_take_single_operations() -> None:
    wide, zeros = make_block(context_dim=8), torch.zeros(8, dtype=torch.float64)
    assert shooting._kernel(wide, zeros, torch.empty(1, 1, 8)) is None
    too_wide = torch.zeros(LARGEST_CONTEXT_DIM + 1)
    block = ContextBlock(LARGEST_CONTEXT_DIM + 1, 2)
    assert shooting._kernel(block, too_wide, torch.empty(1, 1, 1)) is None


def test_weights_of_any_size_are_as_exact() -> None:
    for scale in (1e-4, 1.0, 1e3):
        block, embeds = _block(), make_embeds(30, dtype=torch.float32)
        with torch.no_grad():
            block.context_layers()[0].from_context.weight.mul_(scale)
        out = torch.empty(30, 1, 20)
        LockStepKernel(block).loop(block.token_parts(embeds), torch.zeros(20), out)
        wide = sequential_contexts(block.double(), embeds.double(), torch.zeros(20, dtype=torch.float64))
        # A block of large weights drives rounding apart from token to token.
        few = 3 if scale > 1 else 30
        assert (out[:few, 0] - wide[:few]).abs().max() < 1e-3
