"""How long a training took, with what it had taken before an interruption."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass


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
