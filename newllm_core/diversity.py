"""Configurations side by side, from records alone: which differ by more than chance, and what their rank is worth.

Runs that differ in their seed alone are one configuration. A run's figures scatter with its seed, its perplexity with
the validation conversations too, and an interval of perplexity holds both: Student's t on a clustered standard error.
Not the percentile bootstrap over both: with three seeds that covers 75 % instead of 95 % where seeds scatter most, this
one 93 % (`tests/test_diversity.py`). Each interval stands alone: of twenty comparisons one misses its value by chance.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from newllm_core.config import parameter_fields
from newllm_core.losses import diversity_loss
from newllm_core.runs import derived_generator
from newllm_core.scaling import (
    CONFIDENCE,
    NOT_DISTINGUISHABLE,
    Floats,
    Interval,
    PowerLawFit,
    fit_power_law,
    interval_text,
)

Record = dict[str, Any]
ALGORITHM, WEIGHT, UNTRAINED = "diversity_algorithm", "dist_reg_weight", "untrained"
_SHORT = {ALGORITHM: "{}", WEIGHT: "w = {:g}", "context_dim": "C = {}", "num_samples": "{} samples"}
_MIN_CORRELATED, _MIN_FISHER = 3, 4  # two points always lie on a line; Fisher's z has variance 1 / (n - 3)


class ComparisonError(ValueError):
    """Records that cannot be compared; the message says what was expected and what was given."""


# Configurations


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, one a seed.

    Attributes:
        label: its algorithm, and its other settings where they are not the usual ones (``usual_settings``).
        settings: of every parameter that varies among the compared records.
    """

    label: str
    settings: dict[str, Any]
    records: tuple[Record, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record["seed"] for record in self.records)

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
    return [Group(label, values, tuple(members)) for label, values, members in zip(labels, settings, runs.values())]


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
    names = (name for name in parameter_fields() if name not in ("seed", *without))
    return json.dumps([[_setting(record, name) for name in names], record["config"].get("user_loss")])


def _setting(record: Record, parameter: str) -> Any:
    if parameter in (ALGORITHM, WEIGHT) and not record["config"]["phase1"]["max_iterations"]:
        return UNTRAINED if parameter == ALGORITHM else None  # no loss has seen this block
    section, name = parameter_fields()[parameter]
    return record["config"].get(section, {}).get(name)


def varying_parameters(records: Sequence[Record]) -> tuple[str, ...]:
    """Notebook names of the parameters whose values differ between records; the algorithm first, never the seed."""
    names = (ALGORITHM, *(name for name in parameter_fields() if name not in (ALGORITHM, "seed")))
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


# Figures of a configuration


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds; the 95 % interval is None for a single seed. Both None where a run lacks the figure."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Perplexity:
    """Of a configuration on the validation text, with the 95 % interval of ``clustered_mean``."""

    value: float
    interval: Interval | None


