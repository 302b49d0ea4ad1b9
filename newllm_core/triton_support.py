"""Whether the Triton kernels can run: on a CUDA GPU where Triton is installed, as it is beside PyTorch there."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Under Triton's interpreter kernels run on a CPU too; tests call them directly there, since it is slow."""
    return device.type == "cuda" and has_triton()
