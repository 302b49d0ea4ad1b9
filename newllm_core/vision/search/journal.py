"""A study's journal: one JSON line an event, with a checksum of its own.

A full disk or a kill can cut a line. Optuna 5 overlooks a last line that was cut, and joins the next event that it
writes to it: from then on the journal cannot be read. So before a search continues, the journal is cut back to what was
before the first damaged line.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from newllm_core.runs.disk import disk_errors_named
from newllm_core.runs.files import sha256_bytes, write_atomically

JOURNAL_NAME = "study.journal"
_CHECKSUM, _DIGITS = "line_sha256", 16
logger = logging.getLogger("newllm")


class SearchError(RuntimeError):
    """A search that cannot be run or read; the message says why."""


def journal_storage(folder: Path) -> JournalStorage:
    """The storage of the folder's study. Raises SearchError where its journal is damaged."""
    # A journal rather than SQLite: Optuna's FAQ advises against SQLite for parallel trials, and a journal is plain JSON
    # lines. Its lock is a file opened exclusively, which also works where there are no symbolic links.
    path = folder / JOURNAL_NAME
    with _damage_named(path), disk_errors_named(path):
        return JournalStorage(CheckedJournal(path))


class CheckedJournal(JournalFileBackend):
    """Writes events with the checksum of each, and reads none that does not match its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalFileOpenLock(str(path)))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with disk_errors_named(self.path):
            super().append_logs([{**log, _CHECKSUM: _line_sha256(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        with disk_errors_named(self.path):
            for log in super().read_logs(log_number_from):
                if log.pop(_CHECKSUM, None) != _line_sha256(log):
                    raise ValueError("an event does not match its checksum")
                yield log


def _line_sha256(log: Mapping[str, Any]) -> str:
    return sha256_bytes(json.dumps(log, sort_keys=True).encode())[:_DIGITS]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError) as error:
        raise SearchError(
            f"{path}: the journal is damaged ({error}); run the search again, which cuts it back to what is whole"
        ) from error


def recover_journal(folder: Path) -> None:
    """Cut the journal back to what was before its first damaged line; the file as it was is kept beside it.

    For the only process that uses the study. Events after the cut are lost: the trials of these are drawn again, and
    where one worker had drawn them, they are the same ones and are taken up from their run folders. With several, a
    trial that is drawn otherwise is refused by the folder of the first one, which then has to be moved away. Raises
    SearchError for a journal of an earlier version.
    """
    path = folder / JOURNAL_NAME
    for left in folder.glob(f"{JOURNAL_NAME}.lock*"):  # of a process that was killed while it wrote
        left.unlink()
    content = path.read_bytes() if path.is_file() else b""
    lines = content.splitlines(keepends=True)
    if lines and _CHECKSUM.encode() not in content and json_line(lines[0]) is not None:
        raise SearchError(
            f"{path}: the journal is of an earlier version, whose lines have no checksums. Use another folder, or "
            "delete it to make it again"
        )
    whole = next((number for number, line in enumerate(lines) if not _is_whole(line)), len(lines))
    if whole == len(lines):
        return
    kept = path.with_name(f"{JOURNAL_NAME}.damaged")
    write_atomically(kept, lambda temporary: temporary.write_bytes(content), len(content))
    write_atomically(path, lambda temporary: temporary.write_bytes(b"".join(lines[:whole])), len(content))
    logger.warning(
        "%s: line %d of %d was damaged, so what follows %d whole lines has been taken away; the file as it was is %s",
        path, whole + 1, len(lines), whole, kept.name,
    )  # fmt: skip


def json_line(line: bytes) -> dict[str, Any] | None:
    """The event of a whole line; None for anything else."""
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _is_whole(line: bytes) -> bool:
    event = json_line(line)
    return event is not None and event.pop(_CHECKSUM, None) == _line_sha256(event)
