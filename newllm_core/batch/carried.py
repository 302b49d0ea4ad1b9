"""Copies of checkpoints and results, carried between machines that have no folder in common.

A task's work leaves copies of what it has so far in a folder of its machine (`runs/copies.py`: a zip, and a mark that
says its checksum). Here they travel: to the machine that gave the task, soon after they are written, and from there to
whichever machine tries the task again, which goes on from them.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from newllm_core.runs.copies import is_copy, remove_older

logger = logging.getLogger("newllm")

_CHUNK_BYTES = 32 * 2**20
_LOOK_SECONDS = 5.0
_LOOKS = 3  # at most, at what there is to begin with


class Keeper(Protocol):
    """Files below a folder of the machine that gave the tasks; ``name``: "<run>/<file>", as `copies` writes them."""

    def names(self, folder: Path) -> list[str]: ...

    # Empty at the end of the file.
    def read(self, folder: Path, name: str, start: int) -> bytes: ...

    # Raises ValueError for a name that is no copy's.
    def write(self, folder: Path, name: str, start: int, chunk: bytes) -> None: ...


class FolderKeeper:
    """The files themselves."""

    def names(self, folder: Path) -> list[str]:
        """Every zip before its mark; none without a mark, which is still being written."""
        found = {path for path in folder.glob("*/*") if is_copy(path.name)}
        marks = sorted(path for path in found if path.suffix != ".zip" and path.with_suffix(".zip") in found)
        archives = [mark.with_suffix(".zip") for mark in marks]
        return [str(path.relative_to(folder)) for path in (*archives, *marks)]

    def read(self, folder: Path, name: str, start: int) -> bytes:
        with (folder / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(_CHUNK_BYTES)

    def write(self, folder: Path, name: str, start: int, chunk: bytes) -> None:
        run, _, file = name.partition("/")
        if run in ("", ".", "..") or not is_copy(file):
            raise ValueError(f"expected the name of a copy, given {name!r}")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(chunk)
        if path.suffix != ".zip":
            remove_older(path.parent)


@contextmanager
def carried(keeper: Keeper, folder: Path) -> Iterator[None]:
    """Inside, work begins with the copies that ``keeper`` has, and what is or comes into ``folder`` goes there."""
    here, ended = FolderKeeper(), threading.Event()
    # Not all that is here: an earlier try on this machine may have ended before it sent what it left.
    sent = _handed_over(keeper, here, folder)

    def send_new() -> None:
        for name in here.names(folder):
            if name not in sent:
                _send(here, keeper, folder, name)
                sent.add(name)

    def send_often() -> None:
        while not ended.wait(_LOOK_SECONDS):
            try:
                send_new()
            except FileNotFoundError:  # an older copy, which has just made room for a newer one
                continue
            except Exception as error:  # whatever carries them; the work goes on, and what it leaves is sent at its end
                logger.warning("copies could not be sent now: %s", error)

    looking = threading.Thread(target=send_often, daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
        send_new()


def _handed_over(source: Keeper, target: Keeper, folder: Path) -> set[str]:
    """The names of all copies that were sent: again what is there, where one has just made room for a newer one.

    That machine still receives what an earlier try sends; after some looks, what was sent until then is recent enough.
    """
    sent = set[str]()
    for _ in range(_LOOKS):
        found = [name for name in source.names(folder) if name not in sent]
        gone = [name for name in found if not _sent(source, target, folder, name)]
        sent |= set(found) - set(gone)
        if not gone:
            break
    return sent


def _sent(source: Keeper, target: Keeper, folder: Path, name: str) -> bool:
    """False where it is no longer there."""
    try:
        _send(source, target, folder, name)
    except FileNotFoundError:
        return False
    return True


def _send(source: Keeper, target: Keeper, folder: Path, name: str) -> None:
    start = 0
    while True:
        chunk = source.read(folder, name, start)
        if chunk or not start:  # a mark is an empty file
            target.write(folder, name, start, chunk)
        if not chunk:
            return
        start += len(chunk)
