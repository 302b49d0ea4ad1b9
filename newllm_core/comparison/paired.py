"""Configurations side by side, from records alone: which differ by more than chance, and what their rank is worth.

Each interval stands alone: of twenty comparisons one misses its value by chance.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from newllm_core.comparison.figures import FIGURES, Perplexity, perplexity, seed_mean, validation_losses
from newllm_core.comparison.groups import ComparisonError, Group, Record, groups_of, varying_parameters
from newllm_core.intervals import (
    CONFIDENCE,
    NOT_DISTINGUISHABLE,
    Interval,
    SeedMean,
    clustered_mean,
    exp_interval,
    interval_text,
    over_seeds,
)
from newllm_core.losses import diversity_loss
from newllm_core.runs.reproducibility import derived_generator

_MIN_CORRELATED, _MIN_FISHER = 3, 4  # two points always lie on a line; Fisher's z has variance 1 / (n - 3)


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
    sums, counts = validation_losses([*runs_a, *runs_b])
    difference, interval = clustered_mean(sums[: len(runs_a)] - sums[len(runs_a) :], counts)
    return PairedDifference(math.exp(difference), exp_interval(interval), 1.0, len(runs_a))


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
