"""Many experiments as one list: which points it has, what they will cost, and their records.

A point is a complete `Settings`. Points are named by their configuration, so a list that was interrupted goes on with
the first unfinished point, two lists share the points they have in common, and points that differ in Phase 2 alone
share Phase 1. Finished records that are committed under ``results/reference/experiments`` count as finished.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm_core.config.language import Settings
from newllm_core.config.schema import ConfigError, changed
from newllm_core.data import load_embeddings, load_token_streams
from newllm_core.experiment.estimate import duration_text, estimate, list_text
from newllm_core.experiment.identity import phase1_folder_name, run_folder_name, run_identity
from newllm_core.experiment.prepare import prepare
from newllm_core.experiment.run import (
    phase1_only_record,
    run_experiment,
    run_phase1,
)
from newllm_core.losses import diversity_loss
from newllm_core.runs.files import DATA_DIR, RESULTS_DIR, read_json, write_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.runs.identity import refuse_other_run
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.reproducibility import resolve_device

logger = logging.getLogger("newllm")

Record = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]  # parameter name -> values


@dataclass(frozen=True)
class Variant:
    """A named change of a base, and what a reader is told of it: tables and pictures are made from that alone.

    Attributes:
        name: short, for commands, tables and file names.
        label: words, for pictures.
        changes: flat parameter -> value, made at once.
        group: variants of one group stand together.
        kind: what it is, e.g. "model".
        sentence: the same in a sentence, where a label says too little.
        reference: name of the variant that its figures are held against, if any.
        expected: what was thought of that before it was run.
    """

    name: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str = "variants"
    kind: str = "model"
    sentence: str = ""
    reference: str | None = None
    expected: str | None = None

    def settings(self, base: Any) -> Any:
        """``base``, changed. Raises ConfigError for an unknown parameter, an impossible value or combination."""
        return changed(base, self.changes)

    def record(self) -> dict[str, Any]:
        """As a record's ``variant``: what it is called and means now, whatever the code calls it later."""
        told = ("name", "label", "kind", "group", "sentence", "reference", "expected")
        return {name: getattr(self, name) for name in told}


class SeriesError(RuntimeError):
    """A list of experiments that was not agreed to."""


@dataclass(frozen=True)
class Folders:
    """Where a list of experiments reads and writes."""

    experiments: Path = RESULTS_DIR / "experiments"
    phase1: Path = RESULTS_DIR / "phase1"
    reference: Path = RESULTS_DIR / "reference" / "experiments"  # committed records; only read by runs
    data: Path = DATA_DIR


def grid(base: Settings, axes: Axes) -> list[Settings]:
    """Every combination of the axes' values; the first axis changes slowest.

    Raises ConfigError for an unknown axis, an axis without values, or an impossible value.
    """
    _refuse_empty_axes(axes)
    points = []
    for values in itertools.product(*axes.values()):
        point = base
        for parameter, value in zip(axes, values, strict=True):
            point = changed(point, {parameter: value})
        points.append(point)
    return _distinct(points)


def one_axis_at_a_time(centre: Settings, axes: Axes) -> list[Settings]:
    """The centre, then every value of every axis with all else as in the centre. Raises ConfigError as ``grid``."""
    _refuse_empty_axes(axes)
    varied = [changed(centre, {parameter: value}) for parameter, values in axes.items() for value in values]
    return _distinct([centre, *varied])


def comparison_points(centre: Settings, axes: Axes, seeds: Sequence[int], *, full_grid: bool) -> list[Settings]:
    """One axis at a time from the centre, or every combination; each point with every seed.

    Axes without values are left out. Raises ConfigError as ``grid``.
    """
    given = {parameter: values for parameter, values in axes.items() if len(values)}
    points = grid(centre, given) if full_grid else one_axis_at_a_time(centre, given)
    return _distinct([seeded for point in points for seeded in grid(point, {"seed": seeds})])


def _refuse_empty_axes(axes: Axes) -> None:
    for parameter, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ConfigError(f"axis {parameter!r}: expected a list with at least one value, given {values!r}")


def _distinct(points: Sequence[Settings]) -> list[Settings]:
    return list(dict.fromkeys(points))


@dataclass(frozen=True)
class SeriesEstimate:
    """What the unfinished points of a list will take, if no phase stops early, on this machine as it is now."""

    num_points: int
    num_finished: int
    longest_hours: float
    memory_gb: float

    def __str__(self) -> str:
        cost = f"at most about {duration_text(3600 * self.longest_hours)}, {self.memory_gb:.1f} GiB"
        return list_text("points", self.num_points, self.num_finished, cost)


