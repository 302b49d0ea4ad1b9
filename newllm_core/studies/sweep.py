"""Variants × seeds: which runs there are, what they will cost, and their records.

A run is named by its configuration, so a sweep that was interrupted goes on with the first unfinished one, and sweeps
share the runs that they have in common. What kind of run it is, is the runner's: `runners`, and `vision/runner`.
"""

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from newllm_core.config.schema import ConfigError, changed
from newllm_core.experiment.estimate import duration_text
from newllm_core.runs.folder import Record
from newllm_core.runs.progress import progress_bar

Axes = Mapping[str, Sequence[Any]]  # parameter name -> values


class SweepError(RuntimeError):
    """A sweep that was not agreed to."""


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
        kept = ("name", "label", "kind", "group", "sentence", "reference", "expected")
        return {name: getattr(self, name) for name in kept}


def grid(axes: Axes) -> list[Variant]:
    """Every combination of the axes' values; the first axis changes slowest. No axes: the base itself.

    Raises ConfigError for an axis without values.
    """
    _refuse_empty_axes(axes)
    return _named(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def one_axis_at_a_time(axes: Axes) -> list[Variant]:
    """The base itself, then every value of every axis with all else as in the base. Raises ConfigError as ``grid``."""
    _refuse_empty_axes(axes)
    return _named([{}, *({parameter: value} for parameter, values in axes.items() for value in values)])


def _refuse_empty_axes(axes: Axes) -> None:
    for parameter, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ConfigError(f"axis {parameter!r}: expected a list with at least one value, given {values!r}")


def _named(changes: Iterable[Mapping[str, Any]]) -> list[Variant]:
    """Each change once, called by its values."""
    names = {", ".join(f"{name} = {value}" for name, value in one.items()) or "base": one for one in changes}
    return [Variant(name, name, one) for name, one in names.items()]


@dataclass(frozen=True)
class Point:
    """One run of a sweep. ``settings``: complete, those of the variant with a seed."""

    variant: Variant
    settings: Any

    def __str__(self) -> str:
        return f"{self.variant.label}, seed {self.settings.run.seed}"


class Cost(NamedTuple):
    """On this machine as it is now, if nothing stops early; ``memory_gb``: GiB at the peak, None: not known."""

    seconds: float
    memory_gb: float | None = None


def scaled_cost(epochs: int, seconds: float, timed: tuple[int, int], whole: tuple[int, int]) -> Cost:
    """Of ``epochs``, where one over a piece took ``seconds``; piece and whole as (trained on, judged).

    Judging, without a backward pass, takes about a third of training.
    """
    shares = [trained + judged / 3 for trained, judged in (whole, timed)]
    return Cost(epochs * seconds * shares[0] / shares[1])


@dataclass(frozen=True)
class SweepEstimate:
    """``cost``: of the unfinished runs, one after the other."""

    num_runs: int
    num_finished: int
    cost: Cost

    def __str__(self) -> str:
        if self.num_finished == self.num_runs:
            return f"{self.num_runs} runs, all finished"
        memory = "" if self.cost.memory_gb is None else f", {self.cost.memory_gb:.1f} GiB"
        cost = f"at most about {duration_text(self.cost.seconds)}{memory}"
        return f"{self.num_runs} runs, {self.num_finished} finished; the others {cost}"


class Runner(Protocol):
    """What a sweep asks of one kind of run."""

    # Equal for points that are one run, as of two seeds where no seed touches the figures.
    def key(self, point: Point) -> Hashable: ...

    # The record of a finished run, or None. Raises RunError for a damaged one, and for one of another configuration.
    def finished(self, point: Point) -> Record | None: ...

    # Raises now what would stop one of these unfinished points later: ConfigError, DataError, RunError.
    def check(self, points: Sequence[Point]) -> None: ...

    # Equal for points that cost the same.
    def alike(self, point: Point) -> Hashable: ...

    # Measured on a small piece of the run; nothing is kept.
    def cost(self, point: Point) -> Cost: ...

    # Begins a run, or goes on with it.
    def run(self, point: Point) -> Record: ...

    # What there is of it in the point's `copy_to` becomes its folder, where that has nothing yet; nothing is run.
    def take_up(self, point: Point) -> None: ...


class Sweep:
    """Every variant of ``base`` with every seed.

    Raises ConfigError for an impossible variant, for two of one name, and for none or no seed.
    """

    def __init__(self, base: Any, variants: Sequence[Variant], seeds: Sequence[int], runner: Runner) -> None:
        names = [variant.name for variant in variants]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"variants: expected at least one and each name once, given {', '.join(names) or 'none'}")
        if not len(seeds):
            raise ConfigError("seeds: expected at least one, given none")
        self.runner = runner
        points: dict[Hashable, Point] = {}
        for variant in variants:
            settings = variant.settings(base)
            for point in (Point(variant, changed(settings, {"seed": seed})) for seed in seeds):
                points.setdefault(runner.key(point), point)
        self.points = list(points.values())

    def finished(self) -> list[Record | None]:
        """Of every point, in order, its record with its ``variant``, or None. Raises RunError as the runner."""
        return [self.record_of(point) for point in self.points]

    def record_of(self, point: Point) -> Record | None:
        """Of one of the points, as in ``finished``."""
        record = self.runner.finished(point)
        return None if record is None else _with_variant(point, record)

    def _checked(self) -> list[Record | None]:
        found = self.finished()
        self.runner.check([point for point, record in zip(self.points, found) if record is None])
        return found

    def estimate(self) -> SweepEstimate:
        """Times a piece of each kind of unfinished run; trains nothing that is kept.

        Raises what the runner's ``finished`` and ``check`` raise.
        """
        unfinished = [point for point, record in zip(self.points, self._checked()) if record is None]
        costs: dict[Hashable, Cost] = {}
        for point in unfinished:
            kind = self.runner.alike(point)
            if kind not in costs:
                costs[kind] = self.runner.cost(point)
        seconds = sum(costs[self.runner.alike(point)].seconds for point in unfinished)
        memory = max((one.memory_gb for one in costs.values() if one.memory_gb is not None), default=None)
        return SweepEstimate(len(self.points), len(self.points) - len(unfinished), Cost(seconds, memory))

    def refuse_more_hours_than(self, accepted: float, expected: SweepEstimate | None = None) -> None:
        """Raises SweepError, with the hours, when the unfinished runs may take longer than ``accepted`` hours.

        ``expected``: what ``estimate`` gave; None: it is made.
        """
        expected = expected or self.estimate()
        if expected.cost.seconds > 3600 * accepted:
            raise SweepError(f"{expected}. Accepted are {accepted:g} hours: accept more, or vary one axis at a time")

    def run(self) -> list[Record]:
        """The records of all points, in order, each with its ``variant``; what is unfinished is run.

        Raises as ``estimate`` before the first run, and what a run raises; finished ones stay finished.
        """
        found, records = self._checked(), list[Record]()
        bar = progress_bar(self.points, desc="sweep", unit="run")
        for point, record in zip(bar, found):
            bar.set_postfix_str(str(point))
            records.append(_with_variant(point, self.runner.run(point)) if record is None else record)
        return records


def _with_variant(point: Point, record: Record) -> Record:
    """A record that says itself which variant it is, was made under that name."""
    return {"variant": point.variant.record(), **record}
