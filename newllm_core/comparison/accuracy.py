"""Variants compared: accuracies with 95 % intervals, and paired differences to a reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from newllm_core.comparison.groups import ComparisonError
from newllm_core.intervals import Interval, SeedMean, over_seeds
from newllm_core.vision.variant_series import VariantRuns

PARTS = ("selection", "test")


@dataclass(frozen=True)
class AccuracyDifference:
    """``value`` in points (of %). ``interval``: 95 %; over seeds, or for a single seed over images alone."""

    value: float
    interval: Interval

    @property
    def is_distinguishable(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0


def _figures(record: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    if part not in PARTS:
        raise ComparisonError(f"expected part 'selection' or 'test', given {part!r}")
    if record[part] is None:
        raise ComparisonError(f"expected runs that have read their {part} images, given one that has not")
    figures: Mapping[str, Any] = record[part]
    return figures


def mean_accuracy(runs: VariantRuns, part: str) -> SeedMean:
    """Accuracy in %, mean over seeds with its t-interval; of a single seed with Wilson's, over images."""
    figures = [_figures(record, part) for record in runs.records]
    if len(figures) == 1:
        low, high = figures[0]["accuracy_interval"]
        return SeedMean(100 * figures[0]["accuracy"], (100 * low, 100 * high))
    return over_seeds([100 * one["accuracy"] for one in figures], percent=True)


def accuracy_difference(runs: VariantRuns, reference: VariantRuns, part: str) -> AccuracyDifference:
    """``runs`` minus ``reference``, paired by seed.

    With a single seed the interval is Newcombe's (1998, method 10) for two independent shares of images: another seed
    may differ by more, and that both saw the same images is not used.

    Raises ComparisonError for different seeds, or figures that were not read.
    """
    seeds = [[record["seed"] for record in one.records] for one in (runs, reference)]
    if seeds[0] != seeds[1]:
        raise ComparisonError(f"expected the same seeds, given {seeds[0]} and {seeds[1]}")
    pairs = [(_figures(mine, part), _figures(other, part)) for mine, other in zip(runs.records, reference.records)]
    if runs.variant == reference.variant:
        return AccuracyDifference(0.0, (0.0, 0.0))
    differences = [100 * (mine["accuracy"] - other["accuracy"]) for mine, other in pairs]
    if len(pairs) == 1:
        return AccuracyDifference(differences[0], _newcombe(*pairs[0]))
    mean = over_seeds(differences)
    assert mean.value is not None and mean.interval is not None  # two seeds or more, none missing
    return AccuracyDifference(mean.value, mean.interval)


def _newcombe(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Interval:
    (low, high), (other_low, other_high) = mine["accuracy_interval"], other["accuracy_interval"]
    one, two = mine["accuracy"], other["accuracy"]
    return (
        100 * (one - two - math.hypot(one - low, other_high - two)),
        100 * (one - two + math.hypot(high - one, two - other_low)),
    )


def comparison_table(runs: Sequence[VariantRuns], reference: VariantRuns, part: str) -> pd.DataFrame:
    """A row a variant: accuracy and difference to ``reference`` in % with intervals, parameters, tokens, seconds."""
    return pd.DataFrame([_row(one, reference, part) for one in runs]).set_index(["group", "variant"])


def _row(runs: VariantRuns, reference: VariantRuns, part: str) -> dict[str, Any]:
    record, accuracy = runs.records[0], mean_accuracy(runs, part)
    difference = accuracy_difference(runs, reference, part)
    low, high = accuracy.interval or (None, None)
    return {
        "group": runs.variant.group,
        "variant": runs.variant.name,
        "accuracy %": accuracy.value,
        "low": low,
        "high": high,
        "difference": difference.value,
        "difference low": difference.interval[0],
        "difference high": difference.interval[1],
        "distinguishable": difference.is_distinguishable,
        "parameters": record["parameters"]["total"],
        "training images": record["data"]["train_images"],
        "seeds": len(runs.records),
        "seconds": sum(one["seconds"] for one in runs.records) / len(runs.records),
    }


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """The same as text, an interval beside each figure."""
    rows = {
        key: {
            "accuracy %": f"{row['accuracy %']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
            "difference": _difference_text(row),
            "parameters": f"{row['parameters']:,}",
            "training images": f"{row['training images']:,}",
            "seeds": str(row["seeds"]),
            "seconds": f"{row['seconds']:.0f}",
        }
        for key, row in table.iterrows()
    }
    shown = pd.DataFrame.from_dict(rows, orient="index")
    shown.index = pd.MultiIndex.from_tuples(list(rows), names=table.index.names)
    return shown


def _difference_text(row: "pd.Series[Any]") -> str:
    if row["difference low"] == row["difference high"] == 0:
        return "–"  # the reference itself
    verdict = "" if row["distinguishable"] else " (not distinguishable)"
    return f"{row['difference']:+.1f} [{row['difference low']:+.1f}, {row['difference high']:+.1f}]{verdict}"
