"""The machine, the memory of a process, and work in a fresh process of its own (Linux)."""

import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from newllm_core.head.cross_entropy import choose_head
from newllm_core.runs.products import has_bf16_products, instruction_set
from newllm_core.runs.reproducibility import (
    cpu_name,
    current_commit,
    library_versions,
    seed_everything,
)

MB = 10**6
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
Result = TypeVar("Result")


def machine_facts() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB),
        "system": platform.platform(terse=True),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "bf16_products": has_bf16_products(),
        "head": choose_head("auto", torch.device("cpu")),
        "versions": library_versions(),
        "commit": current_commit(),
    }


def resident_mb() -> float:
    """Memory of this process now."""
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Largest memory of this process since its start or the last `forget_peak`."""
    return _status_mb("VmHWM")


def forget_peak() -> None:
    """The kernel starts the peak anew from the memory of now (proc(5), clear_refs: 5)."""
    _CLEAR_REFS.write_text("5", encoding="ascii")


def _status_mb(field: str) -> float:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"{_STATUS}: expected a line {field}, found none; memory is measured on Linux only")


def in_fresh_process(function: Callable[..., Result], seed: int, num_threads: int, *arguments: Any) -> Result:
    """``function(*arguments)`` in a new interpreter, so that its peak memory is its own.

    Errors of the function are raised here; a process that was killed raises BrokenProcessPool.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_seeded, function, seed, num_threads, arguments).result()


def _seeded(function: Callable[..., Result], seed: int, num_threads: int, arguments: tuple[Any, ...]) -> Result:
    seed_everything(seed, num_threads)
    return function(*arguments)
