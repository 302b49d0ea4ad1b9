"""What a disk refuses, said in one sentence: which file, bytes needed and free, what is safe, how to go on."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class RunError(RuntimeError):
    """A run's files cannot be used; the message names the file and what is wrong with it."""


class DiskError(RunError):
    """A file could not be written: full, read-only, vanished, over a quota. What was there before is whole."""


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not become so large there",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "writing is not permitted there",
    errno.EPERM: "writing is not permitted there",
    errno.ENOENT: "the folder has vanished",
    errno.ENOTDIR: "the folder has vanished",
    errno.ENODEV: "the disk has vanished",
    errno.ENXIO: "the disk has vanished",
    errno.ESTALE: "the disk has vanished",
    errno.ENOTCONN: "the disk has vanished",
    errno.EIO: "the disk reports an error",
}


@contextmanager
def disk_errors_named(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turns what a disk refuses while ``path`` is written, about ``num_bytes`` large, into a DiskError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = None if isinstance(error, RunError) else _reason(error)
        if reason is None:
            raise
        needed = "" if num_bytes is None else f"it needs about {_megabytes(num_bytes)}, "
        raise DiskError(
            f"{path}: could not be read or written, {reason}: {needed}{_megabytes(free_bytes(path))} are free there. "
            "Files that were finished before are whole. Make room, or use another folder, and run the same again: it "
            "goes on from the last checkpoint"
        ) from error


# What torch.save says when a write of its archive fails, and when its end cannot be written.
_OF_ARCHIVES = ("inline_container", "iostream error")


def _reason(error: Exception) -> str | None:
    """Why, in words; None where it was not the disk."""
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0)
    # Of safetensors, which is written in Rust, and of torch.save, whose archive is written in C++.
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return _REASONS.get(int(found[1]))
    if isinstance(error.__context__, OSError):  # as of Optuna's lock, which says that it did not possess it
        return _reason(error.__context__)
    return "the disk takes no more" if any(sign in str(error) for sign in _OF_ARCHIVES) else None


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.3f} MB"


def free_bytes(path: Path) -> int:
    """Of the disk of the nearest folder above ``path`` that is there."""
    # `os.path.exists` is also content with a disk that has vanished, where `Path.exists` raises.
    place = next((parent for parent in (path, *path.absolute().parents) if os.path.exists(parent)), Path("/"))  # noqa: PTH110
    return shutil.disk_usage(place).free


def refuse_full_disk(folder: Path, checkpoint_bytes: int) -> None:
    """Raises DiskError, with the numbers, where the disk of ``folder`` has no room for two checkpoints of this size.

    The one before stays until the new one is whole. ``folder`` need not exist yet.
    """
    needed, free = 2 * checkpoint_bytes, free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"{folder}: this run needs about {_megabytes(needed)} of disk for its checkpoints, {_megabytes(free)} are "
            "free. Make room, or choose another folder; nothing has been trained"
        )
