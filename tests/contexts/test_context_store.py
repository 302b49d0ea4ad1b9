"""Where contexts are kept, and the batches that leave there."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.contexts import store as context_store
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import Batch, allocate_contexts, context_batches
from newllm_core.model import ContextBlock

CPU = torch.device("cpu")


def with_free_bytes(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(context_store, "room_bytes", lambda: free)


def test_a_cache_that_fits_is_in_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with_free_bytes(monkeypatch, 2 * 6 * 2 * 4 * 4)
    assert allocate_contexts(6, 2, 4, CPU).shape == (6, 2, 4)
    assert not caplog.records


def test_a_cache_beyond_half_of_memory_is_a_file_with_the_same_contexts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block, embeds = ContextBlock(4, 3, num_layers=2), torch.randn(50, 3)
    with_free_bytes(monkeypatch, 2 * 50 * 2 * 4 * 4 - 1)
    cache = allocate_contexts(50, 2, 4, CPU)
    assert "kept in a file" in caplog.text
    exact_contexts(block, embeds, torch.zeros(4), out=cache)
    assert torch.equal(cache, exact_contexts(block, embeds, torch.zeros(4), all_layers=True).contexts)


@pytest.mark.parametrize(("free_gb", "on_device"), [(1.0, True), (1e-9, False)])
def test_a_gpu_keeps_the_cache_while_it_fits(monkeypatch: pytest.MonkeyPatch, free_gb: float, on_device: bool) -> None:
    places: list[torch.device | None] = []
    empty = torch.empty

    def watched(shape: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
        places.append(device)
        return empty(shape)

    monkeypatch.setattr(context_store, "device_memory_gb", lambda device: (2.0, 2.0 - free_gb))
    monkeypatch.setattr(context_store.torch, "empty", watched)
    allocate_contexts(10, 1, 4, torch.device("cuda"))
    assert places == [torch.device("cuda") if on_device else None]


@given(st.integers(2, 40), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_batches_hold_the_context_the_token_and_the_token_after(num_tokens: int, size: int) -> None:
    contexts, tokens = torch.randn(num_tokens, 2, 3), torch.randint(0, 99, (num_tokens,))
    positions = torch.randperm(num_tokens - 1)
    batches = list(context_batches(contexts, tokens, positions.split(size)))
    assert torch.equal(torch.cat([batch.contexts for batch in batches]), contexts[positions])
    assert torch.equal(torch.cat([batch.tokens for batch in batches]), tokens[positions])
    assert torch.equal(torch.cat([batch.targets for batch in batches]), tokens[positions + 1])
    assert all(batch.contexts.is_contiguous() for batch in batches)


def test_batches_that_travel_come_in_order_and_are_fetched_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    # Contexts on the `meta` device stand for contexts that are not where the tokens are; what would travel is replaced.
    fetched: list[int] = []
    tokens = torch.arange(8)

    class Elsewhere:
        device = torch.device("meta")

        def index_select(self, dim: int, rows: torch.Tensor) -> "Elsewhere":
            fetched.append(int(rows.shape[0]))
            return self

        def pin_memory(self) -> "Elsewhere":
            return self

        def to(self, device: torch.device, non_blocking: bool) -> torch.Tensor:
            return torch.zeros(1)

    batches = context_batches(Elsewhere(), tokens, torch.arange(6).split(2))  # type: ignore[arg-type]
    assert next(batches).tokens.tolist() == [0, 1]
    assert [batch.tokens.tolist() for batch in batches] == [[2, 3], [4, 5]]
    assert fetched == [2, 2, 2]


def test_a_batch_splits_into_consecutive_parts() -> None:
    batch = Batch(torch.randn(5, 1, 2), torch.arange(5), torch.arange(1, 6))
    parts = batch.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
