"""A task is work of its own that goes on where it was stopped; an engine runs a list of them.

There is one task function, `run_task`, for all engines: processes of this machine, Ray, SLURM. What happens to a task
is the same everywhere: one whose process or machine died is tried again, and goes on from its checkpoint; one that
raised an error is not, since the same configuration would fail again.
"""

import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

FINISHED, SKIPPED, FAILED = "finished", "skipped", "failed"  # skipped: it was finished before
RETRIES = 2  # of a task whose process died, beside the first try
_BEGAN, _ENDED = "[task] began", "[task] ended"
_TAIL_BYTES = 4096


class EngineError(RuntimeError):
    """An engine that is not there, or that cannot run what it was given; the message says what to change."""


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        name: for people.
        work: a function of a module, or a `functools.partial` of one, since it is pickled; what it returns is too.
        log: what the work prints goes there, also what C code prints, and is added to at every try.
        cores: that it computes with; the work sets its own threads.
        gpus: that it computes with.
        copies: folder for copies of what it has so far, of a machine that does not see this one's results.
        copying_work: ``work`` that leaves them there; None: none is left.
    """

    name: str
    work: Callable[[], Any]
    log: Path
    cores: int = 1
    gpus: int = 0
    copies: Path | None = None
    copying_work: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Ended:
    """``status``: finished or failed. ``value``: what the work returned. ``seconds``: of the last try, on the wall."""

    status: str
    value: Any = None
    seconds: float = 0.0
    error: str | None = None


class HasStatus(Protocol):
    """What became of something: finished, skipped or failed."""

    @property
    def status(self) -> str: ...


def count_line(outcomes: Sequence[HasStatus]) -> str:
    """As "3 finished, 9 skipped, 0 failed"."""
    statuses = FINISHED, SKIPPED, FAILED
    return ", ".join(f"{sum(one.status == status for one in outcomes)} {status}" for status in statuses)


class Engine(Protocol):
    """Runs tasks, several at a time where it can."""

    # Each task's place in the list and what became of it, as they end. Raises EngineError before anything has begun.
    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]: ...


def run_task(task: Task) -> Ended:
    """Do the work; an error ends the task, an interruption (KeyboardInterrupt, SystemExit) the process."""
    try:
        with _written_to(task.log):
            return _done(task)
    except OSError as problem:
        return Ended(FAILED, error=f"the log cannot be written: {problem}")


def _done(task: Task) -> Ended:
    print(f"{_BEGAN} {task.name}: {platform.node()}, process {os.getpid()}, {_now()}", flush=True)
    start = time.perf_counter()
    try:
        value, status, error = task.work(), FINISHED, None
    except Exception as problem:
        traceback.print_exc()
        value, status, error = None, FAILED, f"{type(problem).__name__}: {problem}"
    seconds = time.perf_counter() - start
    print(f"{_ENDED} {status} after {seconds:.1f} s, {_now()}", flush=True)
    return Ended(status, value, seconds, error)


def died(reason: str, tries: int) -> Ended:
    """Of a task whose process ended without a word, as often as it was tried."""
    return Ended(FAILED, error=f"its process died at each of {tries} tries: {reason}")


def times_begun(log: Path) -> int:
    """How often a task was tried."""
    return _lines_with(log, _BEGAN)


def times_finished(log: Path) -> int:
    """How often a task was done to its end: once, whatever happened between."""
    return _lines_with(log, f"{_ENDED} {FINISHED}")


def last_words(log: Path) -> str:
    """What was printed last, such as the state of a progress bar; empty before anything was."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _lines_with(log: Path, beginning: str) -> int:
    if not log.exists():
        return 0
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return sum(line.startswith(beginning) for line in text.split("\n"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _written_to(log: Path) -> Iterator[None]:
    """Both streams of this process, of Python and below it, go to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("a", encoding="utf-8")
    if stream.tell():
        stream.write("\n")  # a bar of the try before may have ended in the middle of a line
        stream.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        with stream, redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        for number, before in enumerate(kept, start=1):
            os.dup2(before, number)
            os.close(before)
