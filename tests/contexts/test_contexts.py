"""Exact contexts against the loop that defines them."""

import math

import pytest
import torch
from core_helpers import CONTRACTING, EXPANDING, NEUTRAL, make_block, make_embeds, make_model, make_tokens, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from newllm_core.contexts import shooting as contexts
from newllm_core.contexts.horizon import MIN_PROBE_STEPS, extrapolated_horizon, probe_places, start_distances
from newllm_core.contexts.shooting import NotConvergedError, exact_contexts, sequential_contexts
from newllm_core.losses import NotFiniteError
from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.model import ContextBlock, StreamEmbeddings

TIGHT = 1e-12
ZERO = torch.zeros(32, dtype=torch.float64)


def furthest(block: ContextBlock, embeds: Tensor, found: Tensor, initial: Tensor = ZERO) -> float:
    return float((found - sequential_contexts(block, embeds, initial)).abs().max())


def largest_jump(block: ContextBlock, embeds: Tensor, found: Tensor, initial: Tensor = ZERO) -> float:
    """What a residual claims to bound: how far a context is from the one computed from its predecessor."""
    entering = torch.cat([initial.unsqueeze(0), found[:-1]])
    with torch.no_grad():
        return float((block(entering, embeds) - found).abs().max())


def test_the_loop_is_the_recurrence() -> None:
    block, embeds = make_block(num_layers=2), make_embeds(3)
    initial = torch.randn(32, generator=rng(5), dtype=torch.float64)
    first = block(initial.unsqueeze(0), embeds[0:1])
    second = block(first, embeds[1:2])
    third = block(second, embeds[2:3])
    assert torch.equal(sequential_contexts(block, embeds, initial), torch.cat([first, second, third]))


def test_the_loop_over_no_tokens_is_empty() -> None:
    assert sequential_contexts(make_block(), make_embeds(0), ZERO).shape == (0, 32)


def test_the_three_kinds_of_block() -> None:
    """What the other tests rely on: how fast each kind forgets its start within 64 tokens."""
    starts = make_embeds(64).unsqueeze(0)
    ends = {kind: start_distances(make_block(kind), starts, 0.0)[-1] for kind in (CONTRACTING, NEUTRAL, EXPANDING)}
    assert ends[CONTRACTING] < 1e-8
    assert ends[NEUTRAL] > 0.1 and abs(contraction_rate(make_block(NEUTRAL), make_embeds(800))) < 0.01
    assert ends[EXPANDING] > 0.1 and contraction_rate(make_block(EXPANDING), make_embeds(800)) > 0


