"""One process at a time: by a lock of the file system, or by a lease where it has none, as some mounted drives."""

import errno
import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from newllm_core.runs.disk import disk_errors_named

logger = logging.getLogger("newllm")

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
# Of a lease: how long one lives that nobody renews, between two looks at somebody's, and until a new one counts.
_LEASE_SECONDS, _LOOK_SECONDS, _SETTLE_SECONDS = 120.0, 2.0, 0.5


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait for an advisory lock on the file ``path``; it ends with the process, however that ends."""
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    with opened as stream:
        fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


class _HeldError(Exception):
    """Somebody else has the lock."""


@contextmanager
def owned(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Be the one process that works on what the lock file ``path`` stands for; wait for the one before.

    Its end, however it comes, ends the lock too. While it is held, the file says by whom and since when. Always True,
    and without ``wait`` False where somebody works on it now.
    """
    try:
        with disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = _locked(path, wait)
    except _HeldError:
        yield False
        return
    if stream is None:
        with _leased(path, wait) as mine:
            yield mine
        return
    try:
        yield True
    finally:
        with stream, disk_errors_named(path):
            path.unlink(missing_ok=True)  # before the lock ends: who waits for it then makes a new one


def remove_abandoned_lock(path: Path) -> None:
    """Of a process that was killed between its last file and its end; one that somebody holds stays."""
    with suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as stream:
        try:
            if _try_lock(stream) and _is_at(path, stream):
                path.unlink()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if _is_abandoned(path):
                path.unlink(missing_ok=True)


def _locked(path: Path, wait: bool) -> IO[str] | None:
    """The lock, when we have it; None where the file system has no locks. Raises _HeldError instead of waiting."""
    said = False
    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            if not _try_lock(stream):
                if not wait:
                    raise _HeldError
                said = said or _say_who(path)
                fcntl.flock(stream, fcntl.LOCK_EX)
            if _is_at(path, stream):
                stream.truncate(0)  # the name of an owner that was killed
                stream.write(_signature())
                stream.flush()
                return stream
        except OSError as error:
            stream.close()
            if error.errno not in _NO_LOCKS:
                raise
            with suppress(FileNotFoundError):  # its owner has ended just now
                if not path.stat().st_size:
                    path.unlink()  # this attempt has made it; a lease is a file that nobody else has made
            return None
        except BaseException:
            stream.close()
            raise
        stream.close()  # its owner has ended and removed the file: what counts now is another one


def _try_lock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, stream: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _leased(path: Path, wait: bool) -> Iterator[bool]:
    """A file that only one can make, renewed while we work; False where another has it and we do not wait."""
    mine = _signature()
    said = False
    while not _take_lease(path, mine):
        if _has_ended(path) or (_is_abandoned(path) and not _is_renewed_soon(path)):
            path.unlink(missing_ok=True)
        elif not wait:
            yield False
            return
        else:
            said = said or _say_who(path)
            time.sleep(_LOOK_SECONDS)
    ended = threading.Event()
    threading.Thread(target=_renew, args=(path, mine, ended), daemon=True).start()
    try:
        yield True
    finally:
        ended.set()
        if _holds(path, mine):
            path.unlink(missing_ok=True)
        else:
            _say_lost(path)


def _take_lease(path: Path, mine: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(mine)
    except FileExistsError:
        return False
    # Two that found the same abandoned lease can each have removed the other's new one: the last one counts.
    time.sleep(_SETTLE_SECONDS)
    return _holds(path, mine)


def _holds(path: Path, mine: str) -> bool:
    """Whether the lease at ``path`` is the one that says ``mine``."""
    try:
        return path.read_text(encoding="utf-8") == mine
    except FileNotFoundError:
        return False


def _is_abandoned(path: Path) -> bool:
    """Nobody has renewed it, or its process was of this machine and has ended. That a process of its number runs here
    says nothing: in a container that was started again, names and numbers are the same ones.
    """
    try:
        return time.time() - path.stat().st_mtime > _LEASE_SECONDS or _has_ended(path)
    except FileNotFoundError:
        return False  # given back just now


def _is_renewed_soon(path: Path) -> bool:
    """Whether its owner renews it, or gives it back, while we look, somewhat longer than a renewal takes: clocks may
    differ, and a machine that slept wakes all its processes at once.
    """
    with suppress(FileNotFoundError):
        renewed = path.stat().st_mtime
        end = time.monotonic() + _LEASE_SECONDS / 3
        while time.monotonic() < end:
            time.sleep(min(_LOOK_SECONDS, _LEASE_SECONDS / 30))
            if path.stat().st_mtime != renewed:
                return True
        return False
    return True


def _has_ended(path: Path) -> bool:
    """Whether its owner was a process of this machine, and runs no longer."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # given back; its owner's name not written yet, or by one killed there
        return False
    return bool(owner["host"] == platform.node() and not is_running(owner["process"]))


def _renew(path: Path, mine: str, ended: threading.Event) -> None:
    """Until the end of the work. A lease that was lost is not taken back: somebody else counts on it."""
    said = False
    while not ended.wait(_LEASE_SECONDS / 4):
        try:
            if _holds(path, mine):
                os.utime(path)
            elif not ended.is_set():  # else it was given back just now
                said = said or _say_lost(path)
        except OSError as error:  # mounted drives have such moments; the next look comes before the lease is old
            logger.warning("%s: the lease could not be renewed now (%s)", path, error)


def _say_lost(path: Path) -> bool:
    """Say that somebody took our lease for abandoned, as of a machine that slept; always True."""
    logger.warning(
        "%s: the lease of this process was lost; another process may have worked here at the same time. Run the same "
        "again by one process, and look whether its figures are the same", path,
    )  # fmt: skip
    return True


def is_running(process: int) -> bool:
    """Whether a process with this number is there, on this machine."""
    try:
        os.kill(process, 0)  # signal 0 is only a question
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _signature() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps(
        {"host": platform.node(), "process": os.getpid(), "thread": threading.get_ident(), "since": since}
    )


def _say_who(path: Path) -> bool:
    """Say who holds the lock; always True."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {owner['process']} on {owner['host']} (since {owner['since']})"
    except (FileNotFoundError, ValueError):
        who = "another process"  # it ends just now, or has only just begun
    logger.warning("%s: waiting for %s, which works here", path.parent, who)
    return True
