"""Triton's kernels on a CPU, by Triton's interpreter: what they compute, against the references in PyTorch.

Triton is no requirement of the project (a GPU's PyTorch brings it); `.ci/run` installs it and asks for these tests.
"""

import importlib.util
import os

import pytest

REQUIRED = os.environ.get("NEWLLM_KERNEL_TESTS") == "1"

if importlib.util.find_spec("triton") is None:
    if REQUIRED:
        pytest.exit("NEWLLM_KERNEL_TESTS=1, but Triton is not installed: pip install triton==3.6.0", returncode=1)
    collect_ignore_glob = ["test_*.py"]
