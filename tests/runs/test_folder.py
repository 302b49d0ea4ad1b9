"""One owner of a run's folder, whatever becomes of it: waiting, killed, finished, somebody else's."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from newllm_core.runs import folder as folder_module
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import (
    RunError,
    content_sha256,
    load_tensors,
    read_json,
    sha256_file,
    write_json,
    write_text,
)
from newllm_core.runs.folder import RECORD_NAME, RunFolder, is_complete
from newllm_core.runs.identity import Identity

IDENTITY = Identity({"data": {"size": 2, "file": None}, "run": {"seed": 1}}, {"text": "a" * 64, "embeddings": "b" * 64})
WEIGHTS = {"model.safetensors": {"weight": torch.arange(3.0)}}


def place(folder: Path, identity: Identity = IDENTITY) -> RunFolder:
    return RunFolder(folder / RECORD_NAME, folder / "checkpoint", identity)


def finish(folder: Path, **figures: Any) -> dict[str, Any]:
    with place(folder).held() as run:
        assert run.record is None
        return run.finish(figures, WEIGHTS)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_finished_run_has_weights_and_record_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "checkpoint" / "step.json"
    write_text(left, "{}")
    record = finish(tmp_path, loss=1.5)
    assert record == {**IDENTITY.record(), "loss": 1.5} == read_json(tmp_path / RECORD_NAME)
    assert names_in(tmp_path) == {RECORD_NAME, "model.safetensors", "model.safetensors.sha256"}
    assert torch.equal(load_tensors(tmp_path / "model.safetensors")["weight"], torch.arange(3.0))
    with place(tmp_path).held() as run:
        assert run.record == record and is_complete(tmp_path)


def test_a_run_that_ends_early_is_not_complete_and_nobody_holds_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), place(tmp_path).held():
        raise KeyboardInterrupt
    assert names_in(tmp_path) == set()
    finish(tmp_path)


def test_a_checkpoint_left_beside_a_complete_run_goes(tmp_path: Path) -> None:
    finish(tmp_path)
    write_text(tmp_path / "checkpoint" / "step.json", "{}")
    with place(tmp_path).held():
        assert not (tmp_path / "checkpoint").exists()


def test_everything_that_differs_is_named_with_the_way_on(tmp_path: Path) -> None:
    finish(tmp_path)
    other = Identity(
        {"data": {"size": 3, "file": None}, "run": {"seed": 2}}, {"text": "c" * 64, "embeddings": "b" * 64}
    )
    with pytest.raises(RunError) as refused, place(tmp_path, other).held():
        pass
    assert str(refused.value) == (
        f"{tmp_path} holds another run: data.size = 2, asked for 3; run.seed = 1, asked for 2; it read other text "
        "(SHA-256 aaaaaaaaaaaa, now cccccccccccc). Use another folder, or move this one away to start anew"
    )
    assert is_complete(tmp_path)


def test_a_record_that_does_not_say_what_was_read_is_refused(tmp_path: Path) -> None:
    record = finish(tmp_path)
    write_json(tmp_path / RECORD_NAME, {**record, "read": {"text": "a" * 64}})
    with pytest.raises(RunError, match="which embeddings it read is not recorded"), place(tmp_path).held():
        pass


def test_the_checkpoint_belongs_to_configuration_and_content(tmp_path: Path) -> None:
    with place(tmp_path).held() as run:
        configs = {**IDENTITY.config, "content": IDENTITY.read}
        assert run.checkpoints == CheckpointPlace(tmp_path / "checkpoint", configs)


def test_what_is_archived_read_only_is_read_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = finish(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(folder_module, "owned", None)  # would fail
    with place(tmp_path).held() as run:
        assert run.record == record


KILLED = """
import os, signal, sys
from pathlib import Path
from newllm_core.runs.files import write_atomically
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.identity import Identity

def write(temporary):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
with RunFolder(folder / "run.json", folder / "checkpoint", Identity({})).held():
    write_atomically(folder / "run.json", write)
"""


def test_what_a_killed_process_leaves_does_not_hold_up_the_next_and_goes(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = names_in(tmp_path)
    assert len(left) == 2 and ".run.json.lock" in left and any(name.endswith(".partial") for name in left)
    finish(tmp_path)
    assert names_in(tmp_path) == {RECORD_NAME, "model.safetensors", "model.safetensors.sha256"}


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    alive = tmp_path / f".{RECORD_NAME}.{os.uname().nodename}-{os.getppid()}.abc.partial"
    elsewhere = tmp_path / f".{RECORD_NAME}.elsewhere-1.abc.partial"
    for path in (alive, elsewhere):
        path.mkdir()
    write_text(tmp_path / RECORD_NAME, "x")
    assert names_in(tmp_path) == {RECORD_NAME, alive.name, elsewhere.name}


def test_content_is_hashed_again_only_when_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_text("one")
    assert content_sha256(path) == sha256_file(path)
    path.write_text("two")  # as long, and perhaps within the same step of the file system's clock
    assert content_sha256(path) == sha256_file(path)
    monkeypatch.setattr("newllm_core.runs.files._SETTLED_SECONDS", 0.0)
    two = content_sha256(path)
    monkeypatch.setattr("newllm_core.runs.files.sha256_file", lambda path: "hashed again")
    assert content_sha256(path) == two
    os.utime(path, ns=(0, 0))  # the times that a user can set are not all of them
    assert content_sha256(path) == "hashed again"