def over_seeds(values: Sequence[float | None], percent: bool = False) -> SeedMean:
    """Mean and t-interval of one figure of several seeds; ``percent``: the interval ends at 0 and 100."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return SeedMean(None, None)
    centre = float(np.mean(known))
    if len(known) < 2:
        return SeedMean(centre, None)
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(known) - 1) * stats.sem(known))
    low, high = centre - margin, centre + margin
    return SeedMean(centre, (max(low, 0.0), min(high, 100.0)) if percent else (low, high))


def clustered_mean(sums: Floats, counts: Floats) -> tuple[float, Interval | None]:
    """Mean over seeds of nats a token, and its 95 % interval over seeds and conversations.

    ``sums`` `[num_seeds, num_conversations]`, nats; ``counts`` `[num_conversations]`, tokens. Variance: between seeds,
    and of the ratio between conversations (linearised); degrees of freedom by Satterthwaite 1946. A single seed leaves
    the conversations alone, and the other way round; a single one of both has no interval.
    """
    totals, num_tokens = sums.sum(axis=1) / counts.sum(), counts.sum()
    mean, parts = float(totals.mean()), []
    num_seeds, num_conversations = sums.shape
    if num_seeds > 1:
        parts.append((float(totals.var(ddof=1)) / num_seeds, num_seeds - 1))
    if num_conversations > 1:
        rest = (sums.mean(axis=0) - mean * counts) / num_tokens
        parts.append((float(rest @ rest) * num_conversations / (num_conversations - 1), num_conversations - 1))
    variance = sum(part for part, _ in parts)
    if not parts or variance == 0:
        return mean, (mean, mean) if parts else None
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * math.sqrt(variance)
    return mean, (mean - margin, mean + margin)


def _phase2(record: Record) -> Any:
    if "phase2" not in record:
        raise ComparisonError("expected records of both phases, given Phase 1 alone")
    return record["phase2"]


def _losses(records: Sequence[Record]) -> tuple[Floats, Floats]:
    parts = [_phase2(record)["validation_conversations"] for record in records]
    if any(part["tokens"] != parts[0]["tokens"] for part in parts):
        raise ComparisonError("perplexity: expected runs judged on the same conversations, given different ones")
    return np.array([part["nats"] for part in parts], np.float64), np.array(parts[0]["tokens"], np.float64)


def _exp(interval: Interval | None) -> Interval | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _measure(name: str) -> Callable[[Record], float | None]:
    """An uncentred measure of the validation contexts, % of C."""

    def share(record: Record) -> float | None:
        measures = record["phase1"]["spectrum"]["measures"]
        (value,) = (one["value"] for one in measures if one["name"] == name and not one["centred"])
        return None if value is None else 100 * value / record["phase1"]["effective_rank"]["context_dim"]

    return share


def _rank_share(record: Record) -> float:
    rank = record["phase1"]["effective_rank"]
    return float(100 * rank["validation"] / rank["context_dim"])


def _converged_share(record: Record) -> float | None:
    rate = record["phase1"]["convergence"]["train"]
    return None if rate is None else 100 * rate


# Ranks are of the validation contexts, uncentred, % of C; convergence of the training tokens; contraction in nats a
# token. The last two are of Phase 2's best epoch.
FIGURES: dict[str, Callable[[Record], float | None]] = {
    "ER %": _rank_share,
    "calibrated ER %": _measure("calibrated_effective_rank"),
    "participation ratio %": _measure("participation_ratio"),
    "converged %": _converged_share,
    "contraction rate": lambda record: record["phase1"]["contraction_rate"],
    "iterations kept": lambda record: record["phase1"]["best_iteration"],
    "Phase 1 s": lambda record: record["phase1"]["seconds"],
    "accuracy %": lambda record: 100 * _phase2(record)["best"]["validation_accuracy"],
    "bits a byte": lambda record: _phase2(record)["best"]["validation_bits_per_byte"],
}


def seed_mean(group: Group, figure: str) -> SeedMean:
    """Of one of FIGURES. Raises ComparisonError for a figure of Phase 2 without Phase 2."""
    return over_seeds([FIGURES[figure](record) for record in group.records], percent=figure.endswith("%"))


def perplexity(group: Group) -> Perplexity:
    """Geometric mean over seeds. Raises ComparisonError without Phase 2, and for different validation conversations."""
    loss, interval = clustered_mean(*_losses(group.records))
    return Perplexity(math.exp(loss), _exp(interval))


# Table


_PHASE2_FIGURES = ("accuracy %", "bits a byte")
_WITH_INTERVAL = ("ER %", "calibrated ER %", "PPL")
_FORMATS = {"contraction rate": "{:+.4f}", "bits a byte": "{:.3f}"}


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a configuration: what varies, tokens, number of seeds, means of FIGURES, perplexity when there is one.

    95 % intervals in the columns "… low" and "… high"; NaN where undefined. Raises ComparisonError as ``groups_of``.
    """
    groups = groups_of(records)
    index = pd.Index([group.label for group in groups], name="configuration")
    return pd.DataFrame([_row(group) for group in groups], index=index)


def _row(group: Group) -> dict[str, Any]:
    means: dict[str, SeedMean | Perplexity] = {
        name: seed_mean(group, name) for name in FIGURES if group.has_phase2 or name not in _PHASE2_FIGURES
    }
    if group.has_phase2:
        means["PPL"] = perplexity(group)
    row = {**group.settings, "tokens": group.train_tokens, "seeds": len(group.records)}
    for name, mean in means.items():
        row[name] = math.nan if mean.value is None else mean.value
        if name in _WITH_INTERVAL:
            row[f"{name} low"], row[f"{name} high"] = mean.interval or (math.nan, math.nan)
    return row


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """``comparison_table`` as text: "value [low, high]", "–" where undefined."""
    text = pd.DataFrame(index=table.index)
    for name in (name for name in table if not name.endswith((" low", " high"))):
        bounds = [table[f"{name} low"], table[f"{name} high"]] if name in _WITH_INTERVAL else []
        text[name] = [_cell(name, *values) for values in zip(table[name], *bounds)]
    return text


