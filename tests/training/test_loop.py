"""What all trainings have from their one loop: resumption anywhere, checkpoints, signals, out-of-memory retries."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, phase2_config, save_always, state_of, stop_after
from network_helpers import trained_and_judged
from test_baselines import cycle, small_config, small_model
from torch import Tensor

from newllm_core.baselines.networks import MinGruNetwork, RecurrentNetwork
from newllm_core.config.hyperparameters import RunConfig
from newllm_core.gpu_memory import DeviceBatch
from newllm_core.losses import NotFiniteError
from newllm_core.runs import checkpoint as checkpoint_module
from newllm_core.runs.checkpoint import CheckpointBudget, CheckpointPlace
from newllm_core.runs.files import RunError
from newllm_core.training.batch_gradient import BatchGradient
from newllm_core.training.loop import TrainingLoop
from newllm_core.training.phase1 import finish_phase1, train_phase1
from newllm_core.training.phase2 import train_phase2
from newllm_core.training.predictive import PredictivePass
from newllm_core.vision.config import VisionDataConfig, VisionModelConfig, VisionTrainConfig, augmentation_pack
from newllm_core.vision.data import load_image_data
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.settings import VisionSettings
from newllm_core.vision.training import train_vision

TRAIN, VALIDATION = make_tokens(200, seed=1), make_tokens(80, seed=2)
PREDICTIVE = {
    "objective": "contrastive", "prediction_streams": 4, "prediction_segment": 20, "prediction_negatives": 5,
    "prediction_dropout": 0.2, "context_noise": 0.1,
}  # fmt: skip
COLOUR = VisionSettings(
    data=VisionDataConfig(dataset="colour", image_size=16, num_train_images=48),
    model=VisionModelConfig(image_size=16, num_classes=3, width=16, depth=1, heads=2, patch=2, stem="tiny"),
    augmentation=augmentation_pack("off"),
    train=VisionTrainConfig(epochs=3, warmup_epochs=1, batch_size=16),
    run=RunConfig(num_threads=1),
)
Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]  # rows, kept weights


def phase1(place: CheckpointPlace | None, **values: Any) -> Outcome:
    model = make_model()
    config = phase1_config(**{"max_iterations": 3, **values})
    history = train_phase1(model, TRAIN, VALIDATION, config, 5, place).history
    assert history is not None
    return [dataclasses.asdict(row) for row in history.iterations], state_of(model.context_block)


def phase2(place: CheckpointPlace | None) -> Outcome:
    model = make_model()
    config = phase2_config(max_epochs=3, dropout=0.2, effective_batch_size=64, schedule="cosine", learning_rate=0.01)
    contexts = finish_phase1(model, TRAIN, VALIDATION, None)
    result = train_phase2(model, contexts, TRAIN, VALIDATION, config, 5, place)
    kept = {**state_of(model.token_block), "nats": result.validation.nats}
    return [dataclasses.asdict(row) for row in result.epochs], kept


def network(place: CheckpointPlace | None, kind: str = "gru") -> Outcome:
    config = small_config(kind, max_epochs=3, patience=3, dropout=0.2, num_heads=2)
    result = trained_and_judged(small_model(), cycle(100), cycle(60), config, 5, place)
    return [dataclasses.asdict(row) for row in result.trained.epochs], {"nats": result.nats}


def nkat(place: CheckpointPlace | None) -> Outcome:
    torch.manual_seed(3)
    result = train_vision(load_image_data(COLOUR.data), COLOUR, torch.device("cpu"), place, show_progress=False)
    return [dataclasses.asdict(row) for row in result.epochs], state_of(result.model)


# By what is shown: the training's name in messages, how it is started, and steps of a pass after which it is stopped.
TRAININGS: dict[str, tuple[str, Callable[[CheckpointPlace | None], Outcome], list[int]]] = {
    "fixed point": ("Phase 1", phase1, [0]),
    "predictive": ("Phase 1", lambda place: phase1(place, **PREDICTIVE), [0, 1, 2]),
    "phase 2": ("Phase 2", phase2, [0, 1, 4]),
    "gru": ("gru", network, [0, 1, 2]),
    "mingru": ("mingru", lambda place: network(place, "mingru"), [1]),
    "lstm": ("lstm", lambda place: network(place, "lstm"), [1]),
    "nkat": ("NKAT", nkat, [0, 1, 3]),
}


def place_in(folder: Path) -> CheckpointPlace:
    return CheckpointPlace(folder, {"run": {"seed": 5}})


def assert_same(found: Outcome, expected: Outcome) -> None:
    rows = [[{**row, "seconds": None} for row in outcome[0]] for outcome in (found, expected)]
    assert rows[0] == rows[1]
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def interrupt(kind: str, place: CheckpointPlace, passes: int, steps: int) -> None:
    name, train, _ = TRAININGS[kind]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(name, passes, patch, steps)
        train(place)


# --- resumption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_interrupted_again_and_again_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """After every pass, and within every pass."""
    _, train, all_steps = TRAININGS[kind]
    expected = train(None)
    for passes in range(len(expected[0]) + 1):
        for steps in all_steps:
            if (passes, steps) != (0, 0) and not (passes == len(expected[0]) and steps):
                interrupt(kind, place_in(tmp_path), passes, steps)
                torch.manual_seed(99)  # another session's generator
    assert_same(train(place_in(tmp_path)), expected)


def test_what_did_not_fit_is_not_tried_again_by_the_next_session(tmp_path: Path) -> None:
    one_pass, seen = TrainingLoop._pass, list[tuple[int, bool]]()

    def short_of_memory(loop: TrainingLoop[Any], number: int) -> Any:
        if number == 1:
            loop.device_batch.size, loop.device_batch.records = 20, False
        seen.append((loop.device_batch.size, loop.device_batch.records))
        return one_pass(loop, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_pass", short_of_memory)
        interrupt("phase 2", place_in(tmp_path), 1, 0)
        phase2(place_in(tmp_path))
    assert seen == [(20, False)] * 3


@pytest.mark.parametrize("ending", ["safetensors", "pt", "json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt("phase 2", place_in(tmp_path), 2, 0)
    old, new = sorted(tmp_path.glob(f"*.{ending}"))
    content = new.read_bytes()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    # One digit, after which it is good JSON still.
    new.write_bytes(content.replace(b'"epoch": 1', b'"epoch": 9') if ending == "json" else damaged)
    assert_same(phase2(place_in(tmp_path)), phase2(None))
    assert f"{new.name}: the file " in caplog.text and "looking for the checkpoint before" in caplog.text


def test_a_checkpoint_without_its_last_file_is_none(tmp_path: Path) -> None:
    """What a kill within the writing leaves."""
    interrupt("phase 2", place_in(tmp_path), 1, 0)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert_same(phase2(place_in(tmp_path)), phase2(None))


def test_two_checkpoints_are_kept_and_nothing_that_was_left_half_written(tmp_path: Path) -> None:
    (tmp_path / ".000000-00000001.pt.host-1.x.partial").mkdir()
    for name in ("000000-00000001.safetensors", ".000000-00000001.pt.host-1.x.partial/content"):
        (tmp_path / name).write_bytes(b"half")
    interrupt("phase 2", place_in(tmp_path), 2, 0)
    assert len(list(tmp_path.iterdir())) == 6


# --- when checkpoints are written -----------------------------------------------------------------------------------


def test_checkpoints_take_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "perf_counter", lambda: now[0])
    budget, cost, saved = CheckpointBudget(), 2.0, []
    while now[0] < 2000:
        now[0] += 1
        if budget.allows(lambda: {"w": torch.zeros(1)}):
            with budget.timed("here"):
                now[0] += cost
            saved.append(now[0])
    assert 5 <= saved[0] - cost <= 7  # one file's guess, before the first was timed
    assert saved[1] - saved[0] > 100 and 0.005 < cost * len(saved) / now[0] <= 0.01


@pytest.mark.usefixtures("asked_by_signals")
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("kind", ["fixed point", "phase 2", "gru", "nkat"])
def test_a_signal_saves_first_and_says_how_to_go_on(
    kind: str, number: signal.Signals, raised: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, train, steps = TRAININGS[kind]
    before, save_if_due = signal.getsignal(number), TrainingLoop._save_if_due

    def send_then_look(loop: TrainingLoop[Any]) -> None:
        if (len(loop.rows), loop.within.steps) == (1, steps[-1]):
            os.kill(os.getpid(), number)
        save_if_due(loop)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(raised):
        patch.setattr(TrainingLoop, "_save_if_due", send_then_look)
        train(place_in(tmp_path))
    assert "run the same again to go on from there" in caplog.text and len(list(tmp_path.glob("*.json"))) == 1
    assert signal.getsignal(number) is before
    assert_same(train(place_in(tmp_path)), train(None))


@pytest.mark.usefixtures("asked_by_signals")
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(loop: TrainingLoop[Any]) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLoop, "_save_if_due", twice)
        phase2(place_in(tmp_path))
    assert not list(tmp_path.iterdir())


# --- not finite -----------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_always(monkeypatch)

    def spoil(loop: TrainingLoop[Any]) -> None:
        if len(loop.rows) == 1 and loop.within.steps == 2:
            next(iter(loop.parts["model"].state_dict().values()))[0] = math.nan
        save_if_due(loop)

    save_if_due = TrainingLoop._save_if_due
    monkeypatch.setattr(TrainingLoop, "_save_if_due", spoil)
    message = "Phase 2, epoch 2: model.0 is nan. Training stops here; the last checkpoint, after 1 epochs and 1 steps,"
    with pytest.raises(NotFiniteError, match=message):
        phase2(place_in(tmp_path))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    interrupt("phase 2", place_in(tmp_path), 1, 0)
    with pytest.raises(RunError, match="run.seed = 5, asked for 6"):
        phase2(CheckpointPlace(tmp_path, {"run": {"seed": 6}}))


# --- memory ---------------------------------------------------------------------------------------------------------


# What computes the rows of a step, and how many fit: half of them.
LIMITED: dict[str, tuple[type, str, int]] = {
    "fixed point": (BatchGradient, "forward", 50), "predictive": (PredictivePass, "_contexts", 2),
    "gru": (RecurrentNetwork, "forward", 2), "lstm": (RecurrentNetwork, "forward", 2),
    "mingru": (MinGruNetwork, "forward", 2), "nkat": (NkatModel, "forward", 8),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITED)
def test_out_of_memory_gives_the_figures_of_the_smaller_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, fits = LIMITED[kind]
    create, compute, sizes = DeviceBatch.__init__, getattr(owner, method), list[int]()

    def small(batch: DeviceBatch, device: torch.device, size: int, *others: Any) -> None:
        create(batch, device, fits, *others)

    def limited(module: Any, rows: Tensor, *others: Any) -> Any:
        outputs = compute(module, rows, *others)
        if torch.is_grad_enabled():
            sizes.append(len(rows))
            if len(rows) > fits:  # once it was computed: what a failed attempt drew and summed must not count
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(DeviceBatch, "__init__", small)
        expected = TRAININGS[kind][1](None)
    monkeypatch.setattr(owner, method, limited)
    assert_same(TRAININGS[kind][1](None), expected)
    assert sizes[0] == 2 * fits and set(sizes[1:]) <= set(range(1, fits + 1))
