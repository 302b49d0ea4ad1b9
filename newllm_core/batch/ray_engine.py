"""Tasks on a Ray cluster (`pip install -e '.[ray]'`): cores and GPUs as resources, lost nodes replaced by others.

All machines have this package at the same place. Those that see this one's results folder work in it; from others,
copies of checkpoints and results are carried here, and to where a lost task is tried again (`carried.py`). Threads are
set by the task itself: Ray sets OMP_NUM_THREADS anew for each, but torch in a worker keeps the number of the first.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newllm_core.batch.carried import FolderKeeper, carried
from newllm_core.batch.tasks import FAILED, RETRIES, Ended, EngineError, Task, died, run_task

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's rule to come: no GPU asked for, none hidden

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise EngineError("engine 'ray': expected the package ray; pip install -e '.[ray]'") from error

_SAVING_SECONDS = 60.0  # that tasks have to save and end, once they were interrupted


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
        with _cluster(self.address), _marks(tasks) as marks:
            _refuse_large(tasks)
            keeper = _keeper() if marks else None
            waiting, running = list(range(len(tasks)))[::-1], dict[Any, int]()
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        place = waiting.pop()
                        task = tasks[place]
                        running[self._begin(task, keeper, marks.get(task.copies))] = place
                    (ready, *_), _ = ray.wait(list(running), num_returns=1)
                    place = running.pop(ready)
                    yield place, _ended(tasks[place], ready, self.retries)
            finally:
                _interrupt(list(running))

    def _begin(self, task: Task, keeper: Any, mark: Path | None) -> Any:
        """Ray itself tries a task again whose worker or node died; an error is an answer, and is not."""
        options = {"num_cpus": task.cores, "num_gpus": task.gpus, "max_retries": self.retries}
        work = ray.remote(_run).options(name=task.name, retry_exceptions=False, **options)
        return work.remote(task, keeper, mark)


def _run(task: Task, keeper: Any, mark: Path | None) -> tuple[Ended, bytes]:
    """What became of the task, and its log where the machine that gave it does not see that."""
    if mark is None or mark.exists():
        return run_task(task), b""
    assert task.copies is not None and task.copying_work is not None
    task.log.unlink(missing_ok=True)  # of an earlier task: what is written there is added to the log that counts
    with carried(_Remote(keeper), task.copies):
        ended = run_task(replace(task, work=task.copying_work))
    shutil.rmtree(task.copies, ignore_errors=True)
    return ended, task.log.read_bytes() if task.log.exists() else b""  # ``ended`` says why there is none


def _interrupt(references: Sequence[Any]) -> None:
    """Interrupt tasks, and wait until they have saved and their copies have arrived: cluster and keeper go next."""
    for reference in references:
        ray.cancel(reference)
    if references:
        ray.wait(references, num_returns=len(references), timeout=_SAVING_SECONDS)


class _Remote:
    """A FolderKeeper on the machine that gave the tasks."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def names(self, folder: Path) -> list[str]:
        found: list[str] = ray.get(self._actor.names.remote(folder))
        return found

    def read(self, folder: Path, name: str, start: int) -> bytes:
        found: bytes = ray.get(self._actor.read.remote(folder, name, start))
        return found

    def write(self, folder: Path, name: str, start: int, chunk: bytes) -> None:
        ray.get(self._actor.write.remote(folder, name, start, chunk))


def _keeper() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(FolderKeeper).options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def _marks(tasks: Sequence[Task]) -> Iterator[dict[Path | None, Path]]:
    """By folder of copies, a file that whoever sees this machine's results sees too."""
    folders = {task.copies for task in tasks if task.copies is not None and task.copying_work is not None}
    with ExitStack() as stack:
        marks = dict[Path | None, Path]()
        for parent in {folder.parent for folder in folders}:
            parent.mkdir(parents=True, exist_ok=True)
            mark = Path(stack.enter_context(tempfile.NamedTemporaryFile(prefix=".seen-", dir=parent)).name)
            marks |= {folder: mark for folder in folders if folder.parent == parent}
        yield marks


def _ended(task: Task, reference: Any, retries: int) -> Ended:
    ended: Ended
    try:
        ended, log = ray.get(reference)
    except RayTaskError as error:  # around the work, which raises nothing: its copies, its log, what it answers
        return Ended(FAILED, error=f"what it left could not be carried: {type(error.cause).__name__}: {error.cause}")
    except RayError as error:
        return died(str(error), retries + 1)
    if log:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as stream:
            stream.write(log)
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
