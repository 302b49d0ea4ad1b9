"""Tasks in processes of this machine, as many at a time as there are workers; each has a GPU, where there are some."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from newllm_core.batch.tasks import RETRIES, Ended, EngineError, Task, died, run_task

_PRELOADED = [__name__, "newllm_core.studies.runners"]
_SAVING_SECONDS = 60.0  # that a worker has to save and end, once it was asked to


@dataclass(frozen=True)
class LocalEngine:
    """``workers`` processes. Threads are set by each task itself; so workers times threads should be cores at most.

    Processes rather than threads: a task may end its process, and a signal reaches its training.
    """

    workers: int = 1
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EngineError(f"workers: expected at least 1, given {self.workers}")

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
        """As ``Engine.run``. When it is left early, the workers are asked to save, and are ended."""
        waiting = deque(range(len(tasks)))
        tries = dict.fromkeys(waiting, 0)
        workers = [_Worker(gpu) for gpu in _gpus(min(self.workers, len(tasks)))]
        try:
            while True:
                for worker in workers:
                    if worker.place is None and waiting:
                        place = waiting.popleft()
                        tries[place] += 1
                        worker.begin(place, tasks[place])
                busy = [worker for worker in workers if worker.place is not None]
                if not busy:
                    return
                for worker in _with_news(busy):
                    place, ended = worker.end()
                    if ended is None and tries[place] <= self.retries:
                        waiting.appendleft(place)
                    else:
                        yield place, ended or died(worker.how_it_died, tries[place])
        finally:
            _stop(workers)


def _gpus(workers: int) -> list[str | None]:
    """One for each worker, in turn; None where there is none."""
    import torch  # here, since a worker that needs none is there sooner without it

    count = torch.cuda.device_count()
    return [str(number % count) if count else None for number in range(workers)]


def _with_news(workers: Sequence["_Worker"]) -> list["_Worker"]:
    """Those that have ended their task, or died, once there is one."""
    ready = connection.wait([one.pipe for one in workers])
    return [worker for worker in workers if worker.pipe in ready]


@dataclass
class _Worker:
    """A process that lives for many tasks; a new one takes the place of one that died."""

    gpu: str | None
    place: int | None = None
    pipe: Any = None
    process: ForkServerProcess | None = None
    how_it_died: str = field(default="")

    def begin(self, place: int, task: Task) -> None:
        if self.process is None:
            self._start()
        self.place = place
        with suppress(BrokenPipeError):  # it died meanwhile: ``end`` finds that
            self.pipe.send(task)

    def end(self) -> tuple[int, Ended | None]:
        """The place of its task and what became of it, None where the process died."""
        place, self.place = self.place, None
        assert place is not None and self.process is not None
        try:
            return place, self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.how_it_died = f"exit status {self.process.exitcode}"
            self.pipe.close()
            self.process = None
            return place, None

    def _start(self) -> None:
        # Forked from a process that has imported what runs need and done nothing else: a worker is there in an instant.
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(_PRELOADED)
        self.pipe, theirs = server.Pipe()
        self.process = server.Process(target=_serve, args=(theirs, self.gpu), name="newllm worker")
        self.process.start()
        theirs.close()


def _serve(pipe: Any, gpu: str | None) -> None:
    """The life of a worker."""
    os.setsid()  # an interruption from the keyboard reaches the parent alone, which then asks each worker once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it, and hands that on
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    end_with_the_parent()
    with suppress(KeyboardInterrupt, EOFError):
        while True:
            pipe.send(run_task(pipe.recv()))


def end_with_the_parent() -> None:
    """A worker whose parent was killed ends at once, and its kernel sees that; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


def _stop(workers: Sequence[_Worker]) -> None:
    """Busy workers are interrupted, and save; idle ones end when nobody can send any more."""
    for worker in workers:
        if worker.process is not None and worker.process.pid is not None:
            if worker.place is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGINT)
            worker.pipe.close()
    for worker in workers:
        if worker.process is not None:
            worker.process.join(_SAVING_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
