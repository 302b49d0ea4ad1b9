"""α of every contender, from their rows at several sizes: windows, floor, and ratios and differences that are paired.

Rows are those of the leaderboard, one a variant, size and seed. One that has no seed stands beside every run of the
others. Sizes are numbers of conversations: a configuration that holds less text out trains on a few tokens more.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.groups import ComparisonError, Record, paired_runs
from newllm_core.comparison.leaderboard import Standing, standings
from newllm_core.config.hyperparameters import ScalingConfig
from newllm_core.intervals import Estimate, Interval
from newllm_core.scaling.analysis import scaling_point
from newllm_core.scaling.bootstrap import (
    NUM_RESAMPLES,
    ScalingPoint,
    bootstrap_alpha,
    bootstrap_alpha_difference,
)
from newllm_core.scaling.floor import FLOOR_PARAMETERS, bootstrap_floor_law
from newllm_core.scaling.law import POWER_LAW_PARAMETERS, sliding_windows

# Of an α that is quoted: two sizes always lie on a line, so that nothing tells how far sizes deviate from it.
MIN_SIZES = POWER_LAW_PARAMETERS + 1
FLOOR_RESAMPLES = 1000  # at most: each is an optimization


@dataclass(frozen=True)
class GrowthSize:
    """One contender on one size of text; ``num_seeds`` 0: no seed touches it. ``ratio``: PPL over the reference's, None
    of the reference itself and where that was not run."""

    samples: int
    tokens: int
    num_seeds: int
    chosen_on: str
    perplexity: Estimate
    bits_per_byte: float
    cpu_seconds: float
    ratio: Estimate | None


@dataclass(frozen=True)
class GrowthWindow:
    """α over some sizes, numbers of conversations."""

    samples: tuple[int, ...]
    alpha: Estimate


@dataclass(frozen=True)
class AlphaDifference:
    """α of ``one`` minus α of ``other`` over the ``samples`` that both have; below 0: ``one`` falls faster.

    Attributes:
        least_seeds: of the size that was run with the fewest.
    """

    one: str
    other: str
    samples: tuple[int, ...]
    difference: Estimate
    least_seeds: int

    @property
    def verdict(self) -> str:
        """In words; a size with one seed lacks what another seed would change."""
        has_several = len(self.difference.by_seed) != 1  # else the difference itself says that it has one
        lacks_seeds = self.difference.is_distinguishable and has_several and self.least_seeds == 1
        return self.difference.verdict + ", with one seed at some sizes" * lacks_seeds


@dataclass(frozen=True)
class GrowthFloor:
    """Whether perplexity levels off: the statement of ``floor.FloorBootstrap``, E in nats a token."""

    statement: str
    identified: bool
    E: float
    interval: Interval | None


@dataclass(frozen=True)
class ContenderGrowth:
    """Everything said of one contender; ``whole`` and ``floor`` are None for fewer than three sizes."""

    name: str
    label: str
    sizes: tuple[GrowthSize, ...]
    whole: GrowthWindow | None
    windows: tuple[GrowthWindow, ...]
    floor: GrowthFloor | None


@dataclass(frozen=True)
class GrowthAnalysis:
    """``windows``: each contender against the reference, window by window; ``pairs``: each two over all sizes that both
    have."""

    reference: str
    contenders: tuple[ContenderGrowth, ...]
    windows: tuple[AlphaDifference, ...]
    pairs: tuple[AlphaDifference, ...]
    source: str  # corpus, embeddings, validation tokens
    num_resamples: int

    def named(self, name: str) -> ContenderGrowth | None:
        return next((one for one in self.contenders if one.name == name), None)


def analyse_growth(
    rows: Sequence[Record],
    names: Sequence[str],
    reference: str,
    window_size: int = ScalingConfig.window_size,
    num_resamples: int = NUM_RESAMPLES,
) -> GrowthAnalysis:
    """Of the rows of ``names``, in that order; who has no row is left out, a window needs ``window_size`` sizes.

    Raises ComparisonError without a row, for rows of several configurations at one size, a row twice, and different
    validation text; ScalingError for fewer than two sizes a window or 100 resamples.
    """
    found = _by_size(rows)
    present = [name for name in names if name in found]
    if not present:
        raise ComparisonError(f"expected rows of some of {', '.join(names)}, given {', '.join(found) or 'none'}")
    held = found.get(reference, {})
    others = [name for name in present if name != reference and held]
    windows = [
        _difference(found[name], held, sizes, num_resamples)
        for name in others
        for sizes in _windows(_common(found[name], held), window_size)
    ]
    pairs = [
        _difference(found[one], found[other], sizes, num_resamples)
        for number, one in enumerate(present)
        for other in present[number + 1 :]
        if len(sizes := _common(found[one], found[other])) >= MIN_SIZES
    ]
    contenders = [_contender(found[name], held, window_size, num_resamples) for name in present]
    return GrowthAnalysis(
        reference, tuple(contenders), tuple(windows), tuple(pairs), _source(rows[0]), num_resamples
    )  # fmt: skip


BySize = dict[int, Standing]  # numbers of conversations, ascending


def _by_size(rows: Sequence[Record]) -> dict[str, BySize]:
    found: dict[str, BySize] = {}
    for one in sorted(standings(rows), key=lambda one: one.tokens):
        found.setdefault(one.name, {})[int(one.records[0]["config"]["data"]["num_samples"])] = one
    return found


def _common(one: BySize, other: BySize) -> list[int]:
    return [size for size in one if size in other]


def _windows(sizes: Sequence[int], window_size: int) -> list[Sequence[int]]:
    """None where there are fewer sizes."""
    return sliding_windows(sizes, window_size) if len(sizes) >= window_size else []


def _contender(mine: BySize, held: BySize, window_size: int, num_resamples: int) -> ContenderGrowth:
    first = next(iter(mine.values()))
    points = {size: scaling_point(one.tokens, one.records) for size, one in mine.items()}
    sizes = list(points)
    return ContenderGrowth(
        name=first.name,
        label=str(first.variant["label"]),
        sizes=tuple(_size(size, one, held.get(size)) for size, one in mine.items()),
        whole=_window(points, sizes, num_resamples) if len(sizes) >= MIN_SIZES else None,
        windows=tuple(_window(points, window, num_resamples) for window in _windows(sizes, window_size)),
        floor=_floor(list(points.values()), num_resamples) if len(sizes) >= FLOOR_PARAMETERS else None,
    )


def _size(samples: int, one: Standing, held: Standing | None) -> GrowthSize:
    return GrowthSize(
        samples=samples,
        tokens=one.tokens,
        num_seeds=0 if one.is_seedless else len(one.seeds),
        chosen_on=one.chosen_on,
        perplexity=one.perplexity,
        bits_per_byte=one.bits_per_byte,
        cpu_seconds=one.cpu_seconds,
        ratio=None if held is None or held is one else perplexity_ratio(one, held),
    )


def _window(points: dict[int, ScalingPoint], sizes: Sequence[int], num_resamples: int) -> GrowthWindow:
    found = bootstrap_alpha([points[size] for size in sizes], num_resamples)
    return GrowthWindow(tuple(sizes), Estimate(found.alpha, found.alpha_interval, no_difference=0.0))


def _floor(points: Sequence[ScalingPoint], num_resamples: int) -> GrowthFloor:
    found = bootstrap_floor_law(points, min(num_resamples, FLOOR_RESAMPLES))
    return GrowthFloor(found.statement, found.E_identified, found.fit.E, found.E_interval)


def _difference(one: BySize, other: BySize, sizes: Sequence[int], num_resamples: int) -> AlphaDifference:
    """Over the seeds that both have at each size."""
    pairs = [(size, *paired_runs(one[size], other[size])) for size in sizes]
    mine = [scaling_point(one[size].tokens, records) for size, records, _ in pairs]
    theirs = [scaling_point(other[size].tokens, records) for size, _, records in pairs]
    found = bootstrap_alpha_difference(mine, theirs, num_resamples)
    least = min(len(records) for _, records, _ in pairs)
    return AlphaDifference(one[sizes[0]].name, other[sizes[0]].name, tuple(sizes), found, least)


def _source(row: Record) -> str:
    return f"{row['corpus']}, {row['embeddings']}, {row['tokens']['validation']:,} validation tokens"


def growth_record(analysis: GrowthAnalysis) -> dict[str, Any]:
    """As `growth.json` holds it."""
    return dataclasses.asdict(analysis)


def growth_from_record(record: dict[str, Any]) -> GrowthAnalysis:
    """The other way round. Raises KeyError or TypeError for what ``growth_record`` did not write."""
    return GrowthAnalysis(
        reference=record["reference"],
        contenders=tuple(map(_read_contender, record["contenders"])),
        windows=tuple(map(_read_difference, record["windows"])),
        pairs=tuple(map(_read_difference, record["pairs"])),
        source=record["source"],
        num_resamples=record["num_resamples"],
    )


def _read_contender(stored: dict[str, Any]) -> ContenderGrowth:
    sizes = [
        GrowthSize(**{**one, "perplexity": _read_estimate(one["perplexity"]), "ratio": _read_estimate(one["ratio"])})
        for one in stored["sizes"]
    ]
    floor = stored["floor"]
    return ContenderGrowth(
        name=stored["name"],
        label=stored["label"],
        sizes=tuple(sizes),
        whole=None if stored["whole"] is None else _read_window(stored["whole"]),
        windows=tuple(map(_read_window, stored["windows"])),
        floor=None if floor is None else GrowthFloor(**{**floor, "interval": _read_interval(floor["interval"])}),
    )


def _read_window(stored: dict[str, Any]) -> GrowthWindow:
    alpha = _read_estimate(stored["alpha"])
    assert alpha is not None  # every window has one
    return GrowthWindow(tuple(stored["samples"]), alpha)


def _read_difference(stored: dict[str, Any]) -> AlphaDifference:
    difference = _read_estimate(stored["difference"])
    assert difference is not None  # every pair has one
    samples = tuple(stored["samples"])
    return AlphaDifference(stored["one"], stored["other"], samples, difference, stored["least_seeds"])


def _read_estimate(stored: dict[str, Any] | None) -> Estimate | None:
    if stored is None:
        return None
    interval, by_seed = _read_interval(stored["interval"]), tuple(stored["by_seed"])
    return Estimate(stored["value"], interval, by_seed, stored["no_difference"])


def _read_interval(stored: Sequence[float] | None) -> Interval | None:
    return None if stored is None else (stored[0], stored[1])
