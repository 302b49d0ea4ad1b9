"""Seeds, devices, versions: what makes two runs the same, or says how they differ."""

import hashlib
import platform
import random
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from newllm_core.runs.files import PROJECT_ROOT, RunError
from newllm_core.runs.host_memory import keep_freed_memory
from newllm_core.runs.products import cpu_facts, has_bf16_products
from newllm_core.runs.world import current_world


def seed_everything(seed: int, num_threads: int) -> None:
    """Same seed, same threads, same machine: same figures to the last digit."""
    keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would also fill every fresh tensor: a sixth of Phase 1, and no figure reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def derived_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on every part and on nothing else."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def generator_states(device: torch.device) -> dict[str, Any]:
    """Of the random generators that dropout draws from on ``device``; for a checkpoint's ``states``."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"generator": torch.get_rng_state(), "cuda_generator": cuda}


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where ``generator_states`` found them."""
    torch.set_rng_state(states["generator"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda_generator"], device)


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises RunError for a device that is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("device 'cuda' was asked for, but torch sees no CUDA device; use device='cpu' or 'auto'")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def computed_by(device: torch.device) -> dict[str, Any]:
    """What a record says of the machine and the code that made it."""
    return {
        "device": device_name(device),
        "arithmetic": arithmetic(),
        "versions": library_versions(),
        "commit": current_commit(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


def arithmetic() -> dict[str, Any]:
    """What the rounding of sums and products depends on beside versions and threads: the processor, by what it can, and
    how many ranks add up."""
    world = current_world()
    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_products": has_bf16_products(),
        **({} if world.is_alone else {"ranks": world.size}),
    }


def cpu_name() -> str | None:
    """The processor's model name, with the numbers that tell apart what is sold under it; None where unknown."""
    facts = cpu_facts()
    if not facts:
        return platform.processor() or None
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model", "stepping") if name in facts]
    return ", ".join([facts["model name"], *numbers]) if "model name" in facts else None


def current_commit() -> str | None:
    """The checkout's commit, with `+changes` when files differ from it; None outside a git checkout."""
    try:
        options = {"cwd": PROJECT_ROOT, "text": True, "stderr": subprocess.DEVNULL}
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **options).strip()  # type: ignore[call-overload]
        changes = subprocess.check_output(["git", "status", "--porcelain", "-uno"], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes.strip() else "")


def library_versions() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels can run there: on a CUDA GPU where Triton is installed, as it is beside PyTorch.

    Under Triton's interpreter kernels run on a CPU too; tests call them directly there, since it is slow.
    """
    return device.type == "cuda" and has_triton()
