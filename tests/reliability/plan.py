"""Which cases there are at full size, and which are tried in the tests."""

from collections.abc import Iterator, Sequence

from .cases import Case, Workshop
from .concurrency import crowds
from .damage import damages, user_file_changes
from .kills import operations, random_kills
from .scenarios import SCENARIOS, Scenario
from .write_faults import write_faults

KINDS = ("kills", "operations", "damage", "write_faults", "concurrency", "memory")


def all_cases(workshop: Workshop, kinds: Sequence[str]) -> Iterator[Case]:
    """Every case of these kinds, the same ones in the same order every time."""
    for kind in kinds:
        for scenario in SCENARIOS.values():
            yield from _cases(kind, scenario, workshop)
        if kind == "damage":
            yield from user_file_changes(workshop, 20)


def _cases(kind: str, scenario: Scenario, workshop: Workshop) -> Iterator[Case]:
    slow = scenario.name == "batch"  # a kernel's start takes seconds
    if kind == "kills":
        yield from random_kills(scenario, 20 if slow else 48)
    elif kind == "operations":
        yield from operations(scenario, workshop, every=2 if slow else 1)
    elif kind == "damage":
        yield from damages(scenario, workshop, rounds=3)
    elif kind == "write_faults":
        yield from write_faults(scenario, workshop, 2 if slow else 4)
    elif kind == "concurrency":
        yield from crowds(scenario, 2 if slow else 5)
