"""A text whose contexts do not fit into the memory budget is trained on as one that fits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, phase2_config, state_of, stop_after
from torch import Tensor

from newllm_core.contexts import shooting, store
from newllm_core.model import NewLLM
from newllm_core.runs import host_memory, mapped, tensor_pieces
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.host_memory import room_bytes, set_memory_budget
from newllm_core.runs.mapped import is_mapped
from newllm_core.training.phase1 import Phase1Result, train_phase1
from newllm_core.training.phase2 import Phase2Result, train_phase2

TRAIN, VALIDATION = make_tokens(450, seed=1), make_tokens(60, seed=2)
PREDICTIVE = {"prediction_streams": 3, "prediction_segment": 40, "prediction_negatives": 5}
KINDS: dict[str, dict[str, Any]] = {
    "exact": {"context_source": "exact"},
    "stale": {"context_source": "previous_iteration"},
    "contrastive": {"objective": "contrastive", **PREDICTIVE},
}


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No room at all, chunks of some tokens, and pages given back at once."""
    monkeypatch.setattr(host_memory, "_budget_bytes", 1.0)
    monkeypatch.setattr(store, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(mapped, "MOST_RESIDENT_BYTES", -(2**62))
    monkeypatch.setattr(mapped, "_PIECE_BYTES", 400)
    monkeypatch.setattr(tensor_pieces, "LARGE_BYTES", 1000)
    monkeypatch.setattr(shooting, "_LEAST_CHUNK", 200)
    monkeypatch.setattr(shooting, "_CHUNK_NUMBERS", {"cpu": 1})


def trained(values: dict[str, Any], folder: Path | None = None) -> tuple[NewLLM, Phase1Result, Phase2Result]:
    torch.manual_seed(5)
    model = make_model(num_layers=2)
    places = [folder and CheckpointPlace(folder / name, {}) for name in ("one", "two")]
    phase1 = train_phase1(model, TRAIN, VALIDATION, phase1_config(max_iterations=2, **values), 5, places[0])
    config = phase2_config(shuffle_segment=4, max_epochs=1)
    return model, phase1, train_phase2(model, phase1, TRAIN, VALIDATION, config, 5, places[1])


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_in_files_give_the_figures_of_contexts_in_memory(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, inside, expected = trained(KINDS[kind])
    assert not is_mapped(inside.train_contexts)
    request.getfixturevalue("in_files")
    model, outside, found = trained(KINDS[kind])
    assert is_mapped(outside.train_contexts)
    assert torch.allclose(outside.train_contexts, inside.train_contexts, rtol=0, atol=1e-3)
    assert found.validation.mean_nats == pytest.approx(expected.validation.mean_nats, abs=1e-4)

    for name, count, steps in (("Phase 1", 1, 0), ("Phase 2", 0, 5)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(name, count, patch, steps)
            trained(KINDS[kind], tmp_path / name)
        resumed, _, again = trained(KINDS[kind], tmp_path / name)
        assert again.epochs == found.epochs
        assert all(torch.equal(*pair) for pair in zip(values_of(resumed), values_of(model), strict=True))


def values_of(model: NewLLM) -> list[Tensor]:
    return list(state_of(model).values())


def test_a_budget_is_what_the_process_may_still_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "free_memory_bytes", lambda: 2**40)
    monkeypatch.setattr(host_memory, "_budget_bytes", 0.0)
    set_memory_budget(10.0)
    assert 0 < room_bytes() < 10 * 2**30
    set_memory_budget(1e-6)
    assert room_bytes() == 0
    set_memory_budget(None)
    assert room_bytes() == 2**40