def _cell(name: str, value: Any, *interval: float) -> str:
    if pd.isna(value):
        return "–"
    pattern = _FORMATS.get(name, "{:,.1f}" if name in FIGURES or name == "PPL" else "{}")
    bounds = "" if not interval or pd.isna(interval[0]) else f" [{', '.join(map(pattern.format, interval))}]"
    return pattern.format(value) + bounds


# Two configurations


@dataclass(frozen=True)
class PairedDifference:
    """A ratio of perplexities or a difference of percentages, over the seeds that both configurations have."""

    value: float
    interval: Interval | None  # 95 %
    no_difference: float
    num_seeds: int

    @property
    def distinguishable(self) -> bool:
        return self.interval is not None and not self.interval[0] <= self.no_difference <= self.interval[1]

    def __str__(self) -> str:
        verdict = "distinguishable" if self.distinguishable else NOT_DISTINGUISHABLE
        alone = " for this seed alone" if self.distinguishable and self.num_seeds == 1 else ""
        return f"{interval_text(self.interval)}: {verdict}{alone}"


def _paired(group_a: Group, group_b: Group) -> tuple[list[Record], list[Record]]:
    by_seed_a, by_seed_b = ({record["seed"]: record for record in group.records} for group in (group_a, group_b))
    seeds = [seed for seed in by_seed_a if seed in by_seed_b]
    if not seeds:
        raise ComparisonError(
            f"expected a seed that both have, given {group_a.seeds} of {group_a.label} and "
            f"{group_b.seeds} of {group_b.label}"
        )
    return [by_seed_a[seed] for seed in seeds], [by_seed_b[seed] for seed in seeds]


def paired_perplexity_difference(group_a: Group, group_b: Group) -> PairedDifference:
    """PPL of a over PPL of b, paired by seed and conversation; the interval is ``clustered_mean``'s of log PPL.

    Raises ComparisonError without a common seed, without Phase 2, and for different validation conversations.
    """
    runs_a, runs_b = _paired(group_a, group_b)
    sums, counts = _losses([*runs_a, *runs_b])
    difference, interval = clustered_mean(sums[: len(runs_a)] - sums[len(runs_a) :], counts)
    return PairedDifference(math.exp(difference), _exp(interval), 1.0, len(runs_a))


def paired_difference(group_a: Group, group_b: Group, figure: str = "calibrated ER %") -> PairedDifference:
    """One of FIGURES of a minus that of b, paired by seed, with a t-interval over seeds.

    Raises ComparisonError without a common seed, and where a run lacks the figure.
    """
    runs_a, runs_b = _paired(group_a, group_b)
    pairs = [(FIGURES[figure](run_a), FIGURES[figure](run_b)) for run_a, run_b in zip(runs_a, runs_b)]
    mean = over_seeds([None if of_a is None or of_b is None else of_a - of_b for of_a, of_b in pairs])
    if mean.value is None:
        raise ComparisonError(f"{figure}: expected a value of every run, given {pairs}")
    return PairedDifference(mean.value, mean.interval, 0.0, len(runs_a))


def comparison_lines(records: Sequence[Record], baseline_label: str) -> list[str]:
    """Every other configuration against one, a line each. Raises ComparisonError for a label that is not there."""
    groups = {group.label: group for group in groups_of(records)}
    if baseline_label not in groups:
        raise ComparisonError(f"baseline: expected one of {', '.join(groups)}, given {baseline_label!r}")
    baseline = groups.pop(baseline_label)
    return [_comparison_line(group, baseline) for group in groups.values()]


def _comparison_line(group: Group, baseline: Group) -> str:
    rank = paired_difference(group, baseline)
    seeds = "1 seed" if rank.num_seeds == 1 else f"{rank.num_seeds} seeds"
    line = f"{group.label} against {baseline.label}, {seeds}: calibrated ER {rank.value:+.2f} points (% of C) {rank}"
    if not group.has_phase2:
        return line
    ratio = paired_perplexity_difference(group, baseline)
    return f"{line}; PPL × {ratio.value:.3f} {ratio}"


