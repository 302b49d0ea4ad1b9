"""A case: one thing that goes wrong once, and whether the run came through it. `kinds` of cases are in files beside.

Every case is drawn from its own name, so that it can be repeated alone: `python -m tests.reliability --case NAME`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import counting
from .process import Ended, left_behind, run
from .scenarios import DATA, RUN, Scenario, write_user_notebooks, write_user_text
from .state import differing, values_differing

SEED, OTHER_SEED = 42, 43


class FailedError(AssertionError):
    """A case that did not hold; the message says what happened."""


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        kind: kills, operations, damage, write_faults, concurrency or memory.
        name: that no other case of the kind has.
        check: raises FailedError unless it holds.
    """

    kind: str
    name: str
    check: Callable[["Workshop"], None]


class Workshop:
    """Where cases are tried: uninterrupted runs of every scenario that is asked for, and a folder a case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._finished: dict[tuple[str, int], Path] = {}
        self._values: dict[tuple[str, int], Any] = {}
        self._operations: dict[tuple[str, bool], int] = {}
        self.halves: set[Path] = set()  # folders of runs that were stopped
        self.durations: dict[str, float] = {}  # seconds of an uninterrupted run, by scenario

    def num_operations(self, scenario: Scenario, *, with_tokens: bool = True) -> int:
        """File operations of an uninterrupted run."""
        key = scenario.name, with_tokens
        if key not in self._operations:
            folder, counted = self.fresh(scenario, with_tokens=with_tokens), list[str]()
            work = lambda: (scenario.run(folder, SEED), len(counted))[1]  # noqa: E731
            ended = run(work, self.told(), counting(folder, counted))
            self.must_finish(ended, "counted")
            self._operations[key] = ended.value
        return self._operations[key]

    def told(self) -> Path:
        return self.root / "told"

    def finished(self, scenario: Scenario, seed: int = SEED) -> Path:
        """A folder in which the scenario ran through, made once."""
        key = scenario.name, seed
        if key not in self._finished:
            folder = self.root / f"finished-{scenario.name}-{seed}"
            if folder.exists():
                shutil.rmtree(folder)
            _fill(folder, scenario)
            ended = run(lambda: scenario.load(folder, seed), self.told())
            self.must_finish(ended, "uninterrupted")
            self._values[key] = ended.value
            self._finished[key] = folder
        return self._finished[key]

    def fresh(self, scenario: Scenario, *, with_tokens: bool = True) -> Path:
        """A new folder for a case; with what tokenising has made, unless the case is about that."""
        folder = self.root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        _fill(folder, scenario)
        if with_tokens:
            shutil.copytree(self.finished(scenario) / DATA, folder / DATA, dirs_exist_ok=True)
        return folder

    def copy_of(self, folder: Path) -> Path:
        target = self.root / "case"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target, symlinks=True)
        return target

    def must_finish(self, ended: Ended, when: str) -> None:
        if ended.how != "finished":
            raise FailedError(f"{when}: {ended.how}: {ended.text[-1500:]}")

    def must_leave_no_process(self) -> None:
        names = left_behind()
        if names:
            raise FailedError(f"left running: {', '.join(names)}")

    def must_be_as_uninterrupted(self, scenario: Scenario, folder: Path, when: str) -> None:
        """Run it (again) to its end, load all, and hold files against those of the run that was left in peace."""
        ended = run(lambda: scenario.load(folder, SEED), self.told())
        self.must_finish(ended, when)
        self.must_have_read(scenario, ended.value, when)
        self.must_equal(scenario, folder, when)

    def must_have_read(self, scenario: Scenario, value: Any, when: str) -> None:
        self.finished(scenario)
        difference = values_differing(value, self._values[scenario.name, SEED])
        if difference:
            raise FailedError(f"{when}: read {difference}")

    def must_equal(self, scenario: Scenario, folder: Path, when: str, but: Path | None = None) -> None:
        """``but``: a file that may be anything, relative to ``folder``."""
        for part in (RUN, DATA):
            place = but.relative_to(part) if but is not None and but.parts[0] == part else None
            difference = differing(folder / part, self.finished(scenario) / part, place)
            if difference:
                raise FailedError(f"{when}: {part}/{difference}")


def _fill(folder: Path, scenario: Scenario) -> None:
    for part in (RUN, DATA):
        (folder / part).mkdir(parents=True)
    write_user_text(folder)
    if scenario.name == "batch":
        write_user_notebooks(folder)
