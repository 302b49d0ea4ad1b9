"""Interleaved timings: every round runs each way once, so that a slow minute of the machine hits all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Work = Callable[[], object]


def interleaved(ways: Mapping[str, Work], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds of one call, per way and round, in the order run."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work, calls))
    return seconds


def timed(work: Work, calls: int = 1) -> float:
    gc.collect()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def calls_that_last(work: Work, seconds: float) -> int:
    """How many calls of ``work`` take about that long, at least one."""
    work()
    return max(1, round(seconds / max(timed(work), 1e-9)))


def compared(seconds: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    """Every timing, the medians, and how many times as fast as ``reference`` each one is.

    ``ratio`` is of the medians; ``ratio_range`` the smallest and largest of the single rounds.
    """
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    by_round = {
        name: [slow / fast for slow, fast in zip(seconds[reference], values)] for name, values in seconds.items()
    }
    others = [name for name in seconds if name != reference]
    return {
        "reference": reference,
        "seconds": dict(seconds),
        "median_seconds": medians,
        "ratio": {name: medians[reference] / medians[name] for name in others},
        "ratio_range": {name: [min(by_round[name]), max(by_round[name])] for name in others},
    }