# Rank and perplexity, cost, α


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of validation ER (% of C) and log PPL over configurations, each the mean over its seeds.

    Attributes:
        value: None for fewer than 3 configurations, and where one of the two is the same in all.
        interval: 95 %, Fisher's z; None for fewer than 4 configurations.
        varied: what the configurations differ in: an r over different widths says little about the loss.
    """

    value: float | None
    interval: Interval | None
    groups: tuple[Group, ...]
    varied: tuple[str, ...]

    def __str__(self) -> str:
        over = (
            f"{len(self.groups)} configurations of {self.groups[0].train_tokens:,} training tokens "
            f"that differ in {', '.join(self.varied) or 'nothing'}"
        )
        if self.value is None:
            return f"correlation of ER and log PPL undefined: {over}"
        verdict = "no interval for fewer than 4"
        if self.interval is not None:
            verdict = f"the interval {'contains' if self.interval[0] <= 0 <= self.interval[1] else 'excludes'} zero"
        return f"correlation of ER and log PPL {self.value:+.2f} {interval_text(self.interval)}, {over}: {verdict}"


def rank_perplexity_correlation(records: Sequence[Record]) -> Correlation:
    """Within the most configurations that share corpus, embeddings and tokens, since these move PPL by themselves.

    Raises ComparisonError as ``groups_of``, and without Phase 2.
    """
    alike: dict[str, list[Group]] = {}
    for group in groups_of(records):
        one = group.records[0]
        alike.setdefault(str([one["corpus"], one["embeddings"], one["tokens"]]), []).append(group)
    groups = max(alike.values(), key=len)
    varied = varying_parameters([record for group in groups for record in group.records])
    shares, losses = [seed_mean(group, "ER %").value for group in groups], [perplexity(group).value for group in groups]
    if len(groups) < _MIN_CORRELATED or len(set(shares)) == 1 or len(set(losses)) == 1:
        return Correlation(None, None, tuple(groups), varied)
    pearson, interval = stats.pearsonr(shares, np.log(losses)), None
    if len(groups) >= _MIN_FISHER:
        low, high = pearson.confidence_interval(CONFIDENCE)
        interval = float(low), float(high)
    return Correlation(float(pearson.statistic), interval, tuple(groups), varied)


@dataclass(frozen=True)
class LossCost:
    """Milliseconds of one forward and backward pass: median and quartiles of the repetitions."""

    name: str
    forward_backward_ms: float
    low: float
    high: float


def loss_cost(
    names: Sequence[str], num_tokens: int, context_dim: int, repetitions: int, device: str = "cpu"
) -> list[LossCost]:
    """Time diversity losses on a random matrix `[num_tokens, context_dim]`, in turns, on the threads torch has now.

    Raises ValueError for an unknown loss and for fewer than 1 repetition.
    """
    if repetitions < 1:
        raise ValueError(f"loss_cost: expected at least 1 repetition, given {repetitions}")
    losses = {name: diversity_loss(name) for name in names}
    generator = derived_generator("loss cost", 0)
    contexts = torch.randn(num_tokens, context_dim, generator=generator).to(device).requires_grad_()

    def milliseconds(name: str) -> float:
        began = time.perf_counter()
        torch.autograd.grad(losses[name](contexts), contexts)
        if contexts.is_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)

    # Round 0 pays for memory and kernels. In turns, so that a slow minute of the machine hits all of them.
    rounds = [[milliseconds(name) for name in losses] for _ in range(repetitions + 1)][1:]
    quartiles = np.quantile(rounds, [0.25, 0.5, 0.75], axis=0).T
    return [LossCost(name, float(mid), float(low), float(high)) for name, (low, mid, high) in zip(losses, quartiles)]


def alpha_by_algorithm(records: Sequence[Record]) -> dict[str, PowerLawFit]:
    """``PPL = A · tokens^α`` of each configuration with two sizes or more, by label; the others are left out."""
    return {
        label: fit_power_law([group.train_tokens for group in groups], [perplexity(group).value for group in groups])
        for label, groups in families_along(records, "num_samples").items()
    }
