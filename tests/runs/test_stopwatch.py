"""Seconds go on over interruptions, by the wall and by the processor."""

import pytest

from newllm_core.runs import progress as stopwatch_module
from newllm_core.runs.progress import Seconds, Stopwatch


def test_seconds_of_three_sessions_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 7.0}
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(stopwatch_module.time, "process_time", lambda: now["cpu"])

    def session(wall: float, cpu: float, state: dict[str, float] | None) -> Stopwatch:
        watch = Stopwatch()
        if state is not None:
            watch.resume(state)
        now["wall"], now["cpu"] = now["wall"] + wall, now["cpu"] + cpu
        return watch

    first = session(3, 2, None)
    assert (first.earlier, first.total()) == (Seconds(), Seconds(3, 2))
    second = session(10, 20, first.state())
    assert (second.earlier, second.total()) == (Seconds(3, 2), Seconds(13, 22))
    state, now["cpu"] = second.state(), 0.0  # another process
    third = session(1, 1, state)
    assert third.total() == Seconds(14, 23)
