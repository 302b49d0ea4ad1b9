"""Several ranks against one: the same losses up to the order of sums, in float64, where a mistake could not hide."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, phase2_config, save_always
from network_helpers import trained_and_judged
from rank_helpers import doubles, on_ranks

from newllm_core import losses
from newllm_core.baselines import train as baseline_training
from newllm_core.baselines.registry import baseline_config
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.disk import RunError
from newllm_core.runs.world import current_world
from newllm_core.training import fixed_point, predictive
from newllm_core.training.loop import TrainingLoop
from newllm_core.training.phase1 import finish_phase1, train_phase1
from newllm_core.training.phase2 import train_phase2
from newllm_core.vision.experiment import run_vision
from newllm_core.vision.settings import VisionSettings

TRAIN, VALIDATION = make_tokens(430, seed=1), make_tokens(120, seed=2)
ITERATIONS = 20 if os.environ.get("NEWLLM_ALL_RANKS") else 3


def registered(contexts: torch.Tensor) -> torch.Tensor:
    """A loss that reads all rows at once and draws: a random order of them, neighbours pushed apart."""
    order = torch.randperm(len(contexts))
    return -(contexts[order[1:]] - contexts[order[:-1]]).abs().mean()


PREDICTIVE = {
    "prediction_streams": 5, "prediction_segment": 30, "prediction_negatives": 7, "learning_rate": 0.01,
    "dist_reg_weight": 0.3,
}  # fmt: skip
PHASE1: dict[str, dict[str, Any]] = {
    **{name: {"diversity_algorithm": name} for name in losses.DIVERSITY_ALGORITHMS},
    "a loss of one's own": {"diversity_algorithm": "own"},
    "exact": {"context_source": "exact", "diversity_algorithm": "ODCM"},
    "two layers": {"context_source": "exact", "num_layers": 2, "num_input_tokens": 2},
    "contrastive": {**PREDICTIVE, "objective": "contrastive", "diversity_algorithm": "SIGReg"},
    "regression": {**PREDICTIVE, "objective": "regression", "diversity_algorithm": "own", "num_layers": 2},
    "one batch": {"batch_tokens": 430, "context_source": "exact", "diversity_algorithm": "PR"},
}


def phase1_figures(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    with doubles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_point, "FIRST_TOLERANCE", 1e-13)
        patch.setattr(predictive, "FIRST_TOLERANCE", 1e-13)
        patch.setattr(predictive, "choose_head", lambda name, device: "blocks")  # some CPUs' way rounds to bfloat16
        losses.register_diversity_loss("own", "of this test", registered)
        return {name: phase1_case(**values) for name, values in cases.items()}


def phase1_case(num_layers: int = 1, num_input_tokens: int = 1, **values: Any) -> dict[str, Any]:
    torch.manual_seed(7)
    model = make_model(num_layers=num_layers, num_input_tokens=num_input_tokens).double()
    config = phase1_config(max_iterations=ITERATIONS, check_interval=5, **values)
    object.__setattr__(config, "context_tolerance", 1e-13)  # below what a config allows, for float32
    found = train_phase1(model, TRAIN, VALIDATION, config, seed=5)
    assert found.history is not None
    weights = torch.cat([value.flatten() for value in model.context_block.state_dict().values()])
    return {
        "losses": [
            [
                row.cvfp,
                row.diversity,
                row.total,
                row.gradient_norm,
                row.prediction or 0.0,
                row.validation_prediction or 0.0,
            ]
            for row in found.history.iterations
        ],
        "converged": [row.converged for row in found.history.iterations],
        "ranks": [row.train_rank.value for row in found.history.iterations],
        "best": found.history.best_iteration,
        "weights": weights.tolist(),
        "stale": found.history.stale_contexts.tolist() if current_world().is_first else None,
    }


PHASE2 = {
    "dropout": {"dropout": 0.2, "shuffle": True, "unigram_bias": True, "weight_decay": 0.1},
    "cache": {"cache_weight": 0.2, "schedule": "cosine", "unseen_sample": 5, "head": "direct"},
}


def phase2_figures(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    with doubles():
        return {name: phase2_case(**values) for name, values in cases.items()}


def phase2_case(**values: Any) -> dict[str, Any]:
    model = make_model().double()
    phase1 = finish_phase1(model, TRAIN, VALIDATION, None)
    config = phase2_config(max_epochs=3, **{"effective_batch_size": 61, **values})  # the last batch: of 2 tokens
    found = train_phase2(model, phase1, TRAIN, VALIDATION, config, seed=5)
    weights = torch.cat([value.flatten() for value in model.token_block.state_dict().values()])
    return {
        "epochs": [[row.train_loss, row.train_accuracy, row.validation_loss] for row in found.epochs],
        "best": found.best_epoch,
        "nats": found.validation.nats.tolist(),
        "weights": weights.tolist(),
    }


# Five streams: unequal parts. Dropout is drawn for all of them, in the recurrence's layers and in attention.
_NETWORK = {"num_streams": 5, "segment_tokens": 20, "max_epochs": 2, "dropout": 0.3, "unseen_sample": 5}
BASELINES: dict[str, dict[str, Any]] = {
    "gru": {"num_layers": 2, "width": 6}, "lstm": {"cache_weight": 0.2, "width": 6},
    "mingru": {"width": 6, "num_layers": 2}, "gpt": {"width": 8, "num_layers": 2},
}  # fmt: skip


def baseline_figures(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    with doubles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline_training, "choose_head", lambda name, device: "blocks")  # without rounded products
        return {name: baseline_case(name) for name in names}


def baseline_case(name: str, place: CheckpointPlace | None = None) -> dict[str, Any]:
    model = make_model().double()
    config = baseline_config(name, embed_dim=model.config.embed_dim, **{**_NETWORK, **BASELINES[name]})
    found = trained_and_judged(model, TRAIN, VALIDATION, config, 5, place)
    return {
        "epochs": [[row.train_loss, row.validation_loss, row.learning_rate] for row in found.trained.epochs],
        "best": found.trained.best_epoch,
        "nats": found.nats.tolist(),
    }


def difference(one: Any, other: Any) -> float:
    return float((torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)).abs().max())


# All of them take minutes on two cores: NEWLLM_ALL_RANKS=1 pytest -n 0 tests/training/test_ranks.py
EVERYTHING = bool(os.environ.get("NEWLLM_ALL_RANKS"))
DEFAULT = ("ODCM", "a loss of one's own", "exact", "contrastive")
PHASE1_CASES = PHASE1 if EVERYTHING else {name: PHASE1[name] for name in DEFAULT}
PHASE2_CASES = PHASE2 if EVERYTHING else {"dropout": PHASE2["dropout"]}
BASELINE_CASES = tuple(BASELINES) if EVERYTHING else ("gpt",)


def all_figures() -> dict[str, dict[str, Any]]:
    return phase1_figures(PHASE1_CASES) | phase2_figures(PHASE2_CASES) | baseline_figures(BASELINE_CASES)


@pytest.mark.parametrize("size", [2, 3, 4] if EVERYTHING else [3])
def test_ranks_give_the_losses_of_one_rank(size: int) -> None:
    alone = all_figures()
    for rank, found in enumerate(on_ranks(size, all_figures)):
        assert isinstance(found, dict), found
        for name, expected in alone.items():
            for figure, value in found[name].items():
                if value is not None:
                    apart = difference(value, expected[figure])
                    print(f"{size} ranks, {name}, {figure} of rank {rank}: {apart:.1e}")
                    assert apart < 1e-8, (rank, name, figure, apart)


def with_checkpoints(folder: Path, killed_at: tuple[str, int, int] | None) -> dict[str, Any]:
    """Both phases and a baseline with a checkpoint after every step; rank 1 is killed at (training, passes, steps)."""
    one_step = TrainingLoop._save_if_due

    def save_then_die(loop: TrainingLoop[Any]) -> None:
        one_step(loop)
        if loop.world.rank == 1 and (loop.name, len(loop.rows), loop.within.steps) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with doubles(), pytest.MonkeyPatch.context() as patch:
        save_always(patch)
        patch.setattr(fixed_point, "FIRST_TOLERANCE", 1e-13)
        patch.setattr(TrainingLoop, "_save_if_due", save_then_die)
        patch.setattr(baseline_training, "choose_head", lambda name, device: "blocks")
        model = make_model().double()
        config = phase1_config(max_iterations=4, diversity_algorithm="ODCM")
        phase1 = train_phase1(model, TRAIN, VALIDATION, config, 5, CheckpointPlace(folder / "1", {}))
        few = phase2_config(effective_batch_size=61, max_epochs=2)
        phase2 = train_phase2(model, phase1, TRAIN, VALIDATION, few, 5, CheckpointPlace(folder / "2", {}))
        baseline = baseline_case("gru", CheckpointPlace(folder / "gru", {}))
        assert phase1.history is not None
        return {
            "baseline": baseline["epochs"],
            "losses": [[row.cvfp, row.diversity] for row in phase1.history.iterations],
            "stale": phase1.history.stale_contexts.tolist() if current_world().is_first else None,
            "epochs": [[row.train_loss, row.validation_loss] for row in phase2.epochs],
            "best": [phase1.history.best_iteration, phase2.best_epoch],
        }


def test_a_killed_rank_stops_the_others_and_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    whole = with_checkpoints(tmp_path / "whole", None)
    folder = tmp_path / "killed"
    for size, killed_at in ((2, ("Phase 1", 2, 0)), (3, ("Phase 2", 1, 3)), (2, ("gru", 1, 2))):
        answers = on_ranks(size, with_checkpoints, folder, killed_at)
        assert answers[1] == "ended without an answer"
        for rank in {*range(size)} - {1}:
            assert "LostRankError" in answers[rank] and "another rank has ended" in answers[rank], answers[rank]
    for found in on_ranks(2, with_checkpoints, folder, None):
        for figure, value in found.items():
            assert value is None or difference(value, whole[figure]) < 1e-8, figure


def test_image_runs_are_refused_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="image runs: expected one process, given 2 of torchrun"):
        run_vision(VisionSettings(), tmp_path)
    assert not list(tmp_path.iterdir())
