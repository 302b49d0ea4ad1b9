"""Tasks and the local engine: logs, errors, workers that die, workers that are asked to stop."""

import importlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_work import add, die, die_at_first, fail, wait_for_interruption

from newllm_core.batch import slurm_engine
from newllm_core.batch.local_engine import LocalEngine
from newllm_core.batch.slurm_engine import PREEMPTED, SlurmEngine, _GoesOn
from newllm_core.batch.tasks import EngineError, Task, last_words, times_begun, times_finished
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.training.loop import TrainingLoop


def test_one_list_of_tasks_on_two_workers(tmp_path: Path) -> None:
    """What works, what fails, what dies once and what always dies, in two processes that live on where they can."""
    work = [
        partial(add, tmp_path / "added", 1), partial(fail, tmp_path / "failed"),
        partial(die_at_first, tmp_path / "died once"), partial(die, tmp_path / "died"),
        *(partial(add, tmp_path / "added", number) for number in (2, 3)),
    ]  # fmt: skip
    tasks = [Task(f"task {number}", one, tmp_path / "logs" / f"{number}.log") for number, one in enumerate(work)]
    ended = dict(LocalEngine(workers=2, retries=1).run(tasks))
    assert sorted(ended) == list(range(len(tasks)))
    assert [ended[place].status for place in range(6)] == ["finished", "failed"] * 2 + ["finished"] * 2
    assert [ended[place].value for place in (0, 4, 5)] == [2, 3, 4] and ended[2].value == "half and whole"
    assert sorted((tmp_path / "added").read_text().split()) == ["1", "2", "3"]
    assert ended[1].error == "ValueError: an impossible configuration"
    assert ended[3].error == "its process died at each of 2 tries: exit status 3"
    assert (tmp_path / "failed").read_text() == "0\n" and (tmp_path / "died").read_text() == "0\n" * 2
    assert [(times_begun(task.log), times_finished(task.log)) for task in tasks[:4]] == [(1, 1), (1, 0), (2, 1), (2, 0)]
    log = tasks[1].log.read_text()
    assert "adding\nfrom below\n" in log and "Traceback" in log and "an impossible configuration" in log
    assert last_words(tasks[0].log).startswith("[task] ended finished after 0.0 s")


@pytest.mark.usefixtures("asked_by_signals")
def test_an_engine_that_is_left_early_has_its_workers_save(tmp_path: Path) -> None:
    waiting = [tmp_path / "a", tmp_path / "b"]
    tasks = [
        Task(place.name, partial(wait_for_interruption, place), tmp_path / f"{place.name}.log") for place in waiting
    ]
    running = LocalEngine(workers=2).run(tasks)

    def interrupt() -> None:
        while not all(place.exists() and place.read_text() for place in waiting):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        next(running)
    running.close()
    assert [place.read_text() for place in waiting] == ["saved", "saved"]
    assert times_begun(tasks[0].log) == 1 and times_finished(tasks[0].log) == 0


def test_no_worker_is_refused() -> None:
    with pytest.raises(EngineError, match="workers: expected at least 1, given 0"):
        LocalEngine(workers=0)


def test_jobs_of_submitit_run_here_and_never_find_an_earlier_ones_result(tmp_path: Path) -> None:
    """submitit calls a local job by its process, whose number comes again (findings/submitit_local_job_id.sh)."""
    engine = SlurmEngine(tmp_path / "jobs", cluster="local")
    task = Task("divides", partial(math.gcd, 12, 18), tmp_path / "task.log")
    assert [(place, ended.value) for place, ended in engine.run([task])] == [(0, 6)]
    (used,) = engine.folder.iterdir()
    assert list(used.glob("*_result.pkl")) and not list(Path(engine._executor().folder).iterdir())


def test_a_job_that_cannot_read_its_task_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def work() -> int:\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    unknown = importlib.import_module("only_here").work
    tasks = [
        Task("unknown", unknown, tmp_path / "a.log"),
        Task("divides", partial(math.gcd, 12, 18), tmp_path / "b.log"),
    ]
    ended = dict(SlurmEngine(tmp_path / "jobs", workers=2, cluster="local").run(tasks))
    assert ended[0].status == "failed" and "No module named 'only_here'" in str(ended[0].error)
    assert ended[1].value == 6


