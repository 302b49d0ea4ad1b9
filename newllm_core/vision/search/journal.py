"""A study's journal: one JSON line an event, which a full disk or a kill can cut.

Optuna 5 overlooks a last line that was cut, and joins the next event that it writes to it: from then on the journal
cannot be read. So the line goes before a search continues.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from newllm_core.runs.files import write_atomically

JOURNAL_NAME = "study.journal"
logger = logging.getLogger("newllm")


class SearchError(RuntimeError):
    """A search that cannot be run or read; the message says why."""


def journal_storage(folder: Path) -> JournalStorage:
    """The storage of the folder's study. Raises SearchError where its journal is damaged."""
    # A journal rather than SQLite: Optuna's FAQ advises against SQLite for parallel trials, and a journal is plain JSON
    # lines. Its lock is a file opened exclusively, which also works where there are no symbolic links.
    path = folder / JOURNAL_NAME
    with _damage_named(path):
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError) as error:
        raise SearchError(
            f"{path}: the journal is damaged ({error}); continuing the search says how to go on"
        ) from error


def recover_journal(folder: Path) -> None:
    """Cut the journal back to its last whole line, where the end was lost; the damaged file is kept beside it.

    For the only process that uses the study. Events after the cut are lost: a trial that was finished in them is
    taken up again, from its run folder. Raises SearchError, with the line, for damage anywhere else.
    """
    path = folder / JOURNAL_NAME
    if not path.is_file():
        return
    path.with_name(f"{JOURNAL_NAME}.lock").unlink(missing_ok=True)  # of a process that was killed while it wrote
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    damaged = [number for number, line in enumerate(lines, start=1) if not _is_whole(line)]
    if not damaged:
        return
    if damaged[0] < len(lines):
        raise SearchError(
            f"{path}, line {damaged[0]} of {len(lines)}: expected an event as JSON; the journal is damaged before its "
            f"end. Restore the file, or cut it to its first {damaged[0] - 1} lines to go on from there"
        )
    kept = path.with_name(f"{JOURNAL_NAME}.damaged")
    write_atomically(kept, lambda temporary: temporary.write_bytes(content))
    write_atomically(path, lambda temporary: temporary.write_bytes(b"".join(lines[:-1])))
    logger.warning("%s: its last line was cut, and has been taken away; the file as it was is %s", path, kept.name)


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
