"""Tasks as jobs of SLURM through submitit (`pip install -e '.[slurm]'`): arrays, and again after a preemption.

All nodes have this package, and one folder for data and results. Without SLURM, submitit runs the same jobs as
processes of this machine (``cluster="local"``).
"""

import os
import signal
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from newllm_core.batch.tasks import FAILED, RETRIES, Ended, EngineError, Task, died, run_task

try:
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError
except ImportError as error:
    raise EngineError("engine 'slurm': expected the package submitit; pip install -e '.[slurm]'") from error

_LOOK_SECONDS = 0.2  # between two looks at what jobs have left
_QUEUE_SECONDS = 5.0  # between two questions to SLURM
_LOOKS_MISSED = 3  # in its queue, without a result, until a job counts as dead
_TIMEOUTS = 10_000  # a long run may be preempted as often as it is


# By which SLURM, or submitit's local executor, says that a job's time is over; submitit's own name for it.
PREEMPTED = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


class _GoesOn(submitit.helpers.Checkpointable):
    """Tells submitit that the same call goes on where a preempted one stopped: the run has its own checkpoint.

    submitit ends the process at once, wherever it is. So a training is first asked to save, which it does after its
    step; then submitit does what it would have done.
    """

    def __call__(self, task: Task) -> Ended:
        queue_again, untrained = signal.getsignal(PREEMPTED), signal.getsignal(signal.SIGTERM)
        assert callable(queue_again)
        asked = False

        def ask(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if signal.getsignal(signal.SIGTERM) == untrained:  # nothing is being trained, so there is nothing to save
                queue_again(number, frame)
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(PREEMPTED, ask)
        try:
            return run_task(task)
        except SystemExit:
            if asked:
                queue_again(PREEMPTED, None)
            raise
        finally:
            signal.signal(PREEMPTED, queue_again)


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
        """As ``Engine.run``. When it is left early, the jobs are cancelled, and save.

        Raises EngineError where SLURM refuses jobs at first; a refused second try fails alone.
        """
        executor = self._executor()
        waiting, running, tries = deque(range(len(tasks))), dict[int, Any](), Counter[int]()
        # SLURM holds an array back by itself; local jobs all begin at once.
        room = len(tasks) if self.cluster == "slurm" else self.workers
        queue: _Queue | _Processes = _Queue() if self.cluster == "slurm" else _Processes()
        try:
            while waiting or running:
                chosen = [waiting.popleft() for _ in range(min(len(waiting), room - len(running)))]
                tries.update(chosen)
                refused = self._submit(executor, {place: tasks[place] for place in chosen}, running)
                if refused and max(tries.values()) == 1:
                    raise EngineError(next(iter(refused.values())))
                yield from ((place, Ended(FAILED, error=reason)) for place, reason in refused.items())
                for place in queue.ended(running):
                    job = running.pop(place)
                    ended = _ended(job)
                    if ended is None and tries[place] <= self.retries:
                        waiting.appendleft(place)
                    else:
                        yield place, ended or died(f"job {job.job_id} left no result", tries[place])
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

    def _submit(self, executor: Any, tasks: Mapping[int, Task], running: dict[int, Any]) -> dict[int, str]:
        """An array of jobs for all that need the same cores and GPUs, which come into ``running`` at once, since they
        are to be cancelled if the next array goes wrong; why, by place, for those that SLURM refused.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for place, task in tasks.items():
            alike.setdefault((task.cores, task.gpus), []).append(place)
        refused: dict[int, str] = {}
        for (cores, gpus), places in alike.items():
            partition = {} if self.partition is None else {"slurm_partition": self.partition}
            executor.update_parameters(
                name="newllm", timeout_min=self.minutes, cpus_per_task=cores, gpus_per_node=gpus,
                slurm_array_parallelism=self.workers, **partition,
            )  # fmt: skip
            try:
                jobs = executor.map_array(_GoesOn(), [tasks[place] for place in places])
            except FailedJobError as error:  # submitit's name for a command that failed, here sbatch
                reason = f"engine 'slurm': jobs of {cores} cores and {gpus} GPUs were refused: {error}"
                refused |= dict.fromkeys(places, reason)
            else:
                running |= zip(places, jobs, strict=True)
        return refused


def _has_result(job: Any) -> bool:
    """submitit writes one at the end of a call, whatever came of it."""
    found: bool = job.paths.result_pickle.exists()
    return found


def _ended(job: Any) -> Ended | None:
    """What became of its task; None where the job left no result.

    What submitit itself reports, as of a node that cannot read the task, is an answer: it would fail again.
    """
    if not _has_result(job):
        return None
    try:
        ended: Ended = job.result()
    except FailedJobError as error:
        return Ended(FAILED, error=f"job {job.job_id}: {error}")
    except UncompletedJobError:  # its result was there a moment ago
        return None
    return ended


class _Processes:
    """Jobs that are processes of this machine."""

    def ended(self, jobs: Mapping[int, Any]) -> list[int]:
        return [place for place, job in jobs.items() if job.done()]


class _Queue:
    """Jobs of SLURM. Whether it still has them says `squeue`: `sacct`, which submitit asks, needs an accounting
    database, and without one a job that was killed would seem to run for ever.
    """

    def __init__(self) -> None:
        self._looked, self._missed = time.monotonic(), Counter[str]()

    def ended(self, jobs: Mapping[int, Any]) -> list[int]:
        """The places of those that left a result, or that are gone without: a shared disk may show it late."""
        if time.monotonic() - self._looked > _QUEUE_SECONDS:
            self._looked = time.monotonic()
            queued = _queued()
            gone = [] if queued is None else [job.job_id for job in jobs.values() if job.job_id not in queued]
            self._missed = Counter({job_id: self._missed[job_id] + 1 for job_id in gone})
        return [place for place, job in jobs.items() if _has_result(job) or self._missed[job.job_id] > _LOOKS_MISSED]


def _queued() -> set[str] | None:
    """What SLURM has of this user, as submitit calls it; None where it does not answer now."""
    command = ["squeue", "--noheader", "--me", "--array", "--format=%F %K"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        return None
    pairs = [line.split() for line in answer.stdout.splitlines()]
    return {number if place == "N/A" else f"{number}_{place}" for number, place in pairs}