SBATCH = """#!/bin/sh
if grep -q cpus-per-task=64 "$1"; then echo "more cores than there are" >&2; exit 1; fi
echo Submitted batch job 4242
"""


@pytest.fixture
def cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands, of a cluster whose nodes have fewer than 64 cores; the file lists jobs that were cancelled."""
    found = tmp_path / "cancelled"
    commands = {"srun": "#!/bin/sh\n", "sbatch": SBATCH, "scancel": f"#!/bin/sh\necho $1 >> {found}\n"}
    for name, content in {**commands, "squeue": "#!/bin/sh\n", "sacct": "#!/bin/sh\n"}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return found


def test_jobs_that_slurm_refuses_are_an_error_of_the_engine_and_those_it_took_are_cancelled(
    tmp_path: Path, cancelled: Path
) -> None:
    tasks = [Task(f"{cores}", partial(math.gcd, 12, 18), tmp_path / "task.log", cores=cores) for cores in (1, 64)]
    with pytest.raises(EngineError, match="jobs of 64 cores and 0 GPUs were refused: .*more cores than there are"):
        list(SlurmEngine(tmp_path / "jobs").run(tasks))
    assert cancelled.read_text() == "4242\n"


def test_a_second_try_that_slurm_refuses_fails_alone(
    tmp_path: Path, cancelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job ever comes into the queue, so each counts as dead."""
    monkeypatch.setattr(slurm_engine, "_QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(slurm_engine, "_LOOK_SECONDS", 0.0)
    submit, refused = SlurmEngine._submit, SBATCH.replace("cpus-per-task=64", ".")

    def submit_once(engine: SlurmEngine, *arguments: Any) -> dict[int, str]:
        found = submit(engine, *arguments)
        (tmp_path / "bin" / "sbatch").write_text(refused)
        return found

    monkeypatch.setattr(SlurmEngine, "_submit", submit_once)
    task = Task("divides", partial(math.gcd, 12, 18), tmp_path / "task.log")
    ((place, ended),) = SlurmEngine(tmp_path / "jobs").run([task])
    assert (place, ended.status) == (0, "failed") and "were refused" in str(ended.error)


@dataclass(frozen=True)
class Pass:
    number: int


class Counting(TrainingLoop[Pass]):
    """Learns nothing, and saves only when it is asked to; is preempted within some passes."""

    name, unit, row_kind = "counting", "pass", Pass

    def __init__(self, folder: Path, preempted_in: Sequence[int]) -> None:
        super().__init__(torch.device("cpu"), 40, CheckpointPlace(folder, {}), show_progress=False)
        self.steps_taken, self.preempted_in = folder.with_suffix(".steps"), preempted_in
        self.parts = {"model": torch.nn.Linear(1, 1)}

    def steps(self, number: int) -> Iterator[None]:
        if self.within.steps == 0:
            with self.steps_taken.open("a") as stream:
                stream.write(f"{number}\n")
            if number in self.preempted_in:
                os.kill(os.getpid(), PREEMPTED)
            yield

    def judged(self, number: int) -> tuple[Pass, float]:
        return Pass(number), 0.0

    def shown(self) -> dict[str, str]:
        return {}


def counted(folder: Path, preempted_in: Sequence[int]) -> list[int]:
    training = Counting(folder, preempted_in)
    training.run()
    return [row.number for row in training.rows]


def test_a_job_that_is_preempted_saves_within_its_training_and_goes_on_from_there(tmp_path: Path) -> None:
    """As submitit does it, in this process: its handler, which queues the job again and ends it."""
    queued = list[int]()

    def queue_again(number: int, frame: object) -> None:
        queued.append(number)
        raise SystemExit(1)

    before = signal.signal(PREEMPTED, queue_again)
    task = Task("counts", partial(counted, tmp_path / "run", (6, 21)), tmp_path / "task.log")
    try:
        for _ in range(2):
            with pytest.raises(SystemExit):
                _GoesOn()(task)
        assert _GoesOn()(task).value == list(range(1, 41))
    finally:
        assert signal.signal(PREEMPTED, before) is queue_again
    assert queued == [PREEMPTED, PREEMPTED]
    assert (times_begun(task.log), times_finished(task.log)) == (3, 1)
    assert [int(line) for line in (tmp_path / "run.steps").read_text().split()] == list(range(1, 41))
