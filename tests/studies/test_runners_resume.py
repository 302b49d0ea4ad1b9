"""A row that was interrupted, in either phase or in a network's training, is the uninterrupted one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import rng, save_always, stop_after
from network_helpers import JudgedNetwork, trained_and_judged
from test_baselines import VOCABULARY, cycle, small_config, small_model
from test_phase1_rows import figures
from test_runners import NETWORK, SMALL, run_one
from torch import Tensor

from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import RunError, read_json, write_json
from newllm_core.runs.progress import Seconds, Stopwatch
from newllm_core.studies.runners import CHECKPOINTS_FOLDER

LONG = {**NETWORK, "max_epochs": 3, "patience": 3, "dropout": 0.2}
THREE_EPOCHS = dataclasses.replace(SMALL, phase2=dataclasses.replace(SMALL.phase2, max_epochs=3, patience=3))


# --- networks -------------------------------------------------------------------------------------------------------


def noise(length: int, seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (length,), generator=rng(seed))


def train(network: str, folder: Path | None, seed: int = 4, text: Tensor | None = None) -> JudgedNetwork:
    """Of noise, from which nothing can be learned: the best weights are not the last ones."""
    config = small_config(
        network, dropout=0.2, cache_weight=0.2, num_heads=2, max_epochs=9, patience=3, learning_rate=0.05
    )
    place = folder and CheckpointPlace(folder, {"run": {"seed": seed}})
    text = noise(100, seed=1) if text is None else text
    return trained_and_judged(small_model(), text, noise(90, seed=2), config, seed, place)


def without_clocks(figure: Any) -> Any:
    """Without what a clock says, however deep."""
    if isinstance(figure, dict):
        return {name: without_clocks(value) for name, value in figure.items() if not name.endswith("seconds")}
    return [without_clocks(value) for value in figure] if isinstance(figure, list) else figure


@pytest.mark.parametrize("last", [False, True], ids=["after the best epoch", "after the last epoch"])
@pytest.mark.parametrize("network", ["gru", "lstm", "mingru", "gpt"])
def test_an_interrupted_network_goes_on_bit_for_bit(network: str, last: bool, tmp_path: Path) -> None:
    whole = train(network, None)
    assert whole.trained.best_epoch < len(whole.trained.epochs)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(network, len(whole.trained.epochs) if last else whole.trained.best_epoch, patch)
        train(network, tmp_path)
    resumed = train(network, tmp_path)
    assert torch.equal(resumed.nats, whole.nats) and resumed.trained.best_epoch == whole.trained.best_epoch
    assert without_clocks(resumed.trained.record()) == without_clocks(whole.trained.record())


def test_a_checkpoint_of_another_run_or_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_always(monkeypatch)
    train("gru", tmp_path)
    with pytest.raises(RunError, match="run.seed"):
        train("gru", tmp_path, seed=5)
    with pytest.raises(RunError, match="read.tokens"):
        train("gru", tmp_path, text=cycle(400))


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "training"),
    [("trained", "Phase 1"), ("best", "Phase 2"), ("shuffled", "Phase 2"), ("gru-cache", "gru")],
    ids=["phase 1", "phase 2", "changed contexts", "network"],
)
def test_an_interrupted_row_has_the_figures_of_an_uninterrupted_one(name: str, training: str, tmp_path: Path) -> None:
    data_dir, rows = tmp_path / "data", tmp_path / "rows"
    whole = run_one(name, THREE_EPOCHS, tmp_path / "whole", LONG, data_dir)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(training, 1, patch)
        run_one(name, THREE_EPOCHS, rows, LONG, data_dir)
    assert not list(rows.glob("*.json")) and list(rows.glob("**/checkpoint-*.json"))
    resumed = run_one(name, THREE_EPOCHS, rows, LONG, data_dir)
    assert without_clocks(figures(resumed)) == without_clocks(figures(whole))
    assert not list(rows.glob("**/checkpoint-*.json"))  # a finished row needs no checkpoint


@pytest.mark.parametrize(
    ("name", "training"),
    [("trained", "Phase 1"), ("untrained", "Phase 2"), ("gru", "gru")],
    ids=["phase 1", "phase 2", "network"],
)
def test_cpu_seconds_before_an_interruption_are_counted(
    name: str, training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(training, 1, patch)
        run_one(name, SMALL, tmp_path, NETWORK, tmp_path / "data")
    monkeypatch.setattr(Stopwatch, "resume", lambda self, _: setattr(self, "earlier", Seconds(1.0, 500.0)))
    assert 500 < run_one(name, SMALL, tmp_path, NETWORK, tmp_path / "data")["cpu_seconds"] < 560


def test_a_checkpoint_left_beside_a_finished_row_goes(tmp_path: Path) -> None:
    run_one("untrained", SMALL, tmp_path, {}, tmp_path / "data")
    (row,) = tmp_path.glob("*.json")
    left = tmp_path / CHECKPOINTS_FOLDER / row.stem / "checkpoint-000001-00000000.json"
    write_json(left, {})
    assert run_one("untrained", SMALL, tmp_path, {}, tmp_path / "data") == read_json(row)
    assert not left.exists()
