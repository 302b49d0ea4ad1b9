"""Two to four processes on one folder at once: each thing is done once, and all have the same results."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from newllm_core.training.loop import TrainingLoop

from .cases import SEED, Case, FailedError, Workshop
from .process import Child, start
from .scenarios import Scenario


def crowds(scenario: Scenario, count: int) -> Iterator[Case]:
    for number in range(count):
        name = f"{scenario.name}-{number}"
        yield Case("concurrency", name, partial(_crowd, scenario, Random(name)))


def _crowd(scenario: Scenario, random: Random, workshop: Workshop) -> None:
    folder = workshop.fresh(scenario, with_tokens=random.random() < 0.5)
    log = workshop.root / "passes"
    log.unlink(missing_ok=True)
    told = [workshop.root / f"told-{number}" for number in range(random.randint(2, 4))]
    children: list[Child] = []
    for place in told:
        children.append(start(lambda: scenario.run(folder, SEED), place, partial(_log_passes, log)))
    ended = [child.wait() for child in children]
    # A second search is told that one is running; everybody else waits.
    unexpected = [one for one in ended if one.how != "finished" and "a search is running here" not in one.text]
    if unexpected or not any(one.how == "finished" for one in ended):
        raise FailedError("; ".join(f"{one.how}: {one.text[-1200:]}" for one in unexpected))
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    twice = [line for line, times in Counter(lines).items() if times > 1]
    if twice:
        raise FailedError(f"done more than once: {', '.join(twice[:5])}")
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {len(told)} at once")


def _log_passes(log: Path) -> None:
    """Every pass of a training leaves a line: which, and in which folder."""
    one_pass = TrainingLoop._pass

    def logged(loop: TrainingLoop[Any], number: int) -> Any:
        row = one_pass(loop, number)
        if loop.place is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{loop.place.folder} {number}\n")
        return row

    TrainingLoop._pass = logged  # type: ignore[method-assign]
