"""Notebooks with other parameters, one or many: papermill, made strict.

papermill runs on with the defaults when a parameter is misspelled or the cell tagged ``parameters`` is missing; here
both are errors, raised before anything runs. A parameter is known when the notebook's parameters cell or its line's
configuration has it, so one profile (a flat YAML file) serves every notebook of a line.

    python -m newllm_core.batch notebooks/03_phase2.ipynb -f notebooks/profiles/cpu.yaml -p num_samples 40
    python -m newllm_core.batch --batch my_runs.yaml --workers 2

A batch file is a list of ``{notebook, output, parameters, profile}``; its paths start at the project's folder, and
only ``notebook`` is required. An executed notebook is skipped while it, its parameters and the package's code are
unchanged; ``--again`` runs it all the same.
"""

import argparse
import ast
import json
import logging
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from newllm_core.config.language import Settings
from newllm_core.config.schema import ConfigError, parameter_fields, settings_of_type
from newllm_core.runs.files import PROJECT_ROOT, RESULTS_DIR, sha256_bytes, write_text
from newllm_core.vision.settings import VisionSettings

PARAMETERS_TAG = "parameters"
OUTPUT_DIR = RESULTS_DIR / "notebooks"
LINES: tuple[type, ...] = (Settings, VisionSettings)


class BatchError(RuntimeError):
    """A notebook that cannot be run as asked, or that failed; the message names it and what to change."""


@dataclass(frozen=True)
class Job:
    """One run of one notebook. ``parameters`` take precedence over the profile's."""

    notebook: Path
    output: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    profile: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """``status``: finished, skipped or failed. ``seconds`` is None when skipped, ``error`` None unless failed."""

    job: Job
    status: str
    seconds: float | None = None
    error: str | None = None


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises BatchError when there is no notebook of format 4 at ``path``."""
    if not path.is_file():
        raise BatchError(f"{path}: no such notebook")
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook, version=4)
    except (nbformat.ValidationError, ValueError, TypeError, AttributeError) as error:  # nbformat's, by what is wrong
        raise BatchError(f"{path}: expected a notebook, found something else ({error})") from error
    return notebook


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values in the notebook's cell tagged ``parameters``.

    Raises BatchError unless there is exactly one such cell and it holds ``name = literal`` lines only: a value
    computed there would keep the default's result when papermill injects other parameters after it.
    """
    cells = [cell for cell in read_notebook(path).cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BatchError(f"{path}: expected exactly one cell tagged {PARAMETERS_TAG!r}, found {len(cells)}")
    # Parsed here: papermill's line-by-line inspection leaves out `x: int | None = None` and comments with a "=".
    try:
        return dict(_assigned_literal(statement) for statement in ast.parse(cells[0].source).body)
    except (SyntaxError, ValueError) as error:
        raise BatchError(f"{path}: the parameters cell takes lines of the form name = literal; {error}") from error


def _assigned_literal(statement: ast.stmt) -> tuple[str, Any]:
    """The name and value of ``name = literal``, annotated or not. Raises ValueError for any other statement."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = getattr(statement, "value", None)
    if len(targets) == 1 and isinstance(targets[0], ast.Name) and isinstance(value, ast.expr):
        try:
            return targets[0].id, ast.literal_eval(value)
        except ValueError:
            pass  # not a literal: said below, with the line
    raise ValueError(f"line {statement.lineno} is: {ast.unparse(statement)}")


def read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise BatchError(f"{path}: no such file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BatchError(f"{path}: not YAML ({error})") from error


def load_profile(path: Path) -> dict[str, Any]:
    """The parameters of a profile: a flat YAML mapping. Raises BatchError for anything else."""
    profile = read_yaml(path)
    if not isinstance(profile, dict) or not all(isinstance(name, str) for name in profile):
        raise BatchError(f"{path}: expected lines of the form name: value, found {type(profile).__name__}")
    return profile


def settings_type_of(own: Mapping[str, Any]) -> type:
    """The line whose configuration has most of a notebook's own parameters; the language model's on a tie."""
    return max(LINES, key=lambda line: len(own.keys() & parameter_fields(line).keys()))


def job_parameters(job: Job) -> dict[str, Any]:
    """What will be injected: profile, then parameters, checked against the notebook's own and against the configs.

    Tuples become lists, as in the JSON of a notebook. Raises BatchError for an unknown name (with the nearest known
    one), for a value that the configs refuse, and for one that is not a number, text, truth value, None or a list.
    """
    given = {**(load_profile(job.profile) if job.profile else {}), **job.parameters}
    own = notebook_parameters(job.notebook)
    try:
        hidden = [name for name in given if name.startswith("_")]  # settings_of_type leaves these out
        if hidden:
            raise ConfigError(f"unknown parameter {hidden[0]!r}: names do not start with an underscore")
        line = settings_type_of(own)
        settings_of_type(line, {**own, **given}, own.keys() - parameter_fields(line).keys())
        return json.loads(json.dumps(given, allow_nan=False))
    except (ConfigError, TypeError, ValueError) as error:
        source = f" with profile {job.profile}" if job.profile else ""
        raise BatchError(f"{job.notebook}{source}: {error}") from error


def source_hash(notebook: Path) -> str:
    """Changes with the notebook's cells and with any source file of the package, not with committed outputs."""
    cells = [(cell.cell_type, cell.source) for cell in read_notebook(notebook).cells]
    package = Path(__file__).parents[1]
    sources = [(str(path.relative_to(package)), path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))]
    return sha256_bytes(json.dumps([cells, sources]).encode())


