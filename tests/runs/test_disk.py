"""What a disk refuses, in a sentence: by Python, by Rust, by C++; and a training that goes on in memory."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from newllm_core.runs import files
from newllm_core.runs.checkpoint import Checkpoint, CheckpointPlace, load_checkpoint, save_checkpoint
from newllm_core.runs.disk import DiskError, disk_errors_named
from newllm_core.runs.files import read_json, save_tensors, write_json

SAYS = (
    r"{name}: could not be read or written, the disk .*: it needs about [\d,.]+ MB, [\d,.]+ MB are free there.* again"
)
TENSORS = {"w": torch.arange(1000.0)}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written to /dev/full, so that the kernel itself refuses it; but by safetensors, which would write
    elsewhere first, and is made to say what it says of a full disk."""
    make = tempfile.mkdtemp

    def refused(tensors: Any, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def made(*arguments: Any, **options: Any) -> str:
        name = make(*arguments, **options)
        os.symlink("/dev/full", os.path.join(name, "content"))
        return name

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    monkeypatch.setattr(files, "save_file", refused)


def checkpoint(steps: int) -> Checkpoint:
    return Checkpoint({"run": {"seed": 1}}, [], steps, TENSORS, {"optimizer": {"m": torch.zeros(1000)}})


def test_records_and_tensors_say_file_and_bytes_and_the_earlier_one_stays(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_json(tmp_path / "run.json", {"loss": 1.0})
    request.getfixturevalue("full_disk")
    with pytest.raises(DiskError, match=SAYS.format(name="run.json")):
        write_json(tmp_path / "run.json", {"loss": 2.0})
    with pytest.raises(DiskError, match=SAYS.format(name="model.safetensors")):
        save_tensors(tmp_path / "model.safetensors", TENSORS)
    assert read_json(tmp_path / "run.json") == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    request.getfixturevalue("full_disk")
    with pytest.raises(DiskError, match=SAYS.format(name="00000002.safetensors")):
        save_checkpoint(tmp_path, checkpoint(2))
    found = load_checkpoint(CheckpointPlace(tmp_path, {"run": {"seed": 1}}), torch.device("cpu"))
    assert found is not None and found.steps == 1


def test_torch_itself_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the disk takes no more"), disk_errors_named(tmp_path / "states.pt"):
        torch.save({"m": torch.zeros(1000)}, "/dev/full")


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.ENOENT, "vanished"), (errno.EACCES, "not permitted")],
)
def test_every_refusal_has_its_words(code: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=words), disk_errors_named(tmp_path / "run.json", 10**6):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("error", [RuntimeError("shapes"), OSError(errno.EMFILE, "too many open files")])
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])) as caught, disk_errors_named(tmp_path):
        raise error
    assert caught.value is error


def test_a_disk_that_has_vanished_is_named_although_nothing_can_be_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mounted drive whose connection broke: even whether a file exists is an error."""
    gone, stat = tmp_path / "gone", os.stat

    def vanished(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(gone)):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", vanished)
    with pytest.raises(DiskError, match="the disk has vanished.*MB are free"), disk_errors_named(gone / "x", 10):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


def test_what_libraries_say_of_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    """Of torch.save, whose archive's end could not be written on a file system that was really full."""
    with pytest.raises(DiskError, match=SAYS.format(name="1.pt")), disk_errors_named(tmp_path / "1.pt", 1000):
        raise RuntimeError("basic_ios::clear: iostream error")
