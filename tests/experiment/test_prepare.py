"""What is refused before anything is trained: texts too short, a full disk; always with the numbers."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_helpers import conversation, file_config, write_jsonl

from newllm_core.config.hyperparameters import ModelConfig, Phase1Config, Phase2Config, RunConfig
from newllm_core.data.errors import DataError
from newllm_core.experiment.record_keys import check_run_record
from newllm_core.experiment.run import run_experiment
from newllm_core.metrics.forgetting import MIN_FORGETTING_TOKENS
from newllm_core.report import plot_epochs, plot_forgetting, plot_phase1, plot_spectrum, report
from newllm_core.runs.files import RunError

MODEL = ModelConfig(context_dim=24, embed_dim=16)
PHASE1 = Phase1Config(max_iterations=5, effective_rank_tokens=300, validation_passes=3)
SHORT, LONG = "Rain", "We walked along the river until the old bridge, and it rained again. " * 20


def run(folder: Path, train: str, validation: str, **changes: Any) -> dict[str, Any]:
    path = write_jsonl(folder / "mine.jsonl", [conversation(validation), conversation(train)])
    data = file_config(path, num_samples=1, validation_range=(0, 1), embeddings="random")
    model = dataclasses.replace(MODEL, **changes.pop("model", {}))
    phase1, phase2 = dataclasses.replace(PHASE1, **changes), Phase2Config(max_epochs=1, effective_batch_size=64)
    sections = RunConfig(num_threads=1, device="cpu")
    return run_experiment(data, model, phase1, phase2, folder / "run", run=sections, data_dir=folder / "data")


def nothing_was_trained(folder: Path) -> bool:
    return not [path for path in (folder / "run").rglob("*") if path.suffix in (".json", ".safetensors")]


@pytest.mark.parametrize(
    ("train", "validation", "changes", "message"),
    [
        (LONG, SHORT, {}, r"validation_range \(0, 1\) holds 1 token; expected at least 2"),
        (SHORT, LONG, {}, "training conversations 1 to 1 hold 1 tokens; expected at least 2, .* Raise num_samples"),
        (
            "Rain and wind", LONG, {"objective": "contrastive", "dist_reg_weight": 0.0},
            "training conversations 1 to 1 hold 3 tokens; expected at least 32, 2 for each of prediction_streams=16",
        ),
        (
            "Rain and wind", LONG, {"model": {"initial_exponent": -0.1}},
            "training conversations 1 to 1 hold 3 tokens; expected at least 64, from which",
        ),
    ],
)  # fmt: skip
def test_text_that_cannot_be_trained_or_judged_on_is_named(
    train: str, validation: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"mine.jsonl: {message}"):
        run(tmp_path, train, validation, **changes)
    assert nothing_was_trained(tmp_path)


@pytest.mark.parametrize("words", [2, 4, 40, 66])
def test_what_few_validation_tokens_cannot_show_is_missing_and_said_so(words: int, tmp_path: Path) -> None:
    record = run(tmp_path, LONG, " ".join(["bridge"] * words))
    assert record["tokens"]["validation"] == words
    enough = words > MIN_FORGETTING_TOKENS  # the last token's context predicts nothing, and is not measured
    assert (record["phase1"]["contraction_rate"] is not None) == enough == (record["phase1"]["forgetting"] is not None)
    check_run_record(record, tmp_path)
    assert ("not measurable on so few tokens" in report(record)) == (not enough)
    for figure in (plot_phase1, plot_spectrum, plot_epochs, plot_forgetting):
        figure(record)


@pytest.mark.parametrize("train", ["Rain", "Rain and wind"])
def test_two_training_tokens_are_enough_to_finish(train: str, tmp_path: Path) -> None:
    record = run(tmp_path, train + " again", LONG)
    check_run_record(record, tmp_path)
    assert report(record)


def test_disk_without_room_for_the_checkpoints_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    # The folder does not exist yet; what is asked about must be the disk that it will be on.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path) and SimpleNamespace(free=1000))
    with pytest.raises(RunError, match=r"this run needs about 0\.\d+ MB of disk .* 0\.\d+ MB are free\. Make room"):
        run(tmp_path, LONG, LONG[5:])
    assert nothing_was_trained(tmp_path)
