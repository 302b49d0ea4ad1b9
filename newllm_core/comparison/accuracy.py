"""Variants of an image classifier, from their records alone: accuracies, and paired differences to a reference.

A record says itself which variant it is: ``record["variant"]`` holds name, label and group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from newllm_core.comparison.groups import ComparisonError, Record, Runs, paired_runs
from newllm_core.comparison.tables import VERDICT, Cell, table_of
from newllm_core.intervals import Estimate, newcombe_difference, over_seeds, paired_difference

PARTS = ("selection", "test")


@dataclass(frozen=True)
class VariantRuns(Runs):
    """Of one variant; those of one group stand together."""

    group: str


def variants_of(records: Sequence[Record]) -> list[VariantRuns]:
    """Records by variant, in order of first appearance. Raises ComparisonError for none."""
    if not records:
        raise ComparisonError("expected at least one record, given none")
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record["variant"]["name"], []).append(record)
    variants = [(members[0]["variant"], tuple(members)) for members in runs.values()]
    return [VariantRuns(variant["label"], members, variant["group"]) for variant, members in variants]


def percent_accuracy(record: Record, part: str) -> Estimate:
    """Accuracy of one run in %, with Wilson's interval over images."""
    if part not in PARTS:
        raise ComparisonError(f"expected part 'selection' or 'test', given {part!r}")
    if record[part] is None:
        raise ComparisonError(f"expected runs that have read their {part} images, given one that has not")
    value, (low, high) = record[part]["accuracy"], record[part]["accuracy_interval"]
    return Estimate(100 * value, (100 * low, 100 * high), (100 * value,))


def mean_accuracy(runs: VariantRuns, part: str) -> Estimate:
    """Accuracy in %, mean over seeds with its t-interval; of a single seed with Wilson's, over images."""
    figures = [percent_accuracy(record, part) for record in runs.records]
    return figures[0] if len(figures) == 1 else over_seeds([one.value for one in figures], percent=True)


def accuracy_difference(runs: VariantRuns, reference: VariantRuns, part: str) -> Estimate:
    """``runs`` minus ``reference`` in points (of %), paired by seed.

    With a single seed the interval is Newcombe's for two independent shares of images: another seed may differ by more,
    and that both saw the same images is not used.

    Raises ComparisonError without a common seed, and for figures that were not read.
    """
    pairs = paired_runs(runs, reference)
    mine, others = ([percent_accuracy(record, part) for record in records] for records in pairs)
    if len(mine) == 1:
        return newcombe_difference(mine[0], others[0])
    return paired_difference([one.value for one in mine], [one.value for one in others])


def accuracy_table(records: Sequence[Record], part: str) -> pd.DataFrame:
    """A row a variant: accuracy and difference to the first in %, parameters, images, seeds, seconds of a run."""
    reference, *others = variants_of(records)
    rows = [
        _row(reference, None, part),
        *(_row(one, accuracy_difference(one, reference, part), part) for one in others),
    ]
    return table_of(rows, ["group", "variant"])


def _row(runs: VariantRuns, difference: Estimate | None, part: str) -> dict[str, Cell]:
    first = runs.records[0]
    return {
        "group": runs.group,
        "variant": runs.label,
        "accuracy %": mean_accuracy(runs, part),
        "difference": difference,
        VERDICT: difference and difference.verdict,
        "parameters": first["parameters"]["total"],
        "training images": first["data"]["train_images"],
        "seeds": len(runs.records),
        "seconds": sum(one["seconds"] for one in runs.records) / len(runs.records),
    }