@given(
    num_tokens=st.integers(1, 130), segment_length=st.integers(1, 140), num_layers=st.integers(1, 3),
    context_dim=st.integers(2, 9), num_input_tokens=st.integers(1, 3), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_exact_contexts_are_the_loops(
    num_tokens: int, segment_length: int, num_layers: int, context_dim: int, num_input_tokens: int, seed: int
) -> None:
    block = make_block(CONTRACTING, context_dim, 4, num_layers, num_input_tokens, seed)
    embeds = make_embeds(num_tokens, 4 * num_input_tokens, seed)
    initial = torch.randn(context_dim, generator=rng(seed), dtype=torch.float64)
    found = exact_contexts(block, embeds, initial, TIGHT, segment_length=segment_length)
    assert furthest(block, embeds, found.contexts, initial) < 1e-9
    assert found.success and found.residual <= TIGHT
    assert torch.equal(found.end, found.contexts[-1])
    assert 1 <= found.passes <= math.ceil(num_tokens / segment_length)


@pytest.mark.parametrize("segment_length", [None, 1, 8, 37, 100, 300, 5000])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", [CONTRACTING, NEUTRAL, EXPANDING])
def test_contexts_are_exact_whatever_the_block_does(
    kind: tuple[float, float], num_layers: int, segment_length: int | None
) -> None:
    block, embeds = make_block(kind, num_layers=num_layers), make_embeds(300)
    found = exact_contexts(block, embeds, ZERO, TIGHT, segment_length=segment_length)
    assert found.success
    assert largest_jump(block, embeds, found.contexts) < 1e-11
    # An expanding block blows rounding itself up, at first by more than e^0.3 a token: only its beginning compares.
    same = slice(24 if kind is EXPANDING else 300)
    assert furthest(block, embeds[same], found.contexts[same]) < 1e-9


def test_a_forgetful_block_is_cut_into_segments_on_its_own() -> None:
    block, embeds = make_block(CONTRACTING), make_embeds(2000)
    found = exact_contexts(block, embeds, ZERO)
    assert found.segment_length < len(embeds) and found.passes >= 2
    assert found.success and 0 < found.residual <= 1e-5
    assert found.horizon is not None and found.horizon < 100
    assert furthest(block, embeds, found.contexts) < 1e-4


@pytest.mark.parametrize("kind", [NEUTRAL, EXPANDING])
def test_a_block_that_does_not_forget_is_left_to_the_loop(kind: tuple[float, float]) -> None:
    block, embeds = make_block(kind), make_embeds(600)
    found = exact_contexts(block, embeds, ZERO)
    assert (found.segment_length, found.passes, found.residual, found.success) == (600, 1, 0.0, True)
    assert found.horizon is None or found.horizon > 600
    assert largest_jump(block, embeds, found.contexts) < 1e-12


def test_a_short_stream_is_left_to_the_loop_without_a_probe() -> None:
    found = exact_contexts(make_block(), make_embeds(100), ZERO)
    assert (found.segment_length, found.horizon, found.passes) == (100, None, 1)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_a_looser_tolerance_is_kept(tolerance: float) -> None:
    block, embeds = make_block(), make_embeds(600)
    found = exact_contexts(block, embeds, ZERO, tolerance, segment_length=30)
    assert found.success and found.residual <= tolerance
    assert furthest(block, embeds, found.contexts) < 20 * tolerance


def test_the_residual_bounds_every_jump() -> None:
    embeds, zero = make_embeds(2000, 8), ZERO[:8]
    for context_weight_std in (0.1, 1.0, 3.0):
        block = make_block((context_weight_std, 1.0), context_dim=8, embed_dim=8)
        for tolerance in (1e-1, 1e-2, 1e-3, 1e-5):
            found = exact_contexts(block, embeds, zero, tolerance, segment_length=40)
            assert largest_jump(block, embeds, found.contexts, zero) <= found.residual + 1e-12


def test_a_zero_residual_means_the_loop_up_to_rounding() -> None:
    block, embeds = make_block(NEUTRAL), make_embeds(200)
    found = exact_contexts(block, embeds, ZERO, TIGHT, segment_length=50)
    assert found.residual == 0.0
    assert furthest(block, embeds, found.contexts) < 1e-12


def test_a_limit_on_the_passes_that_is_too_small_is_an_error() -> None:
    message = "of 6 segments of 50 tokens still move after 2 passes"
    with pytest.raises(NotConvergedError, match=message):
        exact_contexts(make_block(NEUTRAL), make_embeds(300), ZERO, segment_length=50, max_passes=2)


def test_as_many_passes_as_segments_are_always_enough() -> None:
    block, embeds = make_block(EXPANDING), make_embeds(300)
    found = exact_contexts(block, embeds, ZERO, segment_length=50, max_passes=6)
    assert found.success and found.passes == 6
    assert largest_jump(block, embeds, found.contexts) < 1e-12


def test_a_block_that_moves_on_and_on_is_handed_to_the_loop() -> None:
    block, embeds = make_block(NEUTRAL), make_embeds(640)
    found = exact_contexts(block, embeds, ZERO, segment_length=10)
    assert found.passes < 64 and found.success
    assert furthest(block, embeds, found.contexts) < 1e-9


@pytest.mark.parametrize("segment_length", [None, 16, 700])
@pytest.mark.parametrize("all_layers", [False, True])
def test_chunks_do_not_change_contexts(
    segment_length: int | None, all_layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, embeds = make_block(num_layers=2), make_embeds(1500)
    whole = exact_contexts(block, embeds, ZERO, TIGHT, all_layers=all_layers)
    monkeypatch.setattr(contexts, "_chunk_tokens", lambda block, device: 400)
    parts = exact_contexts(block, embeds, ZERO, TIGHT, segment_length=segment_length, all_layers=all_layers)
    assert float((parts.contexts - whole.contexts).abs().max()) < 1e-9
    assert torch.equal(parts.end, parts.contexts[-1, -1] if all_layers else parts.contexts[-1])


def test_a_chunk_holds_what_was_asked_for_but_thousands_of_tokens_at_least() -> None:
    cpu = torch.device("cpu")
    assert contexts._chunk_tokens(ContextBlock(8, 8, 2), cpu) == 2**24 // 16
    assert contexts._chunk_tokens(ContextBlock(8, 8, 700), cpu) == 4096


def test_all_layers_hold_every_layers_context() -> None:
    block, embeds = make_block(num_layers=3), make_embeds(200)
    found = exact_contexts(block, embeds, ZERO, TIGHT, all_layers=True, segment_length=40)
    entering = torch.cat([ZERO.unsqueeze(0), found.contexts[:-1, -1]])
    with torch.no_grad():
        layers = torch.stack(block.forward_with_intermediates(entering, embeds), dim=1)
    assert found.contexts.shape == (200, 3, 32)
    assert torch.allclose(found.contexts, layers, atol=1e-9, rtol=0)
    assert torch.allclose(found.contexts[:, -1], sequential_contexts(block, embeds, ZERO), atol=1e-9, rtol=0)


@pytest.mark.parametrize("segment_length", [40, 200])
def test_a_given_buffer_is_written_in_place(segment_length: int) -> None:
    block, embeds = make_block(num_layers=2), make_embeds(200)
    buffer = torch.full((200, 2, 32), math.nan, dtype=torch.float64)
    found = exact_contexts(block, embeds, ZERO, TIGHT, all_layers=True, segment_length=segment_length, out=buffer)
    assert found.contexts.data_ptr() == buffer.data_ptr()
    assert furthest(block, embeds, buffer[:, -1]) < 1e-9


def test_the_end_does_not_change_with_the_buffer() -> None:
    block, embeds = make_block(), make_embeds(50)
    found = exact_contexts(block, embeds, ZERO)
    before = found.end.clone()
    found.contexts.zero_()
    assert torch.equal(found.end, before)


def test_a_stream_that_computes_its_slices_gives_the_contexts_of_its_tensor() -> None:
    model = make_model(num_input_tokens=3)
    stream = StreamEmbeddings(model, make_tokens(300))
    initial = torch.zeros(6)
    lazily = exact_contexts(model.context_block, stream, initial, segment_length=50)
    whole = exact_contexts(model.context_block, stream[0:300], initial, segment_length=50)
    # By token type or by token, the token halves are other products: equal up to rounding.
    assert torch.allclose(lazily.contexts, whole.contexts, rtol=0, atol=2e-5)


def test_contexts_continue_where_a_stream_was_cut() -> None:
    block, embeds = make_block(), make_embeds(400)
    whole = exact_contexts(block, embeds, ZERO, TIGHT)
    head = exact_contexts(block, embeds[:150], ZERO, TIGHT)
    tail = exact_contexts(block, embeds[150:], head.end, TIGHT)
    assert torch.allclose(torch.cat([head.contexts, tail.contexts]), whole.contexts, atol=1e-9, rtol=0)


def test_contexts_carry_no_gradient() -> None:
    assert not exact_contexts(make_block(), make_embeds(20), ZERO).contexts.requires_grad


def test_float32_contexts_are_near_the_loops() -> None:
    block, embeds = make_block(dtype=torch.float32), make_embeds(1000, dtype=torch.float32)
    found = exact_contexts(block, embeds, ZERO.float(), segment_length=60)
    assert found.contexts.dtype == torch.float32
    assert furthest(block, embeds, found.contexts, ZERO.float()) < 1e-4


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_that_is_not_positive_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"expected tokens and tolerance > 0, given 5 and {tolerance}"):
        exact_contexts(make_block(), make_embeds(5), ZERO, tolerance)


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="expected tokens and tolerance > 0, given 0"):
        exact_contexts(make_block(), make_embeds(0), ZERO)


