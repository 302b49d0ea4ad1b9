"""A disk that is full, read-only or gone, and a quota, from any file operation on."""

import errno
import functools
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from .cases import SEED, Case, FailedError, Workshop
from .faults import bring_back, filling, refusing, vanishing
from .process import Ended, run
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
    _check_said(ended)
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {ended.how}: {ended.text}")


def _check_said(ended: Ended) -> None:
    if ended.how == "refused":
        said = ended.text.lower()
        missing = [words for words in _MUST_SAY if not any(word.lower() in said for word in words)]
        if missing:
            raise FailedError(f"the message says none of {missing[0]}: {ended.text}")
    elif ended.how != "finished":
        raise FailedError(f"{ended.how}: {ended.text[-1500:]}")


def small_disks(scenario: Scenario) -> Iterator[Case]:
    """A file system of its own for the results, which is really full before they are there; none without the right to
    mount one."""
    if _mount_right():
        for kilobytes in (16, 48, 96):
            name = f"{scenario.name}-{kilobytes}-kilobytes"
            yield Case("write_faults", name, partial(_on_small_disk, scenario, kilobytes))


@functools.cache
def _mount_right() -> bool:
    with TemporaryDirectory() as folder:
        if _mount(Path(folder), "size=16k").returncode == 0:
            subprocess.run(["umount", folder], check=True)
            return True
    print("no file system can be mounted here: cases of a disk that is really full are left out")
    return False


def _mount(folder: Path, options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True
    )


def _on_small_disk(scenario: Scenario, kilobytes: int, workshop: Workshop) -> None:
    workshop.finished(scenario)
    folder = workshop.fresh(scenario)
    if _mount(folder / RUN, f"size={kilobytes}k").returncode:
        raise FailedError("no file system could be mounted")
    try:
        ended = run(lambda: scenario.run(folder, SEED), workshop.told())
        _check_said(ended)
        if _mount(folder / RUN, "remount,size=64m").returncode:
            raise FailedError("no room could be made")
        workshop.must_be_as_uninterrupted(scenario, folder, f"after {ended.how}: {ended.text}")
    finally:
        subprocess.run(["umount", str(folder / RUN)], check=True)
