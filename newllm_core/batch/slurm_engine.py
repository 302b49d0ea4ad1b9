"""Tasks as jobs of SLURM through submitit (`pip install -e '.[slurm]'`): arrays, and again after a preemption.

All nodes have this package, and one folder for data and results. Without SLURM, submitit runs the same jobs as
processes of this machine (``cluster="local"``).
"""

import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from newllm_core.batch.tasks import RETRIES, Ended, EngineError, Task, died, run_task

try:
    import submitit
except ImportError as error:
    raise EngineError("engine 'slurm': expected the package submitit; pip install -e '.[slurm]'") from error

_LOOK_SECONDS = 0.2  # between two looks at what jobs have left; SLURM itself is asked by submitit, more rarely
_TIMEOUTS = 10_000  # a long run may be preempted as often as it is


class _GoesOn(submitit.helpers.Checkpointable):
    """Tells submitit that the same call goes on where a preempted one stopped: the run has its own checkpoint."""

    def __call__(self, task: Task) -> Ended:
        return run_task(task)


@dataclass(frozen=True)
class SlurmEngine:
    """
    Attributes:
        folder: of submitit's files.
        workers: jobs at a time.
        partition: None: SLURM's default.
        minutes: that a job may take at once; one that takes longer is preempted, and goes on in a new one.
        cluster: "slurm", or "local": the same jobs as processes of this machine.
    """

    folder: Path
    workers: int = 1
    retries: int = RETRIES
    partition: str | None = None
    minutes: int = 60
    cluster: str = "slurm"

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
        """As ``Engine.run``. When it is left early, the jobs are cancelled, and save."""
        executor = self._executor()
        waiting, running, tries = deque(range(len(tasks))), dict[int, Any](), dict.fromkeys(range(len(tasks)), 0)
        # SLURM holds an array back by itself; local jobs all begin at once.
        room = len(tasks) if self.cluster == "slurm" else self.workers
        try:
            while waiting or running:
                chosen = [waiting.popleft() for _ in range(min(len(waiting), room - len(running)))]
                for place in chosen:
                    tries[place] += 1
                running |= self._submit(executor, {place: tasks[place] for place in chosen})
                for place in [place for place, job in running.items() if job.done()]:
                    ended, reason = _result(running.pop(place), self.cluster == "local")
                    if ended is None and tries[place] <= self.retries:
                        waiting.appendleft(place)
                    else:
                        yield place, ended or died(reason, tries[place])
                time.sleep(_LOOK_SECONDS)
        finally:
            for job in running.values():
                job.cancel(check=False)

    def _executor(self) -> Any:
        """Raises EngineError where there is no SLURM."""
        # A local job's number is its process's, which comes again; submitit then takes the earlier one's result for its
        # own. So every list has a folder of its own.
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=datetime.now(UTC).strftime("%Y%m%d-%H%M%S-"), dir=self.folder)
        limits = {f"{self.cluster}_max_num_timeout": _TIMEOUTS}
        try:
            return submitit.AutoExecutor(folder, self.cluster, **limits)
        except RuntimeError as error:
            raise EngineError(f"engine 'slurm': expected a machine of a SLURM cluster ({error})") from error

    def _submit(self, executor: Any, tasks: Mapping[int, Task]) -> dict[int, Any]:
        """An array of jobs for all that need the same cores and GPUs; the jobs by place."""
        alike: dict[tuple[int, int], list[int]] = {}
        for place, task in tasks.items():
            alike.setdefault((task.cores, task.gpus), []).append(place)
        jobs: dict[int, Any] = {}
        for (cores, gpus), places in alike.items():
            partition = {} if self.partition is None else {"slurm_partition": self.partition}
            executor.update_parameters(
                name="newllm", timeout_min=self.minutes, cpus_per_task=cores, gpus_per_node=gpus,
                slurm_array_parallelism=self.workers, **partition,
            )  # fmt: skip
            jobs |= zip(places, executor.map_array(_GoesOn(), [tasks[place] for place in places]), strict=True)
        return jobs


def _result(job: Any, at_once: bool) -> tuple[Ended | None, str]:
    """What became of the task, or None and why its process ended without a result.

    ``at_once``: files are seen as soon as they are written; submitit would wait for one that a cluster's disk delays.
    """
    if at_once and not job.paths.result_pickle.exists():
        return None, f"job {job.job_id} left no result"
    try:
        ended: Ended = job.result()
    except submitit.core.utils.UncompletedJobError:
        return None, f"job {job.job_id} left no result, its state is {job.state}"
    return ended, ""
