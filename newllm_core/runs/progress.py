"""Progress bars, all alike, and a stopwatch that goes on where an interrupted run stopped."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tqdm.auto import tqdm

# A widget sends several messages per drawing; redrawn ten times a second, long cells swamp their reader.
SECONDS_BETWEEN_DRAWINGS = 1.0


def progress_bar(iterable: Iterable[Any] | None = None, *, disable: bool = False, **settings: Any) -> Any:
    """A ``tqdm`` bar for terminals and notebooks; none if ``disable`` or the environment has ``TQDM_DISABLE``.

    tqdm reads that variable itself in a terminal only: its notebook bar overrides it.
    """
    hidden = disable or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(iterable, disable=hidden, mininterval=SECONDS_BETWEEN_DRAWINGS, **settings)


@dataclass(frozen=True)
class Seconds:
    """By the clock on the wall, and of all cores of this process together."""

    wall: float = 0.0
    cpu: float = 0.0


class Stopwatch:
    """Runs from the moment it is made; ``earlier`` are the seconds of sessions before that."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.earlier = Seconds()

    def total(self) -> Seconds:
        """Those of this session and the earlier ones."""
        now = Seconds(time.perf_counter() - self._wall, time.process_time() - self._cpu)
        return Seconds(self.earlier.wall + now.wall, self.earlier.cpu + now.cpu)

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return asdict(self.total())

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on from what ``state`` gave."""
        self.earlier = Seconds(**state)
