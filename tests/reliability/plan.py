"""Which cases there are at full size, and which are tried in the tests."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from .cases import Case, Workshop
from .concurrency import crowds
from .damage import damages, user_file_changes
from .fields import field_cases
from .kills import operations, random_kills
from .memory import beyond_memory, shortages
from .scenarios import SCENARIOS, Scenario
from .write_faults import small_disks, write_faults

KINDS = ("kills", "operations", "damage", "write_faults", "concurrency", "memory", "fields")
# How many at full size; others have as many as there are. Kills and operations both kill: 1,000 together.
_TOTALS = {"kills": 500, "operations": 500, "damage": 1980, "write_faults": 100, "concurrency": 50}
_USER_TEXTS = 20  # of damage, beside those
_ON_SMALL_DISKS = ("cvfp", "list", "row-gru", "nkat", "search")  # write faults, beside those
# In the tests: which scenarios, and every how many-th case of them.
_FEW = {
    "kills": (("cvfp", 24), ("contrastive", 24), ("nkat", 24)),
    "operations": (("exact", 60), ("row-gru", 40), ("search", 90)),
    "damage": (("cvfp", 24), ("search", 60)),
    "write_faults": (("nkat", 3),),
    "concurrency": (("list", 4), ("row-gru", 4)),
    "memory": (("exact", 8),),
}


def all_cases(workshop: Workshop, kinds: Sequence[str]) -> Iterator[Case]:
    """Every case of these kinds, by turns, so that what has been tried at any time is some of everything."""
    parts: list[Iterator[Case]] = [islice(_of_kind(kind, workshop), _TOTALS.get(kind)) for kind in kinds]
    if "damage" in kinds:
        parts.append(user_file_changes(workshop, _USER_TEXTS))
    if "fields" in kinds:
        parts.append(field_cases())
    if "write_faults" in kinds:
        parts += [small_disks(SCENARIOS[name]) for name in _ON_SMALL_DISKS]
    yield from _by_turns(parts)
    if "memory" in kinds:
        yield beyond_memory(1_000_000, 96)


def _of_kind(kind: str, workshop: Workshop) -> Iterator[Case]:
    return _by_turns(_cases(kind, one, workshop) for one in SCENARIOS.values())


def few_cases(workshop: Workshop, kinds: Sequence[str]) -> Iterator[Case]:
    for kind in kinds:
        for name, every in _FEW.get(kind, ()):
            yield from islice(_cases(kind, SCENARIOS[name], workshop), 0, None, every)
        if kind == "damage":
            yield from user_file_changes(workshop, 1)
        if kind == "memory":
            yield beyond_memory(60_000, 500)
        if kind == "fields":
            yield from islice(field_cases(), 0, None, 60)


def _by_turns(parts: Iterable[Iterator[Case]]) -> Iterator[Case]:
    """One of each, again and again, until none has any left."""
    left = list(parts)
    while left:
        for part in list(left):
            case = next(part, None)
            if case is None:
                left.remove(part)
            else:
                yield case


def _cases(kind: str, scenario: Scenario, workshop: Workshop) -> Iterator[Case]:
    slow = scenario.name == "batch"  # a kernel's start takes seconds
    if kind == "kills":
        yield from random_kills(scenario, 20 if slow else 48)
    elif kind == "operations":
        yield from islice(operations(scenario, workshop), 20 if slow else None)
    elif kind == "damage":
        yield from damages(scenario, workshop, rounds=3)
    elif kind == "write_faults":
        yield from write_faults(scenario, workshop, 2)
    elif kind == "concurrency":
        yield from crowds(scenario, 2 if slow else 5)
    elif kind == "memory":
        yield from shortages(scenario)
