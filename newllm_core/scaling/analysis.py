"""From the records of a list of experiments to everything that is said about its scaling.

Records of one configuration at several sizes and seeds become one point per size; the progression of α, its
intervals, the floored law and the extrapolation are computed from these points alone, so that a table or a picture can
be made again without training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from newllm_core.comparison.figures import FIGURES, perplexity, validation_losses
from newllm_core.comparison.groups import Group, Record, families_along, groups_of, varying_parameters
from newllm_core.intervals import Interval, clustered_mean, interval_text
from newllm_core.scaling.bootstrap import BootstrapInterval, ScalingPoint, bootstrap_alpha
from newllm_core.scaling.floor import FLOOR_PARAMETERS, FloorBootstrap, bootstrap_floor_law
from newllm_core.scaling.law import (
    Extrapolation,
    PowerLawFit,
    ScalingError,
    checked_values,
    extrapolate,
    fit_power_law,
    mean_over_seeds,
    sliding_windows,
)
from newllm_core.scaling.progression import AlphaProgression, alpha_progression, progression_record, progression_table

HELD_OUT = 2  # sizes that the extrapolation predicts


@dataclass(frozen=True)
class Size:
    """The runs of one number of samples; one value per seed. Ranks are shares of C, 0 … 1."""

    samples: int
    tokens: int
    seeds: tuple[int, ...]
    perplexity: tuple[float, ...]
    accuracy: tuple[float, ...]
    rank: tuple[float, ...]
    calibrated_rank: tuple[float, ...]
    perplexity_interval: Interval | None  # 95 %, over seeds and validation conversations (``clustered_mean``)


@dataclass(frozen=True)
class ScalingAnalysis:
    """One configuration over all its sizes, smallest first."""

    sizes: tuple[Size, ...]
    progression: AlphaProgression
    bootstraps: tuple[BootstrapInterval, ...]  # per window
    floor: FloorBootstrap | None  # None for fewer sizes than the law has parameters
    extrapolation: Extrapolation | None  # None when fewer than two sizes would be left to fit
    source: str  # corpus, embeddings, width, algorithm: what every picture says below its title


def analyse(records: Sequence[Record], window_size: int, num_resamples: int) -> ScalingAnalysis:
    """All figures of one configuration's records, in any order.

    Raises ComparisonError as ``groups_of`` and without Phase 2, ScalingError for records that differ in more than
    samples and seed, a perplexity not above 1, other seeds at other sizes, and fewer sizes than ``window_size``.
    """
    groups = _by_size(records)
    points = [scaling_point(group.train_tokens, group.records) for group in groups]
    sizes = tuple(_size(group, point) for group, point in zip(groups, points))
    tokens, perplexity = [size.tokens for size in sizes], [size.perplexity for size in sizes]
    progression = alpha_progression(tokens, [size.samples for size in sizes], perplexity, window_size)
    means = [mean_over_seeds(values) for values in perplexity]
    windows = sliding_windows(points, window_size)
    return ScalingAnalysis(
        sizes=sizes,
        progression=progression,
        bootstraps=tuple(bootstrap_alpha(window, num_resamples) for window in windows),
        floor=bootstrap_floor_law(points, num_resamples) if len(points) >= FLOOR_PARAMETERS else None,
        extrapolation=extrapolate(tokens, means, HELD_OUT) if len(points) >= HELD_OUT + 2 else None,
        source=source_of(records[0]),
    )


def source_of(record: Record) -> str:
    """Corpus, embeddings, width, objective, validation tokens."""
    config = record["config"]
    phase1 = config["phase1"]
    return (
        f"{record['corpus']}, {record['embeddings']}, C = {config['model']['context_dim']}, "
        f"{phase1['diversity_algorithm']}, w = {phase1['dist_reg_weight']:g}, "
        f"{record['tokens']['validation']:,} validation tokens"
    )


def _by_size(records: Sequence[Record]) -> list[Group]:
    """Smallest size first, the runs of each by seed."""
    groups = groups_of(sorted(records, key=lambda record: (_samples(record), record["seed"])))
    others = [name for name in varying_parameters(records) if name != "num_samples"]
    if others:
        raise ScalingError(f"one law is fitted to one configuration, but these differ in {', '.join(others)}")
    seeds = {_samples(group.records[0]): group.seeds for group in groups}
    if len(set(seeds.values())) > 1:
        raise ScalingError(f"every size must have the same seeds, given {seeds}")
    return groups


def _samples(record: Record) -> int:
    return int(record["config"]["data"]["num_samples"])


def _best(group: Group, name: str) -> tuple[float, ...]:
    """Of each seed."""
    return tuple(float(record["phase2"]["best"][name]) for record in group.records)


def scaling_point(train_tokens: int, records: Sequence[Record]) -> ScalingPoint:
    """One size, of its runs or rows, a record a seed. Raises ComparisonError for different validation text."""
    sums, counts = validation_losses(records)
    # A first conversation of one token has nothing that is predicted, and so nothing to say.
    said = counts > 0
    return ScalingPoint(float(train_tokens), sums[:, said], counts[said])


def _size(group: Group, point: ScalingPoint) -> Size:
    ranks = [record["phase1"]["effective_rank"] for record in group.records]
    calibrated = [FIGURES["calibrated ER %"](record) for record in group.records]
    perplexities = checked_values(_best(group, "validation_perplexity"), "validation_perplexity", above=1.0)
    if None in calibrated:
        raise ScalingError("the calibrated effective rank of a record is undefined")
    return Size(
        samples=_samples(group.records[0]),
        tokens=group.train_tokens,
        seeds=group.seeds,
        perplexity=tuple(perplexities.tolist()),
        accuracy=_best(group, "validation_accuracy"),
        rank=tuple(rank["validation"] / rank["context_dim"] for rank in ranks),
        calibrated_rank=tuple(percent / 100 for percent in calibrated if percent is not None),
        perplexity_interval=clustered_mean(point.loss_sums, point.token_counts).exp().interval,
    )


def analysis_record(analysis: ScalingAnalysis) -> dict[str, Any]:
    """What ``alpha_progression.json`` holds: the progression, and beside it everything else, missing figures null."""
    optional = {"floor": analysis.floor, "extrapolation": analysis.extrapolation}
    return {
        "source": analysis.source,
        "sizes": [dataclasses.asdict(size) for size in analysis.sizes],
        "progression": progression_record(analysis.progression),
        "bootstrap": [dataclasses.asdict(one) for one in analysis.bootstraps],
        **{name: None if value is None else dataclasses.asdict(value) for name, value in optional.items()},
    }


def size_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """One row per size: perplexity with its interval, accuracy and effective ranks in percent, means over seeds."""
    rows = [
        {
            "samples": size.samples,
            "tokens": size.tokens,
            "runs": len(size.seeds),
            "PPL": round(mean_over_seeds(size.perplexity), 1),
            "95 % interval": interval_text(size.perplexity_interval, "{:.1f}"),
            "accuracy %": round(100 * float(np.mean(size.accuracy)), 2),
            "ER %": round(100 * float(np.mean(size.rank)), 1),
            "calibrated ER %": round(100 * float(np.mean(size.calibrated_rank)), 1),
        }
        for size in analysis.sizes
    ]
    return pd.DataFrame(rows).set_index("samples")


def analysis_text(analysis: ScalingAnalysis) -> str:
    """The table of the progression, then a line per further figure."""
    seeds = ", ".join(map(str, analysis.sizes[0].seeds))
    lines = [f"{analysis.source}; seeds {seeds}", "", progression_table(analysis.progression), ""]
    for row, bootstrap in zip(analysis.progression.rows, analysis.bootstraps, strict=True):
        lines.append(
            f"window {row.window}: α {row.alpha:.3f}, t-interval {interval_text(row.alpha_interval)}, bootstrap over "
            f"{', '.join(bootstrap.levels)} {interval_text(bootstrap.alpha_interval)} "
            f"({bootstrap.num_used:,} of {bootstrap.num_resamples:,} resamples used)"
        )
    lines += _extrapolation_lines(analysis.extrapolation)
    lines.append("floored law: fewer than three sizes" if analysis.floor is None else analysis.floor.statement)
    return "\n".join(lines)


def _extrapolation_lines(extrapolation: Extrapolation | None) -> list[str]:
    if extrapolation is None:
        return [f"extrapolation: needs {HELD_OUT + 2} sizes or more"]
    return [
        f"extrapolation to {point.tokens:,.0f} tokens from the {extrapolation.fit.num_points} smaller sizes: PPL "
        f"{point.predicted_perplexity:.1f} {interval_text(point.prediction_interval, '{:.1f}')}, measured "
        f"{point.perplexity:.1f} (error {point.error_percent:+.1f} %)"
        for point in extrapolation.points
    ]


def alpha_by_algorithm(records: Sequence[Record]) -> dict[str, PowerLawFit]:
    """``PPL = A · tokens^α`` of each configuration with two sizes or more, by label; the others are left out."""
    return {
        label: fit_power_law([group.train_tokens for group in groups], [perplexity(group).value for group in groups])
        for label, groups in families_along(records, "num_samples").items()
    }