def is_finished(job: Job) -> bool:
    """True when ``job.output`` is this notebook, run to its end by this code with these parameters."""
    try:
        metadata = read_notebook(job.output).metadata
    except BatchError:
        return False  # absent, or cut short by something outside: either way to be run
    record, source = metadata.get("papermill", {}), metadata.get("newllm", {}).get("source")
    ended = bool(record.get("end_time")) and record.get("exception") is None
    return ended and record.get("parameters", {}) == job_parameters(job) and source == source_hash(job.notebook)


def run_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, Any] | None = None, profile: Path | None = None
) -> Path:
    """Run one notebook and write it, executed, to ``output``; returns ``output``.

    While it runs it grows as ``<name>.partial.ipynb``; a failure leaves ``<name>.failed.ipynb`` and raises BatchError.
    The kernel starts in the caller's working directory, which the package's paths do not depend on.
    """
    job = Job(notebook, output, parameters or {}, profile)
    if output.resolve() == notebook.resolve():
        raise BatchError(f"{notebook}: the output would replace the notebook; give another folder")
    injected, source = job_parameters(job), source_hash(notebook)
    partial, failed = output.with_suffix(".partial.ipynb"), output.with_suffix(".failed.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    # papermill warns of each parameter that the notebook does not declare; job_parameters has checked them.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        executed = papermill.execute_notebook(notebook, partial, injected)
    except Exception as error:
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else repr(error)
        if partial.exists():
            partial.replace(failed)
            reason += f" (executed up to there: {failed})"
        raise BatchError(f"{notebook}: {reason}") from error
    executed.metadata["newllm"] = {"source": source}
    executed.metadata["papermill"]["output_path"] = str(output)
    write_text(output, nbformat.writes(executed) + "\n")
    partial.unlink()
    failed.unlink(missing_ok=True)
    return output


def job_from_mapping(values: Mapping[str, Any]) -> Job:
    """A job from an entry of a batch file; relative paths start at the project's folder."""
    known = [spec.name for spec in fields(Job)]
    if not isinstance(values, Mapping) or "notebook" not in values or not set(values) <= set(known):
        raise BatchError(f"a job of a batch: expected notebook, and of the rest of {', '.join(known)}, given {values}")
    notebook = PROJECT_ROOT / values["notebook"]
    output = PROJECT_ROOT / values["output"] if "output" in values else OUTPUT_DIR / notebook.name
    profile = PROJECT_ROOT / values["profile"] if values.get("profile") else None
    return Job(notebook, output, values.get("parameters") or {}, profile)


def load_batch(path: Path) -> list[Job]:
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise BatchError(f"{path}: expected a list of jobs, found {type(entries).__name__}")
    return [job_from_mapping(entry) for entry in entries]


def _check_all(jobs: Sequence[Job]) -> None:
    """Raises BatchError when a job is impossible, or when two would write the same file."""
    outputs: dict[Path, Job] = {}
    for job in jobs:
        job_parameters(job)
        earlier = outputs.setdefault(job.output.resolve(), job)
        if earlier is not job:
            raise BatchError(f"{job.output}: the output of two jobs; give each its own")


def _run_job(job: Job, again: bool) -> Outcome:
    if not again and is_finished(job):
        return Outcome(job, "skipped")
    start = time.perf_counter()
    try:
        run_notebook(job.notebook, job.output, job.parameters, job.profile)
    except (BatchError, OSError) as error:
        return Outcome(job, "failed", time.perf_counter() - start, str(error))
    return Outcome(job, "finished", time.perf_counter() - start)


def run_batch(jobs: Sequence[Job | Mapping[str, Any]], again: bool = False, workers: int = 1) -> list[Outcome]:
    """Check every job, then run ``workers`` of them at a time, in order, going on after one that fails.

    Prints a line a job as it ends, and a summary; returns the outcomes in the order of the jobs. Raises BatchError,
    before anything runs, when a job cannot be run as asked.
    """
    if workers < 1:
        raise BatchError(f"workers: expected at least 1, given {workers}")
    checked = [job if isinstance(job, Job) else job_from_mapping(job) for job in jobs]
    _check_all(checked)
    by_place: dict[int, Outcome] = {}
    for place, outcome in _as_they_end(checked, again, workers):
        by_place[place] = outcome
        print(f"[{len(by_place)}/{len(checked)}] {_outcome_line(outcome)}", flush=True)
    outcomes = [by_place[place] for place in range(len(checked))]
    counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in ("finished", "skipped", "failed")]
    print(", ".join(counts), flush=True)
    return outcomes


