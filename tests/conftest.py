"""What every test starts from: one thread and fixed seeds, whatever the test before it has set."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

# Triton's kernels run in its interpreter here. It asks when Triton is imported, which any test may be the first to do.
os.environ["TRITON_INTERPRET"] = "1"
# NumPy reads it when it is imported. Its threads wait by spinning: beside other work a bootstrap of small products took
# 250 s of the clock in place of 10.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# A file runs on one worker, so a long one that comes last leaves the others idle. These take 15 to 140 s of one core.
LONGEST_FIRST = (
    "notebooks/test_run_again.py", "experiment/test_quick_profile.py", "vision/test_vision_search.py",
    "data/test_networked.py", "experiment/test_experiment.py", "runs/test_reuse.py", "batch/test_batch.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def asked_by_signals() -> Iterator[None]:
    """As in a terminal; a program that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seeds() -> None:
    # One thread: sums of floats come out in one order, and several test runs can share a machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
