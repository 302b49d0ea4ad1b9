"""What a run of a notebook takes: the notebook, where it goes, and parameters that are checked before anything runs.

A parameter is known when the notebook's parameters cell or its line's configuration has it, so one profile (a flat YAML
file) serves every notebook of a line. notebooks.py runs jobs, one after the other or side by side.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nbformat

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.notebook import NotebookSettings, Parameter, cell_parameters, read_parameters
from newllm_core.config.profiles import load_profile, read_yaml
from newllm_core.config.schema import ConfigError, location_parameters, parameter_fields
from newllm_core.data import DataError, content_read
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, RESULTS_DIR, content_sha256, sha256_bytes
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import images_read
from newllm_core.vision.settings import VisionSettings

PARAMETERS_TAG = "parameters"
OUTPUT_DIR = RESULTS_DIR / "notebooks"
LINES: tuple[type[NotebookSettings], ...] = (Settings, VisionSettings)


class BatchError(RuntimeError):
    """A notebook that cannot be run as asked, or that failed; the message names it and what to change."""


@dataclass(frozen=True)
class Job:
    """One run of one notebook. ``parameters`` take precedence over the profile's."""

    notebook: Path
    output: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    profile: Path | None = None


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


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """Names, defaults and kinds in the notebook's cell tagged ``parameters``.

    Raises BatchError unless there is exactly one such cell and it holds ``name = literal`` lines only.
    """
    cells = [cell for cell in read_notebook(path).cells if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BatchError(f"{path}: expected exactly one cell tagged {PARAMETERS_TAG!r}, found {len(cells)}")
    try:
        return cell_parameters(cells[0].source)
    except ConfigError as error:
        raise BatchError(f"{path}: {error}") from error


def settings_type_of(names: Mapping[str, Any]) -> type[NotebookSettings]:
    """The line whose configuration has most of a notebook's own parameters; the language model's on a tie."""
    return max(LINES, key=lambda line: len(names.keys() & parameter_fields(line).keys()))


def job_parameters(job: Job) -> dict[str, Any]:
    """What will be injected: profile, then parameters, read and checked as the notebook and its line's configs ask.

    Tuples become lists, as in the JSON of a notebook. Raises BatchError for an unknown name (with the nearest known
    one), for a value that is refused, and for one that is not a number, text, truth value, None or a list.
    """
    return _read(job)[2]


def job_content(job: Job) -> dict[str, str]:
    """SHA-256 of everything that the notebook will read: text or images, and the committed records.

    Raises BatchError as ``job_parameters``, and where something is missing.
    """
    settings, values, _ = _read(job)
    records = [f"{path.relative_to(REFERENCE_DIR)} {content_sha256(path)}" for path in REFERENCE_DIR.rglob("*.json")]
    read = {"committed records": sha256_bytes("\n".join(sorted(records)).encode())}
    try:
        if isinstance(settings, Settings):
            return read | content_read(settings.data)
        assert isinstance(settings, VisionSettings)
        further = [VisionDataConfig(dataset=name) for name in values.get("data_sets", [])]
        for images in (settings.data, *further):
            read |= {f"{images.dataset} {name}": content for name, content in images_read(images).items()}
        return read
    except (DataError, ConfigError) as error:
        raise BatchError(f"{job.notebook}: {error}") from error


def without_locations(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters whose values say what is run; where something lies is none, its content is."""
    known = {name for line in LINES for name in location_parameters(line)}
    return {name: value for name, value in parameters.items() if name not in known}


def _read(job: Job) -> tuple[NotebookSettings, dict[str, Any], dict[str, Any]]:
    """The settings, the value of every parameter, and the values that are injected."""
    own = notebook_parameters(job.notebook)
    try:
        given = {**(load_profile(job.profile) if job.profile else {}), **job.parameters}
        line = settings_type_of(own)
        further = own.keys() - parameter_fields(line).keys()
        written = own | {
            name: Parameter(value, own[name].kind if name in own else Any) for name, value in given.items()
        }
        values = read_parameters(line, written, further)
        settings = line.from_parameters(values, further)
        injected = {name: values[name] for name in given}
        return settings, values, json.loads(json.dumps(injected, allow_nan=False))
    except (ConfigError, TypeError, ValueError, RecursionError) as error:
        source = f" with profile {job.profile}" if job.profile else ""
        raise BatchError(f"{job.notebook}{source}: {error}") from error


def job_from_mapping(values: Mapping[str, Any]) -> Job:
    """A job from an entry of a batch file; relative paths start at the project's folder, ``~`` is the home folder."""
    known = [spec.name for spec in fields(Job)]
    texts = isinstance(values, Mapping) and all(isinstance(values.get(name, ""), str | Path) for name in _PATHS)
    if not texts or "notebook" not in values or not set(values) <= set(known):
        raise BatchError(f"a job of a batch: expected notebook, and of the rest of {', '.join(known)}, given {values}")
    if not isinstance(values.get("parameters") or {}, Mapping):
        raise BatchError(f"a job of a batch: expected parameters of the form name: value, given {values['parameters']}")
    paths = {name: PROJECT_ROOT / Path(values[name]).expanduser() for name in _PATHS if values.get(name)}
    paths.setdefault("output", OUTPUT_DIR / paths["notebook"].name)
    return Job(**paths, parameters=values.get("parameters") or {})


_PATHS = ("notebook", "output", "profile")


def load_batch(path: Path) -> list[Job]:
    """The jobs of a batch file, a YAML list. Raises BatchError for anything else."""
    try:
        entries = read_yaml(path)
    except ConfigError as error:
        raise BatchError(str(error)) from error
    if not isinstance(entries, list):
        raise BatchError(f"{path}: expected a list of jobs, found {type(entries).__name__}")
    return [job_from_mapping(entry) for entry in entries]


def check_output(output: Path) -> None:
    """Raises BatchError where writing ``output`` would replace what is not an executed notebook."""
    if output.suffix != ".ipynb":
        raise BatchError(f"{output}: expected an output that ends in .ipynb")
    for path in (output, *unfinished(output)):
        if path.exists() and "papermill" not in _metadata(path) and not _was_cut(path, output):
            raise BatchError(f"{path}: there is something else than an executed notebook; move it, or write elsewhere")


def _was_cut(path: Path, output: Path) -> bool:
    """What a process that was killed leaves while a notebook grows: nothing, or the beginning of one."""
    content = path.read_bytes() if path != output else b"other"
    if content and not content.startswith(b'{\n "cells": ['):
        return False
    try:
        json.loads(content)
    except ValueError:
        return True
    return False


def unfinished(output: Path) -> tuple[Path, Path]:
    """What a notebook grows in while it runs, and what it leaves when it fails."""
    return output.with_suffix(".partial.ipynb"), output.with_suffix(".failed.ipynb")


def _metadata(path: Path) -> Mapping[str, Any]:
    try:
        return read_notebook(path).metadata
    except BatchError:
        return {}
