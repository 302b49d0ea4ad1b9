"""The runtime that a notebook finds itself in: its machine in one line, its code against the disk's, Colab's drive."""

import importlib
import os
import platform
import sys
import warnings
from pathlib import Path

import psutil
import torch

import newllm_core
from newllm_core.runs.reproducibility import cpu_name, current_commit, library_versions

GIB = 2**30
# The profile's matrix, contexts and batches are 1 GiB by the rules of gpu_memory.py; CUDA's own share comes on top.
_COLAB_GIB = 4
_DRIVE = Path("/content/drive")


def machine_text() -> str:
    """GPU and its memory, or the CPU; memory, versions, commit, and which profile is meant for such a machine.

    Warns where the package's files are newer than what this process imported of it.
    """
    warn_of_older_code()
    versions = library_versions()
    memory = psutil.virtual_memory().total / GIB
    parts = [
        _device_text(),
        f"{memory:.0f} GiB of memory",
        f"Python {versions['python']}, torch {versions['torch']}, NumPy {versions['numpy']}",
        f"newllm_core {newllm_core.__version__} at {(current_commit() or 'no commit')[:10]}",
        f"profile that fits: {fitting_profile()}",
    ]
    return "; ".join(parts)


def _device_text() -> str:
    if not torch.cuda.is_available():
        return f"no GPU, {psutil.cpu_count()} cores ({cpu_name() or platform.machine()})"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"


def fitting_profile() -> str:
    """Of `notebooks/profiles`: `colab` for a GPU with room for it, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    return "colab" if torch.cuda.get_device_properties(0).total_memory >= _COLAB_GIB * GIB else "cpu"


def warn_of_older_code() -> None:
    """A notebook's kernel goes on with what it imported, whatever a `git pull` has brought since."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == newllm_core.__name__]
    paths = [Path(module.__file__) for module in modules if module.__file__]
    changed = sorted(path.name for path in paths if not path.is_file() or path.stat().st_mtime > newllm_core.IMPORTED)
    if changed:
        others = f" and {len(changed) - 1} more" if changed[1:] else ""
        warnings.warn(
            f"newllm_core has changed on disk since this kernel imported it ({changed[0]}{others}), as by a "
            "`git pull`: restart the kernel, or old code runs on", stacklevel=3,
        )  # fmt: skip


def mount_drive(copy_to: str | None) -> None:
    """On Colab, mount Google Drive where ``copy_to`` lies in it; a folder of that name would else be the runtime's own,
    and go with it."""
    wanted = copy_to is not None and Path(copy_to).is_relative_to(_DRIVE)
    if wanted and not _DRIVE.is_mount() and "COLAB_RELEASE_TAG" in os.environ:
        importlib.import_module("google.colab.drive").mount(str(_DRIVE))
