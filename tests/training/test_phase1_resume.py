"""Phase 1 killed within itself and started again is the uninterrupted one, to the last bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, state_of, stop_after
from test_experiment import SMALL, run_small

from newllm_core.experiment.phase1_cache import PHASE1_CHECKPOINT
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import RunError
from newllm_core.runs.identity import figures_of
from newllm_core.training import phase1 as phase1_module
from newllm_core.training.phase1 import Phase1History, train_phase1

TRAIN, VALIDATION = make_tokens(300, seed=1), make_tokens(120, seed=2)
SEED = 5
PREDICTIVE = {"prediction_streams": 3, "prediction_segment": 7, "prediction_negatives": 5, "context_noise": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "exact": {"context_source": "exact", "check_interval": 2},
    "stale, random slices": {"context_source": "previous_iteration", "diversity_algorithm": "SIGReg"},
    # The first check is due after the interruption.
    "late check": {"check_interval": 5},
    "contrastive": {"objective": "contrastive", **PREDICTIVE},
    # Stops early, after the interruption, by a count of checks that began before it.
    "patience": {"max_iterations": 9, "min_iterations": 1, "patience": 2, "learning_rate": 1.0, "context_noise": 0.0},
    "regression": {"objective": "regression", "diversity_algorithm": "ODCM", **PREDICTIVE},
}


def train(
    values: dict[str, Any], folder: Path | None, seed: int = SEED
) -> tuple[Phase1History, dict[str, torch.Tensor]]:
    model = make_model()
    config = phase1_config(**{"max_iterations": 6, "min_iterations": 6, "check_interval": 1, **values})
    place = folder and CheckpointPlace(folder, {"phase1": dataclasses.asdict(config), "run": {"seed": seed}})
    history = train_phase1(model, TRAIN, VALIDATION, config, seed, place).history
    assert history is not None
    return history, state_of(model.context_block)


def interrupt(values: dict[str, Any], folder: Path, iteration: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 1", iteration, patch)
        torch.manual_seed(SEED)
        train(values, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_phase_1_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(SEED)  # what the slices of SIGReg are drawn from
    whole, weights = train(KINDS[kind], None)
    assert whole.stopped_early == (kind == "patience")
    for iteration in (1, len(whole.iterations) - 1):
        interrupt(KINDS[kind], tmp_path / str(iteration), iteration)
        torch.manual_seed(99)  # another session's generator
        resumed, resumed_weights = train(KINDS[kind], tmp_path / str(iteration))
        assert resumed.iterations == whole.iterations and resumed.best_iteration == whole.best_iteration
        assert resumed.untrained_rank == whole.untrained_rank and resumed.stopped_early == whole.stopped_early
        assert resumed.stale_contexts is not None and whole.stale_contexts is not None
        assert torch.equal(resumed.stale_contexts, whole.stale_contexts)
        assert all(torch.equal(resumed_weights[name], weights[name]) for name in weights)


def test_finished_iterations_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt({}, tmp_path, 4)
    passes: list[int] = []
    iterate = phase1_module.CvfpPass.iterate
    monkeypatch.setattr(
        phase1_module.CvfpPass, "iterate", lambda self, number: (passes.append(number), iterate(self, number))[1]
    )
    train({}, tmp_path)
    assert passes == [5, 6]


def test_short_runs_write_no_checkpoint(tmp_path: Path) -> None:
    train({}, tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt({}, tmp_path, 2)
    monkeypatch.setitem(globals(), "TRAIN", make_tokens(300, seed=3))
    with pytest.raises(RunError, match="read.tokens"):
        train({}, tmp_path)
    with pytest.raises(RunError, match="run.seed"):
        train({}, tmp_path, seed=6)


def test_an_experiment_interrupted_within_phase_1_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run_small(tmp_path / "whole", tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 1", 1, patch)
        run_small(tmp_path / "resumed", tmp_path / "data", SMALL)
    place = tmp_path / "resumed" / "phase1" / PHASE1_CHECKPOINT
    assert place.is_dir()
    assert figures_of(run_small(tmp_path / "resumed", tmp_path / "data")) == figures_of(whole)
    assert not place.exists()
