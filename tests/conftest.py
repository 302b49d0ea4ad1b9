"""What every test starts from: one thread and fixed seeds, whatever the test before it has set."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seeds() -> None:
    # One thread: sums of floats come out in one order, and several test runs can share a machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
