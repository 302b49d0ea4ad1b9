"""Tensors that live in memory-mapped files, and how much of them is in memory at a time.

The kernel keeps the pages that were touched until memory is short, and counts them as the process's own.
``give_back_pages`` lets go of them earlier, so that a process stays as small as its budget says however large its files
are. Nothing is lost by that: what was written stays in the file, and a page that is touched again is read again.
"""

import math
import mmap
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from newllm_core.runs.disk import RunError, disk_errors_named
from newllm_core.runs.host_memory import free_address_bytes

MOST_RESIDENT_BYTES = 64 * 2**20  # of mapped files, before their pages are given back
_PIECE_BYTES = 16 * 2**20

# By the address where they begin; a mapping goes with the last tensor that looks into it.
_mappings = weakref.WeakValueDictionary[int, mmap.mmap]()
_given_back_at = 0  # bytes of files, libraries among them, that were in memory when pages were last given back


def new_mapped(shape: Sequence[int], folder: Path, kind: torch.dtype = torch.float32) -> Tensor:
    """A tensor in a nameless file in ``folder``, which goes with it. Raises RunError where there is no room."""
    what, num_bytes = "contexts" if kind == torch.float32 else "tokens", math.prod(shape) * kind.itemsize
    if num_bytes > free_address_bytes():
        raise RunError(
            f"{what} take {num_bytes / 1e6:,.1f} MB, and the limit of address space (ulimit -v) leaves "
            f"{free_address_bytes() / 1e6:,.1f} MB. Raise it, or use fewer conversations or a smaller context_dim"
        )
    # Beside the results, where space is looked for: a temporary folder is often small, or memory itself. All of it is
    # taken now, since a disk that is full later would end the process without a word. The mapping holds the file; its
    # name may go at once, so that nothing is left behind whatever happens.
    with disk_errors_named(folder / what, num_bytes):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".newllm-{what}-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            mapping = mmap.mmap(file.fileno(), num_bytes)
    return _registered(mapping).view(kind).view(tuple(shape))


def map_file(path: Path) -> Tensor:
    """The bytes of a file, uint8 `[n]`, to be read only: writing to them ends the process."""
    with path.open("rb") as file:
        return _registered(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _registered(mapping: mmap.mmap) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        content = torch.frombuffer(mapping, dtype=torch.uint8)
    _mappings[content.data_ptr()] = mapping
    return content


def is_mapped(tensor: Tensor) -> bool:
    """Whether it looks into a file of this module."""
    return bool(_mappings) and tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _mappings


def give_back_pages() -> None:
    """Call it when some part of a mapped tensor was read or written: drops all pages where they have become many."""
    global _given_back_at
    if not _mappings or _resident_file_bytes() < _given_back_at + MOST_RESIDENT_BYTES:
        return
    for mapping in list(_mappings.values()):
        mapping.madvise(mmap.MADV_DONTNEED)
    _given_back_at = _resident_file_bytes()


def _resident_file_bytes() -> int:
    """Of mapped files and libraries; where the system does not say, more than any limit."""
    return int(getattr(psutil.Process().memory_info(), "shared", 2**63))


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor as flat parts of some megabytes, in order; the pages of each are given back after it was used."""
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
    for part in rows.split(max(1, _PIECE_BYTES // max(1, row_bytes))):
        yield part.reshape(-1)
        give_back_pages()
