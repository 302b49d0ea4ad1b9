"""A run in a process of its own: forked from a parent that has imported everything, so that it costs no start.

A fault is set in the child alone, before its work begins.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from newllm_core.batch.jobs import BatchError
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError
from newllm_core.losses import NotFiniteError
from newllm_core.runs.files import RunError
from newllm_core.vision.search.journal import SearchError

# What a user is told in a sentence; anything else is a traceback.
REFUSALS = (RunError, DataError, ConfigError, BatchError, SearchError, NotFiniteError)
SECONDS = 120.0  # no case takes more than some
_ORPHAN_SECONDS, _LOOK_SECONDS = 60.0, 0.1  # that a kernel may take to see that its parent has gone; between looks
_MARK = "NEWLLM_RELIABILITY"  # in the environment of children: the process that forked them


@dataclass(frozen=True)
class Ended:
    """How a child ended: ``finished`` (with its ``value``), ``refused`` (``text``: the sentence), ``crashed`` (the
    traceback), ``killed`` or ``hung``; ``log``: what it said."""

    how: str
    text: str = ""
    value: Any = None
    log: str = ""


@dataclass(frozen=True)
class Child:
    """One that is running."""

    pid: int
    told: Path
    log: Path

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Until it ends; one that takes longer is killed, and ``hung``."""
        status = self._status(seconds)
        if status is None:
            self.kill()
            return Ended("hung", f"did not end in {seconds:g} s", log=self._log())
        try:
            how, text, value = json.loads(self.told.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            how, text, value = "killed", f"status {status}", None
        return Ended(how, text, value, self._log())

    def _status(self, seconds: float) -> int | None:
        descriptor = os.pidfd_open(self.pid)  # which can be read once the process has ended
        try:
            ended, _, _ = select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)
        return os.waitpid(self.pid, 0)[1] if ended else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def start(work: Callable[[], Any], told: Path, fault: Callable[[], None] = lambda: None) -> Child:
    """Fork; the child sets ``fault`` and does ``work``, whose value JSON can hold. ``told``: where it writes how it
    ended, outside its folders."""
    told.parent.mkdir(parents=True, exist_ok=True)
    log = told.with_suffix(".log")
    for path in (told, log):
        path.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, told, log)
    try:
        _be_the_child(work, told, log, fault)
    finally:
        os._exit(1)  # whatever happened: nothing of the parent runs here


def _be_the_child(work: Callable[[], Any], told: Path, log: Path, fault: Callable[[], None]) -> None:
    said, answer = log.open("w", encoding="utf-8"), told.open("wb", buffering=0)
    os.environ[_MARK] = str(os.getppid())
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    handler = logging.StreamHandler(said)
    for name in ("newllm", "optuna"):
        logging.getLogger(name).handlers = [handler]
    try:
        fault()
        ended = ("finished", "", work())
    except REFUSALS as error:
        ended = ("refused", f"{type(error).__name__}: {error}", None)
    except BaseException:
        ended = ("crashed", traceback.format_exc(), None)
    answer.write(json.dumps(ended).encode())
    said.flush()
    os._exit(0)


def run(work: Callable[[], Any], told: Path, fault: Callable[[], None] = lambda: None) -> Ended:
    """The same, waited for."""
    return start(work, told, fault).wait()


def left_behind() -> list[str]:
    """What runs on long after the child that started it was killed; it is ended."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (found := _descendants()) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    names = [" ".join(process.cmdline()) for process in found]
    for process in found:
        process.kill()
    return names


def _descendants() -> list[psutil.Process]:
    """Programs that children of this process have started, by what they have in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == str(os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
