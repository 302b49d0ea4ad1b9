"""A second place for a run: what a fresh machine goes on from, on a drive that knows neither locks nor renames."""

import dataclasses
import errno
import fcntl
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import save_always, stop_after
from test_experiment import run_small
from test_reuse import must_not_train, settings_for, text_file

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import changed
from newllm_core.experiment import run as experiment_module
from newllm_core.experiment.folder_names import run_folder_name
from newllm_core.runs import copies
from newllm_core.runs.checkpoint import (
    CHECKPOINT_NAME,
    Checkpoint,
    CheckpointPlace,
    copy_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.identity import Identity, figures_of


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose file system refuses flock, fsync and renaming over an existing file, as some mounted drives."""
    folder = tmp_path / "drive"
    sync, lock, replace = os.fsync, fcntl.flock, os.replace

    def is_there(descriptor: int) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))

    def no_sync(descriptor: int) -> None:
        if is_there(descriptor):
            raise OSError(errno.EINVAL, "fsync is not known here")
        sync(descriptor)

    def no_lock(descriptor: Any, operation: int) -> None:
        if is_there(descriptor if isinstance(descriptor, int) else descriptor.fileno()):
            raise OSError(errno.ENOTSUP, "locks are not known here")
        lock(descriptor, operation)

    def no_replacing(source: Any, target: Any) -> None:
        if str(target).startswith(str(folder)) and os.path.exists(target):
            raise OSError(errno.EEXIST, "renaming over a file is not known here")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", no_sync)
    monkeypatch.setattr(fcntl, "flock", no_lock)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, no_replacing)
    return folder


@pytest.fixture
def settings(tmp_path: Path, drive: Path) -> Settings:
    return changed(settings_for(text_file(tmp_path / "my.jsonl")), {"copy_to": str(drive)})


@pytest.fixture
def whole(tmp_path: Path, settings: Settings) -> dict[str, Any]:
    """The run on one machine, without a second place."""
    alone = changed(settings, {"copy_to": None})
    assert run_folder_name(alone) == run_folder_name(settings)  # where copies lie is no part of what a run is
    return run_small(tmp_path / "whole", tmp_path / "data", alone)


def on_a_fresh_machine(tmp_path: Path, settings: Settings) -> dict[str, Any]:
    shutil.rmtree(tmp_path / "first", ignore_errors=True)
    return run_small(tmp_path / "fresh" / "run", tmp_path / "fresh" / "data", settings)


def interrupted(tmp_path: Path, settings: Settings, training: str, passes: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(training, passes, patch)
        run_small(tmp_path / "first", tmp_path / "data", settings)


@pytest.mark.parametrize(("training", "passes"), [("Phase 1", 3), ("Phase 2", 1)])
def test_a_fresh_machine_goes_on_with_one_parameter(
    training: str, passes: int, tmp_path: Path, settings: Settings, whole: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    interrupted(tmp_path, settings, training, passes)
    with caplog.at_level(logging.INFO, "newllm"):
        record = on_a_fresh_machine(tmp_path, settings)
    assert figures_of(record) == figures_of(whole)
    assert "went on from the copy" in caplog.text


def test_a_finished_run_is_there_with_its_weights_and_is_not_trained_again(
    tmp_path: Path, settings: Settings, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(tmp_path / "first", tmp_path / "data", settings)
    monkeypatch.setattr(experiment_module, "prepare", must_not_train)
    assert figures_of(on_a_fresh_machine(tmp_path, settings)) == figures_of(whole)
    weights = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(weights) == 2
    for name in weights:
        assert (tmp_path / "fresh" / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_copy_that_was_cut_is_not_used(
    tmp_path: Path, drive: Path, settings: Settings, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, settings, "Phase 1", 4)
    (copies,) = drive.iterdir()
    assert len(list(copies.glob("*.zip"))) == 2  # a phase's newest two
    newest = max(copies.glob("*.zip"))
    newest.write_bytes(newest.read_bytes()[:-100])
    (copies / "999999-000004-00000000.zip").write_bytes(b"never finished")
    assert figures_of(on_a_fresh_machine(tmp_path, settings)) == figures_of(whole)
    assert f"{newest} cannot be read, or does not match its checksum; looking for the copy before" in caplog.text


def test_a_drive_that_is_away_stops_nothing(
    tmp_path: Path, settings: Settings, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    save_always(monkeypatch)
    (tmp_path / "file").touch()
    away = dataclasses.replace(settings, run=dataclasses.replace(settings.run, copy_to=str(tmp_path / "file" / "x")))
    assert figures_of(run_small(tmp_path / "first", tmp_path / "data", away)) == figures_of(whole)
    assert "no copy was written: " in caplog.text and "could not be read or written" in caplog.text


def copied(tmp_path: Path, number: int) -> dict[str, Path]:
    path = tmp_path / "local" / "one.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"state {number}")
    return {"one.txt": path}


def test_files_that_a_drive_keeps_beside_the_copies_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    drive, target = tmp_path / "drive", tmp_path / "restored.txt"
    drive.mkdir()
    strangers = ["desktop.ini", "notes.txt", ".DS_Store", "photo.zip", "000009-finished.zip.a1.partial"]
    for name in strangers:
        (drive / name).touch()
    for number in (1, 2, 3):
        assert copies.copy_files(drive, copied(tmp_path, number), f"{number:06d}-00000000")
    assert {path.name[:6] for path in drive.glob("[0-9]*.zip")} == {"000002", "000003"}
    assert all((drive / name).exists() for name in strangers)
    assert copies.restore(drive, {"one.txt": target}) and target.read_text() == "state 3"


def test_marks_that_lost_their_zips_push_no_copy_out(tmp_path: Path) -> None:
    drive, target = tmp_path / "drive", tmp_path / "restored.txt"
    for number in (1, 2, 3):
        assert copies.copy_files(drive, copied(tmp_path, number), f"{number:06d}-00000000")
    for archive in drive.glob("*.zip"):
        archive.unlink()
    assert copies.copy_files(drive, copied(tmp_path, 4), "000004-00000000")
    assert sorted(path.stem for path in drive.iterdir()) == ["000004-000004-00000000"] * 2  # the zip and its mark
    assert copies.restore(drive, {"one.txt": target}) and target.read_text() == "state 4"


def test_a_finished_copy_that_was_cut_or_lost_is_written_again(tmp_path: Path) -> None:
    drive, target, record = tmp_path / "drive", tmp_path / "restored.json", tmp_path / "run" / "run.json"
    place = RunFolder(record, tmp_path / "checkpoint", Identity({}), copy_to=str(drive))
    with place.held() as run:
        run.finish({"loss": 1.0}, {})
    for damage in (lambda path: path.write_bytes(b"cut"), Path.unlink):
        damage(max(drive.rglob("*.zip")))
        with place.held():
            pass
        assert place.copies is not None and copies.restore(place.copies, {"record": target})
        assert target.read_bytes() == record.read_bytes()
    before = sorted(drive.rglob("*"))
    with place.held():
        pass
    assert sorted(drive.rglob("*")) == before  # a whole one is not


def test_a_record_that_says_more_is_copied_again(tmp_path: Path) -> None:
    """As that of images whose test part is read later: a fresh machine must not read it once more."""
    place = RunFolder(
        tmp_path / "run" / "run.json", tmp_path / "checkpoint", Identity({}, {}), copy_to=str(tmp_path / "d")
    )
    with place.held() as held:
        held.keep({**held.finish({"test": None}, {}), "test": 0.5})
    shutil.rmtree(tmp_path / "run")
    with place.held() as again:
        assert again.record is not None and again.record["test"] == 0.5


def test_a_copy_that_failed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = tmp_path / "drive"
    assert copies.copy_files(drive, copied(tmp_path, 1), "000001-00000000")
    before = sorted(drive.iterdir())

    def full(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "write", lambda archive, path, name: full(path))
        assert not copies.copy_files(drive, copied(tmp_path, 2), "000002-00000000")
    with monkeypatch.context() as patch:
        patch.setattr(copies, "sha256_file", full)  # the zip is whole, and its mark cannot be written
        assert not copies.copy_files(drive, copied(tmp_path, 2), "000002-00000000")
    assert sorted(drive.iterdir()) == before


def test_a_damaged_checkpoint_is_not_copied_again_and_again_as_the_newest(tmp_path: Path) -> None:
    place = CheckpointPlace(tmp_path / "checkpoint", {"run": {"seed": 1}}, tmp_path / "drive")

    def save(steps: int) -> None:
        save_checkpoint(place.folder, Checkpoint(place.configs, [], steps, {"weight": torch.zeros(2)}, {}))
        assert copy_checkpoint(place)

    save(10)
    save_checkpoint(place.folder, Checkpoint(place.configs, [], 50, {"weight": torch.zeros(2)}, {}))
    (place.folder / "000000-00000050.safetensors").write_bytes(b"damaged")
    found = load_checkpoint(place, torch.device("cpu"))
    assert found is not None and found.steps == 10
    for steps in (20, 30):
        save(steps)
    assert place.copies is not None
    fresh = dataclasses.replace(place, folder=tmp_path / "fresh")
    assert copies.restore(place.copies, {CHECKPOINT_NAME: fresh.folder})
    found = load_checkpoint(fresh, torch.device("cpu"))
    assert found is not None and found.steps == 30


def test_a_copy_that_cannot_be_read_is_passed_over_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, target = tmp_path / "drive", tmp_path / "restored.txt"
    for number in (1, 2):
        copies.copy_files(drive, copied(tmp_path, number), f"{number:06d}-00000000")
    read = copies.sha256_file

    def fails_for_the_newest(path: Path) -> str:
        if path.stem.startswith("000002-"):
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(copies, "sha256_file", fails_for_the_newest)
    assert copies.restore(drive, {"one.txt": target}) and target.read_text() == "state 1"


def test_a_copy_that_is_further_along_is_never_replaced(
    tmp_path: Path, drive: Path, settings: Settings, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The drive is away when the second machine begins, which begins anew; it comes back, and that machine goes too."""
    interrupted(tmp_path, settings, "Phase 1", 4)
    (copies,) = drive.iterdir()
    before = sorted(path.name for path in copies.iterdir())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "_restored", lambda folder: False)
        stop_after("Phase 1", 2, patch)
        run_small(tmp_path / "second", tmp_path / "data", settings)
    assert sorted(path.name for path in copies.iterdir()) == before
    assert caplog.text.count("is further along than this run") == 1
    assert figures_of(on_a_fresh_machine(tmp_path, settings)) == figures_of(whole)
    assert "finished" in max(path.name for path in copies.iterdir())


def test_a_copy_that_was_taken_up_by_half_is_taken_up_again(
    tmp_path: Path, settings: Settings, whole: dict[str, Any]
) -> None:
    """The weights were written, the JSON that makes them a checkpoint was not."""
    interrupted(tmp_path, settings, "Phase 2", 1)
    (checkpoint,) = {path.parent for path in (tmp_path / "first").rglob("checkpoint-*.json")}
    half = tmp_path / "fresh" / "run" / checkpoint.relative_to(tmp_path / "first")
    half.mkdir(parents=True)
    (half / "000001.safetensors").write_bytes(b"half")
    assert figures_of(on_a_fresh_machine(tmp_path, settings)) == figures_of(whole)
