"""A disk that is full, read-only or gone, and a quota, from any file operation on."""

import errno
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .cases import SEED, Case, FailedError, Workshop
from .faults import bring_back, filling, refusing, vanishing
from .process import run
from .scenarios import RUN, Scenario

Fault = Callable[[Path, int], Callable[[], None]]
FAULTS: dict[str, Fault] = {
    "full": filling,
    "no-inodes": partial(refusing, code=errno.ENOSPC),
    "read-only": partial(refusing, code=errno.EROFS),
    "quota": partial(refusing, code=errno.EDQUOT),
    "vanished": vanishing,
}
# What a sentence of a disk that took nothing must say: which file, bytes, and how to go on.
_MUST_SAY = (("run", "data", "search", "checkpoint"), ("MB",), ("again", "another folder", "make room"))


def write_faults(scenario: Scenario, workshop: Workshop, count: int) -> Iterator[Case]:
    """Every fault at ``count`` places of a run, evenly."""
    total = workshop.num_operations(scenario)
    for kind in FAULTS:
        for number in range(count):
            place = number * total // count
            name = f"{scenario.name}-{kind}-{place}"
            yield Case("write_faults", name, partial(_faulty, scenario, kind, place))


def _faulty(scenario: Scenario, kind: str, place: int, workshop: Workshop) -> None:
    folder = workshop.fresh(scenario)
    ended = run(lambda: scenario.run(folder, SEED), workshop.told(), FAULTS[kind](folder / RUN, place))
    bring_back(folder / RUN)
    if ended.how == "refused":
        said = ended.text.lower()
        missing = [words for words in _MUST_SAY if not any(word.lower() in said for word in words)]
        if missing:
            raise FailedError(f"the message says none of {missing[0]}: {ended.text}")
    elif ended.how != "finished":
        raise FailedError(f"{ended.how}: {ended.text[-1500:]}")
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {ended.how}: {ended.text}")
