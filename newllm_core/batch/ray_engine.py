"""Tasks on a Ray cluster (`pip install -e '.[ray]'`): cores and GPUs as resources, lost nodes replaced by others.

All machines have this package, and one folder for data and results (`NEWLLM_HOME`): a task that is tried on another
machine goes on from the checkpoint there. Its threads are set by the task itself: Ray sets OMP_NUM_THREADS anew for
each, but torch in a worker keeps the number of the first.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from newllm_core.batch.tasks import RETRIES, Ended, EngineError, Task, died, run_task

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's rule to come: no GPU asked for, none hidden

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise EngineError("engine 'ray': expected the package ray; pip install -e '.[ray]'") from error


@dataclass(frozen=True)
class RayEngine:
    """
    Attributes:
        workers: tasks at a time, where the cluster has cores for so many.
        address: of a cluster that is there, "auto" for the one of this machine; None: one is started for the list.
    """

    workers: int = 1
    retries: int = RETRIES
    address: str | None = None

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
        """As ``Engine.run``. When it is left early, the tasks are interrupted, and save."""
        with _cluster(self.address):
            _refuse_large(tasks)
            waiting, running = list(range(len(tasks)))[::-1], dict[Any, int]()
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        place = waiting.pop()
                        running[self._begin(tasks[place])] = place
                    (ready, *_), _ = ray.wait(list(running), num_returns=1)
                    yield running.pop(ready), _ended(ready, self.retries)
            finally:
                for reference in running:
                    ray.cancel(reference)

    def _begin(self, task: Task) -> Any:
        """Ray itself tries a task again whose worker or node died; an error is an answer, and is not."""
        options = {"num_cpus": task.cores, "num_gpus": task.gpus, "max_retries": self.retries}
        return ray.remote(run_task).options(name=task.name, retry_exceptions=False, **options).remote(task)


def _ended(reference: Any, retries: int) -> Ended:
    try:
        ended: Ended = ray.get(reference)
    except RayError as error:
        return died(str(error), retries + 1)
    return ended


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """A cluster that is there, or one that is started and ended. Raises EngineError where there is none."""
    began = not ray.is_initialized()
    if began:
        # On this machine alone, and without the page that shows the cluster to whoever asks.
        own: dict[str, Any] = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, **own)
        except (ConnectionError, RayError) as error:
            raise EngineError(f"address: expected a Ray cluster, found none at {address!r} ({error})") from error
    try:
        yield
    finally:
        if began:
            ray.shutdown()


def _refuse_large(tasks: Sequence[Task]) -> None:
    """Raises EngineError for a task that no node could ever take: Ray would wait for one without a word."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for task in tasks:
        if not any(node.get("CPU", 0) >= task.cores and node.get("GPU", 0) >= task.gpus for node in nodes):
            given = "; ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise EngineError(
                f"{task.name}: expected {task.cores} cores (num_threads) and {task.gpus} GPUs, found {given}"
            )
