"""How much memory this process may still take: of the machine, its container (cgroup), and its shell (`ulimit`)."""

import ctypes
import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from newllm_core.runs.disk import RunError

# Whatever a run's size, its libraries take some when they are first called.
_LEAST_BYTES = 24 * 10**6
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# What glibc keeps of freed memory, and from which size on an array is given back at once; their numbers in malloc.h.
_KEPT_BYTES, _GIVEN_BACK_FROM = 2**28, 2**25
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Files that say limit and use, of both versions of cgroups.
_LIMIT_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or host memory ran out."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # cuBLAS and cuDNN; oneDNN, which says no more; a size that no memory has; Python, which has no room for a stack.
    libraries = "alloc_failed", "create a primitive", "storage size calculation overflowed", "can't start new thread"
    signs = "out of memory", "can't allocate memory", "cannot allocate memory", *libraries
    return isinstance(error, RuntimeError | OSError) and any(sign in text for sign in signs)


@contextmanager
def memory_errors_named(place: Path) -> Iterator[None]:
    """Turns what is left of an out-of-memory, after every smaller batch was tried, into a RunError."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if isinstance(error, RunError) or not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{place}: memory ran out ({reason}); {free_memory_bytes() / 1e6:,.1f} MB are free to this process. Close "
            "other programs or raise its limit, or use fewer conversations or a smaller context_dim, and run the same "
            "again: it goes on from what was saved"
        ) from error


def refuse_scarce_memory(place: Path) -> None:
    """Raises RunError where libraries would end the process without a word: some abort when an allocation fails."""
    free = free_memory_bytes()
    if free < _LEAST_BYTES:
        raise RunError(
            f"{place}: {free / 1e6:,.1f} MB of memory are free to this process; a run needs at least "
            f"{_LEAST_BYTES / 1e6:,.0f} MB. Close other programs or raise its limit, and run the same again; nothing "
            "was trained now"
        )


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MB that it has freed, where sixteen times as much is free.

    A training step frees some megabytes that the next one takes anew. glibc gives the top of the heap back to the
    system in between, which clears each page before it hands it out again: a tenth of a step's time. No figure changes.
    """
    if sys.platform == "linux" and free_memory_bytes() > 16 * _KEPT_BYTES:
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
        if set_option is not None:
            set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            set_option(_M_MMAP_THRESHOLD, _GIVEN_BACK_FROM)


def free_memory_bytes() -> int:
    """For arrays: the least of what the machine, the container and `ulimit -d` and `-v` leave."""
    process = psutil.Process().memory_info()
    free = [psutil.virtual_memory().available, *_free_in_cgroups(), _left(resource.RLIMIT_AS, process.vms)]
    return int(min([*free, _left(resource.RLIMIT_DATA, process.data)]))


def free_address_bytes() -> float:
    """For files that are mapped: what `ulimit -v` leaves; infinite without one."""
    return _left(resource.RLIMIT_AS, psutil.Process().memory_info().vms)


def _left(limit: int, used: int) -> float:
    soft, _ = resource.getrlimit(limit)
    return math.inf if soft == resource.RLIM_INFINITY else max(0, soft - used)


def _free_in_cgroups() -> Iterator[float]:
    """Of this process's control groups and those above them; what only caches files counts as free."""
    for folder in _cgroup_folders():
        for limit_name, used_name in _LIMIT_FILES:
            limit, used = (_number(folder / name) for name in (limit_name, used_name))
            if limit is not None and used is not None:
                yield max(0.0, limit - used + _cached(folder))


def _cgroup_folders() -> Iterator[Path]:
    if not _OWN_CGROUPS.is_file():
        return
    for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUPS / controllers
            inner = root / path.lstrip("/")
            yield from (part for part in (inner, *inner.parents) if part.is_relative_to(root))


def _number(path: Path) -> int | None:
    """None where there is no such file, or "max": no limit."""
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else "max"
    return int(text) if text.isdigit() else None


def _cached(folder: Path) -> int:
    path = folder / "memory.stat"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
