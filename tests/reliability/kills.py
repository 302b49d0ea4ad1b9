"""SIGKILL at random moments, and before every single file operation."""

import time
from collections.abc import Iterator
from functools import partial
from random import Random

from .cases import SEED, Case, FailedError, Workshop
from .faults import killing
from .process import run, start
from .scenarios import Scenario

_MOST_IN_A_ROW = 4


def random_kills(scenario: Scenario, count: int) -> Iterator[Case]:
    """Each with one kill or up to some in a row, in one folder."""
    for number in range(count):
        name = f"{scenario.name}-{number}"
        yield Case("kills", name, partial(_random_kills, scenario, Random(name)))


def _random_kills(scenario: Scenario, random: Random, workshop: Workshop) -> None:
    seconds, with_tokens = _duration(scenario, workshop), random.random() < 0.5
    folder = workshop.fresh(scenario, with_tokens=with_tokens)
    kills = 0
    while kills < _MOST_IN_A_ROW:
        child = start(partial(scenario.run, folder, SEED), workshop.told())
        moment = random.uniform(0, seconds)
        ended = child.wait(moment)  # killed then, if it has not ended before
        workshop.must_leave_no_process()
        if ended.how not in ("finished", "hung"):
            raise FailedError(f"after {kills} kills: {ended.how}: {ended.text[-1500:]}")
        if ended.how == "hung":
            kills += 1
            if random.random() < 0.5:
                break
        elif kills:
            break
        else:  # too late: anew, and sooner
            seconds, folder = moment, workshop.fresh(scenario, with_tokens=with_tokens)
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {kills} kills")


def _duration(scenario: Scenario, workshop: Workshop) -> float:
    known = workshop.durations.get(scenario.name)
    if known is None:
        folder = workshop.fresh(scenario)
        began = time.monotonic()
        workshop.must_finish(run(lambda: scenario.run(folder, SEED), workshop.told()), "timed")
        known = workshop.durations[scenario.name] = time.monotonic() - began
    return known


def operations(scenario: Scenario, workshop: Workshop) -> Iterator[Case]:
    """One case for every file operation of a run from nothing, in an order that spreads over the whole run."""
    total = workshop.num_operations(scenario, with_tokens=False)
    numbers = list(range(total))
    Random(scenario.name).shuffle(numbers)
    for number in numbers:
        name = f"{scenario.name}-{number}"
        yield Case("operations", name, partial(_kill_at, scenario, number))


def _kill_at(scenario: Scenario, number: int, workshop: Workshop) -> None:
    folder = workshop.fresh(scenario, with_tokens=False)
    ended = run(lambda: scenario.run(folder, SEED), workshop.told(), killing(folder, number))
    workshop.must_leave_no_process()
    if ended.how != "killed":
        if ended.how == "finished":
            return workshop.must_equal(scenario, folder, "finished before the operation came")
        raise FailedError(f"{ended.how}: {ended.text[-1500:]}")
    workshop.must_be_as_uninterrupted(scenario, folder, f"after the kill at operation {number}")