def _as_they_end(jobs: Sequence[Job], again: bool, workers: int) -> Iterator[tuple[int, Outcome]]:
    """Each job's place in the list, and what became of it."""
    if workers == 1:
        yield from ((place, _run_job(job, again)) for place, job in enumerate(jobs))
        return
    # Processes rather than threads: an interruption from the keyboard reaches each of them, and so its kernel.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        places = {pool.submit(_run_job, job, again): place for place, job in enumerate(jobs)}
        try:
            for ended in as_completed(places):
                yield places[ended], ended.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _outcome_line(outcome: Outcome) -> str:
    seconds = "" if outcome.seconds is None else f" in {outcome.seconds:.1f} s"
    return f"{outcome.job.notebook.name} {outcome.status}{seconds}: {outcome.error or outcome.job.output}"


def parse_value(text: str) -> Any:
    """A value from the command line: a Python or YAML literal; "1e-3" is a number, which YAML alone takes for text."""
    if text in ("None", "True", "False"):
        return ast.literal_eval(text)
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BatchError(f"expected a number, text or a list such as [0, 50], given {text!r}") from error


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m newllm_core.batch", description="Run notebooks with parameters.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    parser.add_argument("-f", type=Path, metavar="PROFILE", dest="profile", help="YAML file of parameters")
    parser.add_argument("--out", type=Path, help=f"folder of the executed notebooks ({OUTPUT_DIR.name}/ in results/)")
    parser.add_argument("--batch", type=Path, metavar="FILE", help="YAML list of jobs, instead of all of the above")
    parser.add_argument("--again", action="store_true", help="also run what is finished already")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="notebooks at a time, each in its own kernel"
    )
    options = parser.parse_args(arguments)
    if bool(options.batch) == bool(options.notebooks):
        parser.error("expected notebooks, or --batch FILE")
    if options.batch and (options.parameters or options.profile or options.out):
        parser.error("--batch takes no -p, -f or --out: each job of the file has its own")
    if options.out and options.out.suffix == ".ipynb":
        parser.error(f"--out: expected a folder, given {options.out}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every job is finished or skipped, 1 when one failed or could not be run as asked."""
    options = _arguments(arguments)
    try:
        parameters = {name: parse_value(value) for name, value in options.parameters}
        out = options.out or OUTPUT_DIR
        jobs = [Job(path, out / path.name, parameters, options.profile) for path in options.notebooks]
        outcomes = run_batch(load_batch(options.batch) if options.batch else jobs, options.again, options.workers)
    except BatchError as error:
        print(f"error: {error}", flush=True)
        return 1
    return int(any(outcome.status == "failed" for outcome in outcomes))
