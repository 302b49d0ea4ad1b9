"""Faults at file operations: an audit hook sees every opening for writing, renaming, removing and making of a folder.

The end of a file's writing, its fsync, is an operation too. Hooks cannot be taken away, so they are set in children.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from newllm_core.runs import files

_WRITES = os.O_WRONLY | os.O_RDWR
_OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")

Act = Callable[[int, str, Path], None]  # number of the operation from 0, what it is, where


def at_operations(folder: Path, act: Act) -> None:
    """Call ``act`` before every file operation below ``folder``, for the rest of this process."""
    state = {"count": 0, "busy": False}
    root, fsync = str(folder.resolve()), os.fsync

    def note(kind: str, path: str) -> None:
        if state["busy"] or not path.startswith(root):
            return
        number = state["count"]
        state["count"], state["busy"] = number + 1, True
        try:
            act(number, kind, Path(path))
        finally:
            state["busy"] = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            _note_path(note, "open", arguments[0])
        elif event in _OPERATIONS:
            _note_path(note, event, arguments[1] if event == "os.rename" else arguments[0])

    def synced(descriptor: int) -> None:
        note("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(hook)


def _note_path(note: Callable[[str, str], None], kind: str, path: Any) -> None:
    if isinstance(path, str | bytes | os.PathLike):
        note(kind, os.path.abspath(os.fsdecode(path)))


def counting(folder: Path, counted: list[str]) -> Callable[[], None]:
    """Appends what every operation is to ``counted``."""
    return lambda: at_operations(folder, lambda number, kind, path: counted.append(f"{kind} {path.name}"))


def killing(folder: Path, number: int) -> Callable[[], None]:
    """SIGKILL just before operation ``number``; a journal that is being written to is cut by some bytes first."""

    def kill(found: int, kind: str, path: Path) -> None:
        if found == number:
            if kind == "fsync" and path.suffix == ".journal":
                os.truncate(path, max(0, path.stat().st_size - 1 - number % 40))
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: at_operations(folder, kill)


# --- a disk that does not take what is written ------------------------------------------------------------------------


def refusing(folder: Path, number: int, code: int) -> Callable[[], None]:
    """From operation ``number`` on everything that writes fails with ``code`` (ENOSPC, EROFS, EDQUOT)."""

    def refuse(found: int, kind: str, path: Path) -> None:
        if found >= number and not (code in (errno.ENOSPC, errno.EDQUOT) and kind in ("os.remove", "os.rmdir")):
            raise OSError(code, os.strerror(code), str(path))

    return lambda: at_operations(folder, refuse)


def filling(folder: Path, number: int) -> Callable[[], None]:
    """From operation ``number`` on, files can be made but nothing can be written to them: the kernel's own ENOSPC.

    Every temporary file is a link to /dev/full, so that whoever writes is told so. Only safetensors replaces the link,
    and is made to say what it says of a full disk.
    """
    make, root = tempfile.mkdtemp, str(folder.resolve())
    state = {"full": False}

    def fill(found: int, kind: str, path: Path) -> None:
        state["full"] = state["full"] or found >= number

    def made(*arguments: Any, **options: Any) -> str:
        name = make(*arguments, **options)
        if state["full"] and os.path.abspath(name).startswith(root):
            os.symlink("/dev/full", os.path.join(name, "content"))
        return name

    save = files.save_file

    def saved(tensors: Any, path: Path) -> None:
        if path.is_symlink():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path)

    def fault() -> None:
        at_operations(folder, fill)
        tempfile.mkdtemp, files.save_file = made, saved

    return fault


def vanishing(folder: Path, number: int) -> Callable[[], None]:
    """Before operation ``number`` the folder goes, as a drive that is taken away, and cannot be made again."""
    moved = folder.with_name(f"{folder.name}.gone")

    def vanish(found: int, kind: str, path: Path) -> None:
        if found == number:
            os.rename(folder, moved)
        if found >= number:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    return lambda: at_operations(folder, vanish)


def bring_back(folder: Path) -> None:
    """After ``vanishing``."""
    moved = folder.with_name(f"{folder.name}.gone")
    if moved.exists():
        shutil.rmtree(folder, ignore_errors=True)
        moved.rename(folder)
