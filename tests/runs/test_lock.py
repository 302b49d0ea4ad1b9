"""One at a time, with locks of the file system and, where there are none, with leases."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from newllm_core.runs import lock as lock_module
from newllm_core.runs.disk import DiskError
from newllm_core.runs.folder import RECORD_NAME, RunFolder
from newllm_core.runs.identity import Identity
from newllm_core.runs.lock import owned

WAIT = 60  # seconds, of which a test takes next to none
KINDS = ["locks", "leases"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a file system with locks, and on one without."""

    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    if request.param == "leases":
        monkeypatch.setattr(fcntl, "flock", no_locks)
        monkeypatch.setattr(lock_module, "_LOOK_SECONDS", 0.005)
        monkeypatch.setattr(lock_module, "_SETTLE_SECONDS", 0.02)
    return str(request.param)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_second_waits_is_told_who_holds_it_and_finds_what_the_first_has_made(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[Any] = []

    def second() -> None:
        with RunFolder(tmp_path / RECORD_NAME, tmp_path / "checkpoint", Identity({})).held() as run:
            found.append(run.record)

    thread = threading.Thread(target=second)
    with RunFolder(tmp_path / RECORD_NAME, tmp_path / "checkpoint", Identity({})).held() as run:
        thread.start()
        deadline = time.monotonic() + WAIT
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not found
        record = run.finish({"loss": 1.0}, {})
    thread.join(WAIT)
    assert found == [record]
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}: waiting for process {os.getpid()} on {os.uname().nodename} (since 20")


def test_of_many_that_want_a_lock_one_has_it_at_a_time(kind: str, tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(6):
            with owned(tmp_path / ".lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert most == 1 and not any(thread.is_alive() for thread in threads)
    assert names_in(tmp_path) == set()


def owner(process: int, host: str) -> str:
    return json.dumps({"host": host, "process": process, "thread": 0, "since": "2026-01-01T00:00:00+00:00"})


def test_a_lock_file_of_a_process_that_was_killed_holds_nobody_up(kind: str, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".lock").write_text(owner(ended.pid, os.uname().nodename))
    with owned(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("kind", ["leases"], indirect=True)
def test_a_lease_of_another_machine_is_over_when_nobody_renews_it(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    path.write_text(owner(1, "elsewhere"))
    monkeypatch.setattr(lock_module, "_LEASE_SECONDS", 0.2)
    began = time.monotonic()
    with owned(path):
        assert time.monotonic() - began >= 0.1
        assert "process 1 on elsewhere" in caplog.text
        time.sleep(0.5)  # longer than a lease lives: it is renewed
        assert time.time() - path.stat().st_mtime < 0.4
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("kind", ["leases"], indirect=True)
def test_a_lease_that_nobody_renews_is_over_though_a_process_of_its_number_runs_here(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a container that was killed, in the one that was started after it."""
    path = tmp_path / ".lock"
    monkeypatch.setattr(lock_module, "_LEASE_SECONDS", 3.0)
    path.write_text(owner(os.getpid(), os.uname().nodename))
    with owned(path, wait=False) as mine:
        assert not mine
    old = time.time() - lock_module._LEASE_SECONDS - 1
    os.utime(path, (old, old))
    with owned(path, wait=False) as mine:
        assert mine


@pytest.mark.parametrize("kind", ["leases"], indirect=True)
def test_a_lease_that_its_owner_renews_late_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a machine that slept, and woke both its owner and us."""
    path, renewed = tmp_path / ".lock", threading.Timer(0.2, lambda: os.utime(path))
    path.write_text(owner(os.getpid(), os.uname().nodename))
    monkeypatch.setattr(lock_module, "_LEASE_SECONDS", 3.0)
    os.utime(path, (time.time() - 4, time.time() - 4))
    renewed.start()
    with owned(path, wait=False) as mine:
        assert not mine
    renewed.join()
    assert json.loads(path.read_text())["process"] == os.getpid()


@pytest.mark.parametrize("kind", ["leases"], indirect=True)
def test_a_lost_lease_is_said_and_the_new_owners_stays(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, theirs = tmp_path / ".lock", owner(1, "elsewhere")
    monkeypatch.setattr(lock_module, "_LEASE_SECONDS", 0.2)
    with owned(path):
        path.write_text(theirs)
        deadline = time.monotonic() + WAIT
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert path.read_text() == theirs
    assert set(caplog.messages) == {caplog.messages[0]} and "the lease of this process was lost" in caplog.text


@pytest.mark.parametrize("kind", ["locks"], indirect=True)
def test_another_error_of_the_lock_is_no_reason_for_a_lease(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(DiskError, match=r"\.lock: .* the disk reports an error"), owned(tmp_path / ".lock"):
        pass
