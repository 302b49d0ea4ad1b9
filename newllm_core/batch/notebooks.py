"""Notebooks with other parameters, one or many: papermill, made strict.

papermill runs on with the defaults when a parameter is misspelled or the cell tagged ``parameters`` is missing; here
both are errors, raised before anything runs (``jobs``). An executed notebook is skipped while it, its parameters, the
package's code and what it reads are unchanged.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from newllm_core.batch.jobs import (
    OUTPUT_DIR,
    BatchError,
    Job,
    check_output,
    job_content,
    job_from_mapping,
    job_parameters,
    read_notebook,
    unfinished,
    without_locations,
)
from newllm_core.batch.local_engine import LocalEngine
from newllm_core.batch.tasks import FAILED, FINISHED, RETRIES, SKIPPED, Engine, Task, count_line
from newllm_core.runs.disk import RunError, disk_errors_named
from newllm_core.runs.files import sha256_bytes, write_text
from newllm_core.runs.host_memory import is_out_of_memory, memory_errors_named, refuse_scarce_memory
from newllm_core.runs.lock import owned


class KernelDiedError(BatchError):
    """A kernel that ended, or never answered, without an error of the notebook's.

    As when another program took the port that jupyter_client had found free for it: of a hundred notebooks, one.
    """


@dataclass(frozen=True)
class Outcome:
    """``status``: finished, skipped or failed. ``seconds`` is None when skipped, ``error`` None unless failed."""

    job: Job
    status: str
    seconds: float | None = None
    error: str | None = None


def source_hash(notebook: Path) -> str:
    """Changes with the notebook's cells and with any source file of the package, not with committed outputs."""
    cells = [(cell.cell_type, cell.source) for cell in read_notebook(notebook).cells]
    package = Path(__file__).parents[1]
    sources = [(str(path.relative_to(package)), path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))]
    return sha256_bytes(json.dumps([cells, sources]).encode())


def is_finished(job: Job) -> bool:
    """True when ``job.output`` is this notebook, run to its end by this code with these parameters, on what it would
    read now."""
    try:
        notebook = read_notebook(job.output)
        read = job_content(job)
    except BatchError:
        return False  # absent, or cut short by something outside: either way to be run
    record, made = notebook.metadata.get("papermill", {}), notebook.metadata.get("newllm", {})
    if not record.get("end_time") or record.get("exception") is not None:
        return False
    parameters, source = without_locations(record.get("parameters", {})), source_hash(job.notebook)
    as_made = {"source": source, "read": read, _CHECKSUM: _own_sha256(notebook)}
    return parameters == without_locations(job_parameters(job)) and made == as_made


_CHECKSUM = "own_sha256"  # of an executed notebook: outputs that were altered are made again


def _own_sha256(notebook: nbformat.NotebookNode) -> str:
    """Of all that it says but this."""
    content = json.loads(json.dumps(notebook))
    content["metadata"].get("newllm", {}).pop(_CHECKSUM, None)
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    profile: Path | None = None,
    *,
    progress_bar: bool = True,
) -> Path:
    """Run one notebook and write it, executed, to ``output``; returns ``output``.

    While it runs it grows as ``<name>.partial.ipynb``; a failure leaves ``<name>.failed.ipynb`` and raises BatchError.
    The kernel starts in the caller's working directory, which the package's paths do not depend on.
    """
    job = Job(notebook, output, parameters or {}, profile)
    _check(job)
    with _alone(job):
        return _execute(job, progress_bar)


def _alone(job: Job) -> AbstractContextManager[bool]:
    """One process at a time writes an output; the next one waits."""
    return owned(job.output.with_name(f".{job.output.name}.lock"))


def _execute(job: Job, progress_bar: bool) -> Path:
    notebook, output, injected = job.notebook, job.output, job_parameters(job)
    made = {"source": source_hash(notebook), "read": job_content(job)}
    partial, failed = unfinished(output)
    # papermill warns of each parameter that the notebook does not declare; job_parameters has checked them.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        executed = papermill.execute_notebook(notebook, partial, injected, progress_bar=progress_bar)
    except Exception as error:
        with disk_errors_named(partial):
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else repr(error)
            if partial.exists():
                partial.replace(failed)
                reason += f" (executed up to there: {failed})"
        # nbclient's RuntimeErrors are of kernels that died, or never answered; those of cells come as papermill's.
        kind = KernelDiedError if isinstance(error, RuntimeError) else BatchError
        raise kind(f"{notebook}: {reason}") from error
    executed.metadata["newllm"] = made
    executed.metadata["papermill"]["output_path"] = str(output)
    executed.metadata["newllm"][_CHECKSUM] = _own_sha256(nbformat.from_dict(executed))
    write_text(output, nbformat.writes(executed) + "\n")
    _remove(partial)
    _remove(failed)
    return output