class Series:
    """A list of experiments. With ``phase1_only`` a point ends after Phase 1 and its record has no `phase2`."""

    def __init__(
        self, points: Sequence[Settings], folders: Folders | None = None, *, phase1_only: bool = False
    ) -> None:
        self.phase1_only = phase1_only
        named: dict[str, Settings] = {}
        for point in points:  # by name: without Phase 2, points that differ in it alone are one
            named.setdefault(self.name(point), point)
        self.points = list(named.values())
        self.folders = folders or Folders()

    def check(self) -> None:
        """Everything that can be refused before anything is trained.

        Also makes the token cache of the largest point, of which the smaller ones are prefixes. Raises ValueError
        for an unknown diversity algorithm (it names the known ones), DataError when the corpus is too small or the
        embeddings have another width, RunError for a device that is absent.
        """
        for point in self.points:
            diversity_loss(point.phase1.diversity_algorithm)
            resolve_device(point.run.device)
        seen: set[tuple[str, int]] = set()
        for point in sorted(self.points, key=lambda one: one.data.num_samples, reverse=True):
            streams = load_token_streams(point.data, self.folders.data)
            kind = point.data.embeddings, point.model.embed_dim
            if kind not in seen:
                load_embeddings(point.data, kind[1], point.run.seed, streams.train.tokens, self.folders.data)
                seen.add(kind)

    def finished_record(self, point: Settings) -> Record | None:
        """The record of a finished point: its own, else a committed one. Raises RunError for a damaged file."""
        for path in self._record_paths(point):
            if path.is_file():
                return self._read(path, point)
        return None

    def name(self, point: Settings) -> str:
        """Of the point's folder, and of its committed record."""
        if self.phase1_only:
            return phase1_folder_name(point.data, point.model, point.phase1, point.run)
        return run_folder_name(point)

    def _record_paths(self, point: Settings) -> list[Path]:
        name = self.name(point)
        return [self.folders.experiments / name / RECORD_NAME, self.folders.reference / f"{name}.json"]

    def _read(self, path: Path, point: Settings) -> Record:
        record: Record = read_json(path)
        refuse_other_run(record, run_identity(point, phase1_only=self.phase1_only), path)
        return record

    def estimate(self) -> SeriesEstimate:
        """Times a piece of one point per size and width; trains nothing. Checks the points first."""
        self.check()
        unfinished = [point for point in self.points if self.finished_record(point) is None]
        costs: dict[tuple[Any, ...], tuple[float, float]] = {}
        seconds, memory = 0.0, 0.0
        for point in unfinished:
            phase1 = point.phase1
            kind = (
                point.data,
                point.model,
                phase1.max_iterations,
                phase1.batch_tokens,
                point.phase2,
                point.run.num_threads,
            )
            if kind not in costs:
                one = estimate(prepare(point.data, point.model, point.run, self.folders.data), point)
                phases = one.phase1_minutes if self.phase1_only else one.longest_minutes
                costs[kind] = 60 * phases, one.memory_gb
            seconds, memory = seconds + costs[kind][0], max(memory, costs[kind][1])
        return SeriesEstimate(len(self.points), len(self.points) - len(unfinished), seconds / 3600, memory)

    def refuse_more_hours_than(self, accepted: float) -> None:
        """Raises SeriesError, with the hours, when the unfinished points may take longer than ``accepted`` hours."""
        expected = self.estimate()
        if expected.longest_hours > accepted:
            raise SeriesError(f"{expected}. Accepted are {accepted:g} hours: accept more, or vary one axis at a time")

    def run(self, stop_after: Callable[[int], bool] = lambda finished: False) -> list[Record]:
        """Run every unfinished point, in order; returns the records of all points.

        Args:
            stop_after: called with the number of points that are done; True ends the list early, with fewer records.

        Raises what ``check`` and ``run_experiment`` raise; finished points stay finished.
        """
        self.check()
        records: list[Record] = []
        bar = progress_bar(self.points, desc="experiments", unit="point")
        for point in bar:
            bar.set_postfix_str(_point_name(point))
            found = self.finished_record(point)
            records.append(self._run(point) if found is None else found)
            if stop_after(len(records)):
                break
        bar.close()
        return records

    def _run(self, point: Settings) -> Record:
        folders = self.folders
        phase1_dir = folders.phase1 / phase1_folder_name(point.data, point.model, point.phase1, point.run)
        if not self.phase1_only:
            return run_experiment(
                point.data, point.model, point.phase1, point.phase2, folders.experiments / run_folder_name(point),
                run=point.run, data_dir=folders.data, phase1_dir=phase1_dir,
            )  # fmt: skip
        prepared = prepare(point.data, point.model, point.run, folders.data)
        _, phase1 = run_phase1(prepared, point.phase1, phase1_dir)
        record = phase1_only_record(prepared, phase1)
        write_json(folders.experiments / phase1_dir.name / RECORD_NAME, record)
        return record


def _point_name(point: Settings) -> str:
    phase1 = point.phase1
    trained = f"{phase1.diversity_algorithm} w={phase1.dist_reg_weight:g}" if phase1.max_iterations else "untrained"
    return f"{point.data.num_samples} samples, C={point.model.context_dim}, {trained}, seed {point.run.seed}"
