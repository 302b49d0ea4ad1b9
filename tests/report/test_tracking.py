"""TensorBoard and MLflow say what the records say, each step once."""

import shutil
from pathlib import Path

import pytest

from newllm_core.report.__main__ import main
from newllm_core.report.found_runs import find_runs
from newllm_core.report.tracking import _masked_crc, log_mlflow, series_of
from newllm_core.runs.files import PROJECT_ROOT, read_json

RECORD = PROJECT_ROOT / "results" / "reference" / "runs" / "cpu.json"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results" / "mine").mkdir(parents=True)
    shutil.copy(RECORD, tmp_path / "results" / "mine" / "run.json")
    return tmp_path / "results"


def test_series_are_the_rows_of_the_record() -> None:
    record, series = read_json(RECORD), series_of(read_json(RECORD))
    epochs, history = record["phase2"]["epochs"], record["phase1"]["history"]
    assert series["phase2/validation_loss"] == [(row["epoch"], row["validation_loss"]) for row in epochs]
    assert series["phase1/train_rank.value"] == [(row["iteration"], row["train_rank"]["value"]) for row in history]
    measured = [row["iteration"] for row in history if row["validation_rank"] is not None]
    assert [step for step, _ in series["phase1/validation_rank.value"]] == measured and len(measured) < len(history)


def test_checksums_are_those_of_the_format() -> None:
    # CRC-32C of "123456789" is 0xe3069283 (RFC 3720's check value); masked as TFRecord says.
    crc = 0xE3069283
    assert _masked_crc(b"123456789") == (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def test_writing_again_replaces_and_doubles_no_step(results: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert main([str(results), "--tensorboard", str(logs)]) == 0
    before = {path.relative_to(logs): path.read_bytes() for path in logs.rglob("events.*")}
    assert main([str(results), "--tensorboard", str(logs)]) == 0
    assert {path.relative_to(logs): path.read_bytes() for path in logs.rglob("events.*")} == before
    assert [path.parent.as_posix() for path in before] == ["mine/run"]


@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_every_step_once(results: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        main([str(results), "--tensorboard", str(tmp_path / "logs")])
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "mine" / "run")).Reload()
    series = series_of(read_json(RECORD))
    assert sorted(events.Tags()["scalars"]) == sorted(series)
    for tag, points in series.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


@pytest.mark.filterwarnings("default")
def test_mlflow_has_every_step_once_however_often_it_is_logged(results: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri, (runs, _) = f"sqlite:///{tmp_path / 'mlflow.db'}", find_runs(results)
    assert [log_mlflow(runs, uri), log_mlflow(runs, uri)] == [1, 0]
    client = mlflow.tracking.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("newllm").experiment_id])
    points = series_of(read_json(RECORD))["phase2/validation_loss"]
    history = client.get_metric_history(run.info.run_id, "phase2/validation_loss")
    assert sorted((one.step, one.value) for one in history) == points
    assert run.data.params["phase2.max_epochs"] == str(read_json(RECORD)["config"]["phase2"]["max_epochs"])