@pytest.mark.parametrize("segment_length", [None, 100])
def test_a_token_that_is_not_a_number_never_counts_as_success(segment_length: int | None) -> None:
    block, embeds = make_block(), make_embeds(1000)
    embeds[700] = math.nan
    with pytest.raises(NotFiniteError, match="finite"):
        exact_contexts(block, embeds, ZERO, segment_length=segment_length)


@pytest.mark.parametrize("segment_length", [None, 100])
def test_weights_that_are_not_numbers_never_count_as_success(segment_length: int | None) -> None:
    block = make_block()
    block.layers[0].from_context.weight.data[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="finite"):
        exact_contexts(block, make_embeds(1000), ZERO, segment_length=segment_length)


@pytest.mark.parametrize("segment_length", [None, 100])
def test_a_start_that_is_not_a_number_never_counts_as_success(segment_length: int | None) -> None:
    with pytest.raises(NotFiniteError, match="finite"):
        exact_contexts(make_block(), make_embeds(1000), ZERO + math.nan, segment_length=segment_length)


def test_the_horizon_is_extrapolated_past_a_short_probe() -> None:
    block = make_block((0.1, 0.2))
    embeds = make_embeds(1000)
    measured = start_distances(block, embeds.unsqueeze(0), stop_below=1e-10)
    probed = torch.stack([embeds[rows] for rows in probe_places(len(embeds))])
    expected = extrapolated_horizon(start_distances(block, probed, stop_below=1e-10), tolerance=1e-10)
    assert len(measured) > 250 >= MIN_PROBE_STEPS
    assert expected is not None and 0.5 < expected / len(measured) < 2
