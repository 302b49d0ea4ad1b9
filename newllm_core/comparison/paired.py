"""Configurations held against each other, from records alone: which differ by more than chance, what rank is worth.

Each interval stands alone: of twenty comparisons one misses its value by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from newllm_core import intervals
from newllm_core.comparison.figures import FIGURES, perplexity, perplexity_ratio, seed_mean
from newllm_core.comparison.groups import ComparisonError, Group, Record, groups_of, paired_runs, varying_parameters
from newllm_core.comparison.tables import Cell, table_of
from newllm_core.intervals import NOT_MEASURED, Estimate, seeds_text

_MIN_CORRELATED = 3  # two points always lie on a line
_PHASE2_FIGURES = ("accuracy %", "bits a byte")
_WITH_INTERVAL = ("ER %", "calibrated ER %", "PPL")


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a configuration: what varies, tokens, number of seeds, means of FIGURES, perplexity when there is one.

    95 % intervals in the columns "… low" and "… high". Raises ComparisonError as ``groups_of``.
    """
    return table_of([_row(group) for group in groups_of(records)], "configuration")


def _row(group: Group) -> dict[str, Cell]:
    means = {name: seed_mean(group, name) for name in FIGURES if group.has_phase2 or name not in _PHASE2_FIGURES}
    if group.has_phase2:
        means["PPL"] = perplexity(group)
    figures = {name: mean if name in _WITH_INTERVAL else mean and mean.value for name, mean in means.items()}
    shape = {"tokens": group.train_tokens, "seeds": len(group.records)}
    return {"configuration": group.label, **group.settings, **shape, **figures}


def paired_difference(group_a: Group, group_b: Group, figure: str = "calibrated ER %") -> Estimate | None:
    """One of FIGURES of a minus that of b, paired by seed; None where a run lacks the figure.

    Raises ComparisonError without a common seed.
    """
    runs_a, runs_b = paired_runs(group_a, group_b)
    of_a, of_b = ([FIGURES[figure](run) for run in runs] for runs in (runs_a, runs_b))
    if None in of_a or None in of_b:
        return None
    return intervals.paired_difference(of_a, of_b)  # type: ignore[arg-type]  # no None is left


def comparison_lines(records: Sequence[Record], baseline_label: str) -> list[str]:
    """Every other configuration against one, a line each. Raises ComparisonError for a label that is not there."""
    groups = {group.label: group for group in groups_of(records)}
    if baseline_label not in groups:
        raise ComparisonError(f"baseline: expected one of {', '.join(groups)}, given {baseline_label!r}")
    baseline = groups.pop(baseline_label)
    return [_comparison_line(group, baseline) for group in groups.values()]


def _comparison_line(group: Group, baseline: Group) -> str:
    rank = paired_difference(group, baseline)
    points = NOT_MEASURED
    if rank is not None:
        points = f"{rank.text('{:+.2f}')} points (% of C), {seeds_text(rank)}: {rank.verdict}"
    line = f"{group.label} against {baseline.label}: calibrated ER {points}"
    if not group.has_phase2:
        return line
    ratio = perplexity_ratio(group, baseline)
    return f"{line}; PPL × {ratio.text()}, {seeds_text(ratio)}: {ratio.verdict}"


@dataclass(frozen=True)
class RankCorrelation:
    """Pearson's r of validation ER (% of C) and log PPL over configurations, each the mean over its seeds.

    Attributes:
        r: None for fewer than 3 configurations, and where one of the two is the same in all; its interval is None for
            fewer than 4.
        varied: what the configurations differ in: an r over different widths says little about the loss.
    """

    r: Estimate | None
    groups: tuple[Group, ...]
    varied: tuple[str, ...]

    def __str__(self) -> str:
        over = (
            f"{len(self.groups)} configurations of {self.groups[0].train_tokens:,} training tokens "
            f"that differ in {', '.join(self.varied) or 'nothing'}"
        )
        figures = NOT_MEASURED if self.r is None else f"{self.r.text('{:+.3f}')}, {self.r.verdict} from 0"
        return f"correlation of ER and log PPL {figures}: {over}"


def rank_perplexity_correlation(records: Sequence[Record]) -> RankCorrelation:
    """Within the most configurations that share corpus, embeddings and tokens, since these move PPL by themselves.

    Raises ComparisonError as ``groups_of``, and without Phase 2.
    """
    alike: dict[str, list[Group]] = {}
    for group in groups_of(records):
        one = group.records[0]
        alike.setdefault(str([one["corpus"], one["embeddings"], one["tokens"]]), []).append(group)
    groups = max(alike.values(), key=len)
    varied = varying_parameters([record for group in groups for record in group.records])
    ranks = [mean.value for mean in (seed_mean(group, "ER %") for group in groups) if mean is not None]
    losses = [float(np.log(perplexity(group).value)) for group in groups]
    constant = len(set(ranks)) == 1 or len(set(losses)) == 1
    known = len(ranks) == len(groups) >= _MIN_CORRELATED and not constant
    return RankCorrelation(intervals.correlation(ranks, losses) if known else None, tuple(groups), varied)
