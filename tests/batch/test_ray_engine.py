"""Tasks on a Ray cluster of this machine; skipped without Ray."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="pip install -e '.[ray]'")

from engine_work import add, die, save_slowly

from newllm_core.batch import ray_engine
from newllm_core.batch.carried import FolderKeeper
from newllm_core.batch.ray_engine import RayEngine
from newllm_core.batch.tasks import Task

# Ray leaves pipes and sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")


def wait_for(place: Path) -> None:
    deadline = time.monotonic() + 60
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_error_around_a_task_is_told_from_a_process_that_died(tmp_path: Path) -> None:
    """What the first one answers cannot be sent."""
    tasks = [
        Task("lock", threading.Lock, tmp_path / "lock.log"),
        Task("dies", partial(die, tmp_path / "died"), tmp_path / "dies.log"),
        Task("adds", partial(add, tmp_path / "added", 1), tmp_path / "adds.log"),
    ]
    ended = dict(RayEngine(retries=1).run(tasks))
    assert str(ended[0].error).startswith("what it left could not be carried: TypeError: ")
    assert str(ended[1].error).startswith("its process died at each of 2 tries: ")
    assert ended[2].value == 2


def test_a_log_that_could_not_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does on a machine that does not see the results."""
    monkeypatch.setattr(ray_engine, "_Remote", lambda keeper: keeper)
    (tmp_path / "logs").symlink_to(tmp_path / "a disk that is away")
    work = partial(add, tmp_path / "added", 1)
    task = Task("adds", work, tmp_path / "logs" / "adds.log", copies=tmp_path / "copies", copying_work=work)
    ended, log = ray_engine._run(task, FolderKeeper(), tmp_path / "not seen here")
    assert log == b"" and str(ended.error).startswith("the log cannot be written: ")


@pytest.mark.usefixtures("asked_by_signals")
def test_an_engine_that_is_left_early_waits_until_its_tasks_have_saved(tmp_path: Path) -> None:
    task = Task("saves", partial(save_slowly, tmp_path / "state"), tmp_path / "saves.log")
    running = RayEngine().run([task])

    def interrupt() -> None:
        wait_for(tmp_path / "state")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        next(running)
    running.close()
    assert (tmp_path / "state").read_text() == "saved"
