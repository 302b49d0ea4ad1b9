"""What was made is used again for the same content, wherever it lies, and never for other content."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from core_helpers import stop_after
from data_helpers import conversation, file_config, install_copy, write_jsonl
from test_experiment import SMALL as CHITCHAT
from test_experiment import run_small

from newllm_core.config.hyperparameters import Settings
from newllm_core.data import DataError
from newllm_core.data.packages import GPT2_ENCODER
from newllm_core.experiment import run as experiment_module
from newllm_core.experiment.folder_names import phase1_folder_name, run_folder_name, settings_of
from newllm_core.experiment.prepare import prepare
from newllm_core.experiment.run import load_model, run_phase1
from newllm_core.runs.files import RunError
from newllm_core.runs.identity import figures_of
from newllm_core.studies import rows
from newllm_core.studies.runners import ExperimentRunner, Folders, RowRunner
from newllm_core.studies.sweep import Point, Sweep, grid
from newllm_core.studies.variants import variant

NUM_CONVERSATIONS = 14


def text_file(path: Path) -> Path:
    rows = [
        conversation(*(f"Why is number {i} {'so ' * (i % 4)}unlike {i * 7 + turn}?" for turn in range(6)))
        for i in range(NUM_CONVERSATIONS)
    ]
    return write_jsonl(path, rows)


def change_one_byte(path: Path) -> None:
    """The last digit: of a conversation that nobody has asked for."""
    content = bytearray(path.read_bytes())
    place = max(content.rfind(digit) for digit in b"0123456789")
    content[place] = ord("1") if content[place] != ord("1") else ord("2")
    path.write_bytes(content)


def settings_for(path: Path) -> Settings:
    return dataclasses.replace(
        CHITCHAT, data=file_config(path, num_samples=4, validation_range=(10, 12), embeddings="random")
    )


def must_not_train(*arguments: Any, **options: Any) -> None:
    raise AssertionError("trained again")


@dataclasses.dataclass(frozen=True)
class Finished:
    """One experiment on the user's own file, and another path to the same text."""

    text: Path
    copy: Path
    run_dir: Path
    record: dict[str, Any]

    @property
    def data_dir(self) -> Path:
        return self.run_dir.parent / "data"

    def again(self, path: Path, **options: Any) -> dict[str, Any]:
        return run_small(self.run_dir, self.data_dir, settings_for(path), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("whole")
    text = text_file(root / "my.jsonl")
    (root / "elsewhere").mkdir()
    copy = Path(shutil.copy(text, root / "elsewhere" / "same.jsonl"))
    return Finished(text, copy, root / "run", run_small(root / "run", root / "data", settings_for(text)))


@pytest.fixture
def finished(whole: Finished, tmp_path: Path) -> Finished:
    """A copy of it, to be changed."""
    root = tmp_path / "whole"
    shutil.copytree(whole.run_dir.parent, root)
    return Finished(root / "my.jsonl", root / "elsewhere" / "same.jsonl", root / "run", whole.record)


def test_a_record_says_what_was_read_by_content_and_where_it_lay_as_volatile(whole: Finished) -> None:
    assert set(whole.record["read"]) == {"text", "vocabulary"}  # random embeddings are drawn
    assert whole.record["config"]["data"]["conversations_file"] is None
    assert whole.record["paths"] == {"conversations_file": str(whole.text)}
    assert settings_of(whole.record) == settings_for(whole.text)
    moved = {**whole.record, "paths": {"conversations_file": "elsewhere"}}
    assert figures_of(moved) == figures_of(whole.record)


def test_a_complete_run(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_module, "prepare", must_not_train)
    assert finished.again(finished.copy) == finished.record
    change_one_byte(finished.text)
    with pytest.raises(RunError, match="holds another run: it read other text .* Use another folder, or move"):
        finished.again(finished.text)
    assert finished.again(finished.copy) == finished.record  # nothing old is lost


def test_phase_1_in_its_folder(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_module, "train_phase1", must_not_train)
    (finished.run_dir / "run.json").unlink()

    def phase1(path: Path) -> dict[str, Any]:
        settings = settings_for(path)
        prepared = prepare(settings.data, settings.model, settings.run, finished.data_dir)
        return run_phase1(prepared, settings.phase1, finished.run_dir / "phase1")[1]

    assert phase1(finished.copy)["effective_rank"] == finished.record["phase1"]["effective_rank"]
    change_one_byte(finished.text)
    with pytest.raises(RunError, match="phase1.json holds another run: it read other text"):
        phase1(finished.text)


def test_a_half_finished_run(finished: Finished) -> None:
    half = dataclasses.replace(finished, run_dir=finished.run_dir.with_name("half"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 2", 1, patch)
        half.again(finished.text)
    changed = Path(shutil.copy(finished.text, finished.text.with_name("changed.jsonl")))
    change_one_byte(changed)
    (half.run_dir / "phase1" / "phase1.json").rename(half.run_dir / "kept.json")  # so that the checkpoint is looked at
    with pytest.raises(RunError, match="checkpoint holds another run: content.text = "):
        half.again(changed, phase1_dir=half.run_dir / "other phase 1")
    (half.run_dir / "kept.json").rename(half.run_dir / "phase1" / "phase1.json")
    assert figures_of(half.again(finished.copy)) == figures_of(finished.record)


def test_a_loaded_model(finished: Finished) -> None:
    phase1_dir = finished.run_dir / "phase1"
    moved = {**finished.record, "paths": {"conversations_file": str(finished.copy)}}
    load_model(moved, finished.run_dir, phase1_dir, finished.data_dir)
    change_one_byte(finished.copy)
    with pytest.raises(RunError, match="it read other text"):
        load_model(moved, finished.run_dir, phase1_dir, finished.data_dir)


def test_names_of_folders_are_of_the_content(finished: Finished) -> None:
    def names(path: Path) -> tuple[str, str]:
        one = settings_for(path)
        return run_folder_name(one), phase1_folder_name(one.data, one.model, one.phase1, one.run)

    before = names(finished.text)
    assert names(finished.copy) == before and before[0].startswith(f"file-{finished.record['read']['text'][:8]}-")
    change_one_byte(finished.text)
    assert not set(names(finished.text)) & set(before)


def test_a_sweep_of_experiments(finished: Finished, tmp_path: Path) -> None:
    folders = Folders(tmp_path / "experiments", tmp_path / "phase1", tmp_path / "reference", finished.data_dir)
    runner, (base,) = ExperimentRunner(folders), grid({})
    one, same = (Point(base, settings_for(path)) for path in (finished.text, finished.copy))
    place = folders.experiments / runner.key(one)
    shutil.copytree(finished.run_dir, place)
    assert runner.finished(same) is None  # the weights of Phase 1 belong to it
    settings = same.settings
    name = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    (folders.phase1 / name).parent.mkdir()
    (place / "phase1").rename(folders.phase1 / name)
    assert runner.finished(same) == finished.record
    change_one_byte(finished.text)
    assert runner.finished(one) is None  # another run, with a folder of its own
    shutil.copytree(place, folders.experiments / runner.key(one))
    with pytest.raises(RunError, match="it read other text"):
        runner.finished(one)


def test_a_row_and_its_phase_1(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = RowRunner(tmp_path / "rows", {}, finished.data_dir)

    def sweep(path: Path) -> Sweep:
        settings = settings_for(path)
        return Sweep(settings, [variant("untrained")], [settings.run.seed], runner)

    def row(path: Path) -> list[dict[str, Any]]:
        return sweep(path).run()

    made = row(finished.text)
    monkeypatch.setattr(rows, "prepare", must_not_train)
    assert row(finished.copy) == made
    before = runner.key(sweep(finished.text).points[0])
    change_one_byte(finished.text)
    after = runner.key(sweep(finished.text).points[0])
    assert after != before
    shutil.copy(before, after)
    with pytest.raises(RunError, match="it read other text"):
        row(finished.text)


def test_an_altered_vocabulary(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = install_copy(GPT2_ENCODER, tmp_path / "packages", monkeypatch)
    shutil.copy(Path(__file__), copied)
    with pytest.raises(DataError, match="was altered: expected SHA-256 .* Repair it with"):
        finished.again(finished.text)


# --- several processes ------------------------------------------------------------------------------------------------

AT_ONCE = """
import logging, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_experiment import run_small
from test_reuse import settings_for
logging.basicConfig(level=logging.WARNING)
root = Path(sys.argv[1])
record = run_small(root / "at once", root / "data", settings_for(root / "my.jsonl"))
print(record["start"], record["phase2"]["best"]["validation_loss"])
"""


def test_three_processes_on_one_folder_train_it_once(finished: Finished) -> None:
    tests = [str(path) for path in Path(__file__).parents[1].iterdir() if path.is_dir()]
    command = [sys.executable, "-c", AT_ONCE, str(finished.run_dir.parent), str(Path(__file__).parents[1]), *tests]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert len({output for output, _ in ended}) == 1
    assert ended[0][0].split()[1] == str(finished.record["phase2"]["best"]["validation_loss"])
