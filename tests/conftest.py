"""What every test starts from: one thread and fixed seeds, whatever the test before it has set."""

import os
import random

# Triton's kernels run in its interpreter here. It asks when Triton is imported, which any test may be the first to do.
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seeds() -> None:
    # One thread: sums of floats come out in one order, and several test runs can share a machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
