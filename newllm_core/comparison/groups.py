"""Records by configuration: runs that differ in their seed alone, and what to call them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import parameter_fields

Record = dict[str, Any]
ALGORITHM, WEIGHT, UNTRAINED = "diversity_algorithm", "dist_reg_weight", "untrained"
_SHORT = {ALGORITHM: "{}", WEIGHT: "w = {:g}", "context_dim": "C = {}", "num_samples": "{} samples"}


class ComparisonError(ValueError):
    """Records that cannot be compared; the message says what was expected and what was given."""


@dataclass(frozen=True)
class Runs:
    """The runs of one configuration, one a seed, and what to call it."""

    label: str
    records: tuple[Record, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record["seed"] for record in self.records)

    @property
    def is_seedless(self) -> bool:
        """Whether no seed touches its figures, as of counts: its configuration has none."""
        return "run" not in self.records[0]["config"]


def paired_runs(one: Runs, other: Runs) -> tuple[list[Record], list[Record]]:
    """Of each the runs of the seeds that both have; what has no seed stands beside every run of the other.

    Raises ComparisonError without a common seed.
    """
    mine, theirs = ({record["seed"]: record for record in side.records} for side in (one, other))
    if one.is_seedless:
        mine = dict.fromkeys(theirs, one.records[0])
    elif other.is_seedless:
        theirs = dict.fromkeys(mine, other.records[0])
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        raise ComparisonError(
            f"expected a seed that both have, given {one.seeds} of {one.label} and {other.seeds} of {other.label}"
        )
    return [mine[seed] for seed in seeds], [theirs[seed] for seed in seeds]


@dataclass(frozen=True)
class Group(Runs):
    """A configuration of a diversity algorithm.

    Attributes:
        label: its algorithm, and its other settings where they are not the usual ones (``usual_settings``).
        settings: of every parameter that varies among the compared records.
    """

    settings: dict[str, Any]

    @property
    def algorithm(self) -> str:
        return str(_setting(self.records[0], ALGORITHM))

    @property
    def has_phase2(self) -> bool:
        return "phase2" in self.records[0]

    @property
    def train_tokens(self) -> int:
        return int(self.records[0]["tokens"]["train"])


def groups_of(records: Sequence[Record]) -> list[Group]:
    """Records by configuration without the seed, in order of first appearance.

    Raises ComparisonError for no records, Phase 1 alone beside both phases, a run given twice, two losses of one name.
    """
    _refuse_incomparable(records)
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(_configuration(record), []).append(record)
    varied = varying_parameters(records)
    settings = [{name: _setting(members[0], name) for name in varied} for members in runs.values()]
    labels = _labels([_setting(members[0], ALGORITHM) for members in runs.values()], settings)
    return [Group(label, tuple(members), values) for label, values, members in zip(labels, settings, runs.values())]


def families_along(records: Sequence[Record], parameter: str) -> dict[str, list[Group]]:
    """Configurations that differ in ``parameter`` alone, by its value, where there are two or more; by label.

    Raises ComparisonError as ``groups_of``, and for values that are not numbers.
    """
    families: dict[str, list[Group]] = {}
    for group in groups_of(records):
        families.setdefault(_configuration(group.records[0], parameter), []).append(group)
    for value in (group.settings[parameter] for groups in families.values() if groups[1:] for group in groups):
        if not isinstance(value, int | float):
            raise ComparisonError(f"axis {parameter!r}: expected numbers, given {value!r}")
    found = [sorted(groups, key=lambda one: one.settings[parameter]) for groups in families.values() if groups[1:]]
    others = [{name: value for name, value in one[0].settings.items() if name != parameter} for one in found]
    return dict(zip(_labels([groups[0].algorithm for groups in found], others), found))


def _refuse_incomparable(records: Sequence[Record]) -> None:
    if not records:
        raise ComparisonError("expected at least one record, given none")
    both = sum("phase2" in record for record in records)
    if both not in (0, len(records)):
        given = f"{len(records) - both} and {both}"
        raise ComparisonError(f"expected records of Phase 1 alone or of both phases, given {given}")
    (_, seed), times = Counter((_configuration(one), one["seed"]) for one in records).most_common(1)[0]
    if times > 1:
        raise ComparisonError(
            f"expected each run once, given {times} of one configuration with seed {seed} "
            "(an untrained block has no diversity algorithm and no weight)"
        )


def _configuration(record: Record, *without: str) -> str:
    names = (name for name in parameter_fields(Settings) if name not in ("seed", *without))
    return json.dumps([[_setting(record, name) for name in names], record["config"].get("user_loss")])


def _setting(record: Record, parameter: str) -> Any:
    if parameter in (ALGORITHM, WEIGHT) and not record["config"]["phase1"]["max_iterations"]:
        return UNTRAINED if parameter == ALGORITHM else None  # no loss has seen this block
    section, name = parameter_fields(Settings)[parameter]
    return record["config"].get(section, {}).get(name)


def varying_parameters(records: Sequence[Record]) -> tuple[str, ...]:
    """Notebook names of the parameters whose values differ between records; the algorithm first, never the seed."""
    names = (ALGORITHM, *(name for name in parameter_fields(Settings) if name not in (ALGORITHM, "seed")))
    return tuple(name for name in names if len({json.dumps(_setting(record, name)) for record in records}) > 1)


def usual_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each parameter but the algorithm the value that more than half of the trained configurations share, if any."""
    trained = [one for one in settings if one.get(ALGORITHM) != UNTRAINED]
    usual = {}
    for name in (name for name in (trained[0] if trained else ()) if name != ALGORITHM):
        values = [one[name] for one in trained]
        value = max(values, key=values.count)
        if 2 * values.count(value) > len(values):
            usual[name] = value
    return usual


def setting_text(parameter: str, value: Any) -> str:
    return _SHORT.get(parameter, f"{parameter} = {{}}").format(value)


def _labels(algorithms: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    usual, labels = usual_settings(settings), []
    for algorithm, values in zip(algorithms, settings):
        silent = {ALGORITHM} | ({WEIGHT, "max_iterations"} if algorithm == UNTRAINED else set())
        unusual = [name for name, value in values.items() if name not in silent and (name, value) not in usual.items()]
        labels.append(", ".join([algorithm, *(setting_text(name, values[name]) for name in unusual)]))
    if len(set(labels)) < len(labels):
        raise ComparisonError(f"expected one loss of each name, given different ones: {', '.join(labels)}")
    return labels