def _remove(path: Path) -> None:
    with disk_errors_named(path):
        path.unlink(missing_ok=True)


def _check(job: Job) -> None:
    job_parameters(job)
    if job.output.resolve() == job.notebook.resolve():
        raise BatchError(f"{job.notebook}: the output would replace the notebook; give another folder")
    check_output(job.output)


def _check_all(jobs: Sequence[Job]) -> None:
    """Raises BatchError when a job is impossible, or when two would write the same file."""
    outputs: dict[Path, Job] = {}
    for job in jobs:
        _check(job)
        earlier = outputs.setdefault(job.output.resolve(), job)
        if earlier is not job:
            raise BatchError(f"{job.output}: the output of two jobs; give each its own")


def _run_job(job: Job, again: bool, progress_bar: bool) -> Outcome:
    start = time.perf_counter()
    try:
        with _alone(job), memory_errors_named(job.output):
            if not again and is_finished(job):
                _remove(unfinished(job.output)[0])  # of a process that was killed between its last two steps
                return Outcome(job, SKIPPED)
            if not progress_bar:
                print(f"{job.notebook.name} started", flush=True)
            _check(job)
            refuse_scarce_memory(job.output)
            _execute_or_again(job, progress_bar)
    except (BatchError, RunError, OSError) as error:
        return Outcome(job, FAILED, time.perf_counter() - start, str(error))
    return Outcome(job, FINISHED, time.perf_counter() - start)


def _execute_or_again(job: Job, progress_bar: bool) -> None:
    """A kernel that died, as for want of memory, is no error of the notebook's: its runs go on where they were."""
    for _ in range(RETRIES):
        try:
            _execute(job, progress_bar)
        except KernelDiedError as error:
            print(f"{error}; once more", flush=True)
        else:
            return
    _execute(job, progress_bar)


def run_batch(
    jobs: Sequence[Job | Mapping[str, Any]], again: bool = False, workers: int = 1, engine: Engine | None = None
) -> list[Outcome]:
    """Check every job, then run ``workers`` of them at a time, in order, going on after one that fails.

    ``engine``: that runs them instead, as ``engines.engine_of`` gives it. Prints a line a job as it ends, and a
    summary; returns the outcomes in the order of the jobs. Raises BatchError, before anything runs, when a job cannot
    be run as asked.
    """
    if workers < 1:
        raise BatchError(f"workers: expected at least 1, given {workers}")
    checked = [job if isinstance(job, Job) else job_from_mapping(job) for job in jobs]
    by_place: dict[int, Outcome] = {}
    if engine is None and workers > 1:
        engine = LocalEngine(workers)
    with memory_errors_named(checked[0].output.parent if checked else OUTPUT_DIR):
        _check_all(checked)
        for place, outcome in _as_they_end(checked, again, engine):
            by_place[place] = outcome
            print(f"[{len(by_place)}/{len(checked)}] {_outcome_line(outcome)}", flush=True)
    outcomes = [by_place[place] for place in range(len(checked))]
    print(count_line(outcomes), flush=True)
    return outcomes


def _as_they_end(jobs: Sequence[Job], again: bool, engine: Engine | None) -> Iterator[tuple[int, Outcome]]:
    """Each job's place in the list, and what became of it."""
    if engine is None:
        yield from ((place, _run_job(job, again, True)) for place, job in enumerate(jobs))
        return
    # Without bars: those of two notebooks would write over each other.
    tasks = [Task(str(job.output), partial(_run_job, job, again, False), _log(job)) for job in jobs]
    for place, ended in engine.run(tasks):
        yield place, ended.value or Outcome(jobs[place], FAILED, ended.seconds, ended.error)


def _log(job: Job) -> Path:
    """Of what a job prints where several run at a time; cells' own output is in the notebook."""
    return job.output.parent / "logs" / f"{job.output.stem}.log"


def _outcome_line(outcome: Outcome) -> str:
    seconds = "" if outcome.seconds is None else f" in {outcome.seconds:.1f} s"
    return f"{outcome.job.notebook.name} {outcome.status}{seconds}: {outcome.error or outcome.job.output}"
