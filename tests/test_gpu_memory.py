"""Batch sizes that fit, and halving them when they did not. No GPU: memory figures and errors are substituted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core import gpu_memory
from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.gpu_memory import (
    blocked_head_batch_size,
    context_cache_gb,
    device_batch_size,
    device_memory_gb,
    direct_head_batch_size,
    find_executable,
    is_out_of_memory,
)

MODEL = ModelConfig(context_dim=500, embed_dim=384)
CUDA = torch.device("cuda")


def test_the_direct_rule_gives_the_notes_figure() -> None:
    assert direct_head_batch_size(22.2, 13.8, 50257) == 3204


def test_the_direct_rule_by_hand() -> None:
    # 4 GiB free, a quarter of it, 100,000 · 4 B · 3.5 a token: 1,073,741,824 / 1,400,000
    assert direct_head_batch_size(10.0, 6.0, 100_000) == 766


def test_the_calculation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="newllm"):
        direct_head_batch_size(22.2, 13.8, 50257)
        blocked_head_batch_size(22.2, 13.8, MODEL)
    assert "22.2 GiB total, 13.8 allocated, 704 kB a token -> 3204 tokens fit" in caplog.text
    assert "blocked head: 22.2 GiB total" in caplog.text


def test_batches_are_clamped() -> None:
    assert direct_head_batch_size(24, 24, 50257) == 256
    assert direct_head_batch_size(1000, 0, 50257) == 16_384
    assert blocked_head_batch_size(24, 24, MODEL) == blocked_head_batch_size(0.3, 0, MODEL) == 256
    assert blocked_head_batch_size(1000, 0, MODEL) == 65_536


@given(st.floats(0, 100), st.floats(0, 100), st.integers(2, 300_000))
@settings(deadline=None)
def test_more_free_memory_never_means_smaller_batches(one: float, other: float, vocab: int) -> None:
    less, more = sorted((one, other))
    assert 256 <= direct_head_batch_size(less, 0, vocab) <= direct_head_batch_size(more, 0, vocab) <= 16_384
    assert direct_head_batch_size(more, more - less, vocab) <= direct_head_batch_size(more, 0, vocab)
    assert 256 <= blocked_head_batch_size(less, 0, MODEL) <= blocked_head_batch_size(more, 0, MODEL) <= 65_536


def test_without_logits_far_larger_batches_fit() -> None:
    assert blocked_head_batch_size(6, 1, MODEL) > 10 * direct_head_batch_size(6, 1, 50257)


@pytest.mark.parametrize(("total", "allocated"), [(10.0, 10.1), (10.0, -1.0), (float("nan"), 1.0)])
def test_memory_figures_that_cannot_be_are_refused(total: float, allocated: float) -> None:
    message = f"expected 0 <= allocated <= total GiB, given {allocated} of {total}"
    with pytest.raises(ValueError, match=message):
        direct_head_batch_size(total, allocated, 50257)
    with pytest.raises(ValueError, match=message):
        blocked_head_batch_size(total, allocated, MODEL)


def test_memory_is_read_after_synchronising_and_emptying_and_is_the_allocated_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class Properties:
        total_memory = 24 * 2**30

    def allocated(device: torch.device) -> int:
        calls.append("allocated")
        return 6 * 2**30

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "memory_allocated", allocated)
    assert device_memory_gb(CUDA) == (24.0, 6.0)
    assert calls == ["synchronize", "empty_cache", "allocated"]


@pytest.mark.parametrize(
    ("method", "effective", "expected"),
    [("direct", 10_000, 3204), ("direct", 512, 512), ("blocks-bf16", 10**6, 65_536)],
)
def test_a_gpu_computes_what_fits_but_never_more_than_the_effective_batch(
    method: str, effective: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_memory, "device_memory_gb", lambda device: (22.2, 13.8))
    assert device_batch_size(CUDA, effective, method, MODEL, 50257) == expected


def test_a_cpu_computes_the_effective_batch_at_once() -> None:
    assert device_batch_size(torch.device("cpu"), 70_000, "direct", MODEL, 50257) == 70_000


def test_the_cache_of_500_samples_is_the_notes_figure() -> None:
    # 530,000 training and 31,024 validation tokens, L = 6, C = 768: the notes' 10.3 GB are decimal.
    gibibytes = context_cache_gb(530_000 + 31_024, num_layers=6, context_dim=768)
    assert gibibytes * 2**30 / 1e9 == pytest.approx(10.3, abs=0.05)
    assert context_cache_gb(2**28, 1, 1) == 1.0


CUDA_ERROR = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
MEMORY_ERRORS = [
    CUDA_ERROR,
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_memory_errors_are_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_not_about_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def attempts(error: Exception, fits: int, batch_size: int) -> tuple[list[int], int]:
    """Sizes tried where ``error`` is raised above ``fits`` tokens, and the size that went through."""
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > fits:
            raise error

    return tried, find_executable(attempt, batch_size)


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_the_batch_is_halved_until_it_fits(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert attempts(error, fits=100, batch_size=1000) == ([1000, 500, 250, 125, 63], 63)
    assert "out of memory at 1000 rows at once; trying 500" in caplog.text


def test_a_batch_that_fits_is_tried_once() -> None:
    assert attempts(CUDA_ERROR, fits=7, batch_size=7) == ([7], 7)


def test_a_token_alone_is_the_last_attempt() -> None:
    assert attempts(CUDA_ERROR, fits=1, batch_size=5) == ([5, 3, 2, 1], 1)


def test_when_not_even_one_token_fits_the_error_is_raised() -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        raise CUDA_ERROR

    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate"):
        find_executable(attempt, 3)
    assert tried == [3, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_pass_at_once(error: Exception) -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        raise error

    with pytest.raises(type(error), match=str(error)):
        find_executable(attempt, 64)
    assert tried == [64]


def test_what_a_failed_attempt_held_is_released_before_the_next() -> None:
    alive: list[int] = []

    class Held:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def attempt(size: int) -> None:
        assert not alive
        held = Held()
        if size > 2:
            raise torch.cuda.OutOfMemoryError(f"out of memory beside {held}")

    assert find_executable(attempt, 8) == 2


def test_the_cache_of_a_gpu_is_emptied_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    attempts(CUDA_ERROR, fits=2, batch_size=8)
    assert len(emptied) == 2
