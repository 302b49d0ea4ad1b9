"""A sweep on an engine: what is unfinished as tasks, what became of each, a summary table and picture of all."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from newllm_core.batch.progress import ended_as_shown
from newllm_core.batch.sweep_file import SweepFile
from newllm_core.batch.tasks import FAILED, FINISHED, SKIPPED, Ended, Engine, Task, times_begun
from newllm_core.comparison.accuracy import accuracy_table
from newllm_core.comparison.leaderboard import standings, standings_table
from newllm_core.comparison.paired import comparison_table
from newllm_core.comparison.tables import readable_table
from newllm_core.config.schema import changed, config_hash
from newllm_core.data import DataError
from newllm_core.report.comparison import plot_comparison
from newllm_core.report.leaderboard import plot_standings
from newllm_core.report.style import save_figure
from newllm_core.runs.files import RESULTS_DIR, RunError, write_text
from newllm_core.runs.folder import Record
from newllm_core.studies.sweep import Point, Runner, Sweep
from newllm_core.vision.report.comparison import plot_variants

SWEEPS_DIR = RESULTS_DIR / "sweeps"


@dataclass(frozen=True)
class Outcome:
    """What became of a point: finished, skipped (it was finished before) or failed."""

    point: Point
    status: str
    log: Path
    seconds: float = 0.0
    tries: int = 0
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.point} {self.status} in {self.seconds:.1f} s" + (f": {self.error}" if self.error else "")


def run_sweep(sweep: Sweep, engine: Engine, folder: Path) -> list[Outcome]:
    """Every unfinished point as a task of ``engine``; the outcomes in the order of the points.

    Prints a line a run as it ends, and a summary. Raises before anything runs what ``Sweep.estimate`` raises, and
    EngineError; a run that fails does not end the others. ``folder``: of the logs and of `runs.csv`.
    """
    found = sweep.finished()
    unfinished = [place for place, record in enumerate(found) if record is None]
    sweep.runner.check([sweep.points[place] for place in unfinished])
    tasks = [task_of(sweep.runner, sweep.points[place], folder) for place in unfinished]
    outcomes = {
        place: Outcome(point, SKIPPED, log_of(point, folder), tries=times_begun(log_of(point, folder)))
        for place, point in enumerate(sweep.points)
        if found[place] is not None
    }

    def judged(number: int, ended: Ended) -> Ended:
        return _judged(sweep.runner, sweep.points[unfinished[number]], folder, ended)

    for number, ended in ended_as_shown(engine, tasks, judged):
        place, log = unfinished[number], tasks[number].log
        point = sweep.points[place]
        outcomes[place] = Outcome(point, ended.status, log, ended.seconds, times_begun(log), ended.error)
    in_order = [outcomes[place] for place in range(len(sweep.points))]
    write_text(folder / "runs.csv", _runs_table(in_order).to_csv(index=False))
    return in_order


def _judged(runner: Runner, point: Point, folder: Path, ended: Ended) -> Ended:
    """Finished is what has its record here, wherever the run was; an error on the way here fails this run alone."""
    try:
        _take_up(runner, point, folder)
        is_here = runner.finished(point) is not None
    except (RunError, DataError, OSError) as problem:
        reason = f"what it left could not be taken up here: {type(problem).__name__}: {problem}"
        return replace(ended, status=FAILED, error=f"{ended.error}; {reason}" if ended.error else reason)
    if ended.status == FINISHED and not is_here:
        return replace(ended, status=FAILED, error="it finished, but its record is not here; run the same again")
    return ended


def task_of(runner: Runner, point: Point, folder: Path) -> Task:
    """The run of one point; with a GPU of its own where it computes on one."""
    run = point.settings.run
    gpus = int(run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available()))
    work, log, copies = partial(run_point, runner, point), log_of(point, folder), copies_of(point, folder)
    copying = None if run.copy_to else partial(run_point, runner, _with_copies(point, copies))
    return Task(str(point), work, log, run.num_threads, gpus, copies, copying)


def run_point(runner: Runner, point: Point) -> None:
    """What a task of a sweep does. Its record lies in the results folder."""
    runner.run(point)


def copies_of(point: Point, folder: Path) -> Path:
    """Where a machine that does not see the results folder leaves copies of a run, and where they arrive."""
    return folder / "copies" / log_of(point, folder).stem


def _with_copies(point: Point, copies: Path) -> Point:
    return replace(point, settings=changed(point.settings, {"copy_to": str(copies)}))


def _take_up(runner: Runner, point: Point, folder: Path) -> None:
    """What arrived of a run as copies becomes its folder here."""
    copies = copies_of(point, folder)
    if copies.is_dir():
        runner.take_up(_with_copies(point, copies))
        if runner.finished(point) is not None:
            shutil.rmtree(copies)


def log_of(point: Point, folder: Path) -> Path:
    """One for each configuration, whatever place it has in its sweep."""
    name = re.sub(r"[^\w.=-]+", "-", point.variant.name).strip("-.")[:80]
    return folder / "logs" / f"{name}-seed{point.settings.run.seed}-{config_hash(point.settings)}.log"


def _runs_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    rows = [
        {
            "run": one.point.variant.label, "seed": one.point.settings.run.seed, "status": one.status,
            "seconds": round(one.seconds, 2), "tries": one.tries, "error": one.error, "log": one.log.name,
        }
        for one in outcomes
    ]  # fmt: skip
    return pd.DataFrame(rows)


def summarise(file: SweepFile, folder: Path) -> str:
    """Write `summary.csv` and `summary.png` (and .svg) of all finished runs into ``folder``; the table as text, with a
    line for each run whose record cannot be read."""
    records, unread = _read(file.sweep)
    if not records:
        return "\n".join(["no run is finished", *unread])
    table, picture = summary_of(file.runs, records)
    write_text(folder / "summary.csv", table.to_csv())
    save_figure(picture, folder / "summary.png")
    return "\n".join([readable_table(table).to_string(), *unread])


def _read(sweep: Sweep) -> tuple[list[Record], list[str]]:
    """Every finished run's record; and what is wrong with those that cannot be read."""
    records, unread = list[Record](), list[str]()
    for point in sweep.points:
        try:
            record = sweep.record_of(point)
        except RunError as error:
            unread.append(f"{point} is left out: {error}")
        else:
            records += [] if record is None else [record]
    return records, unread


def summary_of(runs: str, records: Sequence[Record]) -> tuple[pd.DataFrame, Figure]:
    """Table and picture of one kind of runs; the first configuration, or the best row, is what the others are held
    against."""
    if runs == "images":
        return accuracy_table(records, "selection"), plot_variants(records, "selection")
    if runs == "leaderboard":
        found = standings(records)
        return standings_table(found, found[0].name), plot_standings(found)
    return comparison_table(records), plot_comparison(records)
