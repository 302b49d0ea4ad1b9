"""The reference results that notebook 7 opens with, from committed records: the longest run of each data set beside the
targets, and the NKAT term on against off."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from newllm_core.comparison.accuracy import accuracy_difference, percent_accuracy, variants_of
from newllm_core.report.reference import Reference
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.vision.experiment import score_cards
from newllm_core.vision.report.comparison import plot_variants
from newllm_core.vision.report.runs import plot_scores, target_name
from newllm_core.vision.report.score_table import card_lines
from newllm_core.vision.score import TARGET_ACCURACIES

Record = dict[str, Any]


def committed_runs() -> Iterator[Record]:
    """Those that have read their test images."""
    for path in sorted((REFERENCE_DIR / "nkat" / "runs").glob("*/run.json")):
        record = read_json(path)
        if record["test"] is not None:
            yield record


def longest_runs() -> dict[str, Record]:
    """By data set, the committed run that has seen most images; of those that saw as many, the one that was best on the
    selection images."""
    found: dict[str, Record] = {}
    for record in committed_runs():
        name = record["dataset"]
        if name not in found or _merits(record) > _merits(found[name]):
            found[name] = record
    return found


def term_runs(records: Iterable[Record]) -> list[list[Record]]:
    """Runs that differ in the NKAT term and the seed alone, where it was off, literal and a bias of keys; "off" first.

    Each record with its ``variant``, as ``comparison.accuracy`` wants it.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        model = record["config"]["model"]
        kind, strength = model["nkat"], model["nkat_strength"]
        name = kind if kind == "off" else f"{kind}, s = {strength:g}"
        variant = {"name": name, "label": name, "group": "NKAT term", "order": (kind != "off", kind, strength)}
        rest = {**record["config"], "model": {**model, "nkat": None, "nkat_strength": None}}
        rest["run"] = {**rest["run"], "seed": None}
        groups[json.dumps(rest, sort_keys=True)].append({**record, "variant": variant})
    kinds = {"off", "literal", "key_bias"}
    whole = [runs for runs in groups.values() if {one["config"]["model"]["nkat"] for one in runs} == kinds]
    return [sorted(runs, key=lambda one: (*one["variant"]["order"], one["seed"])) for runs in whole]


def _merits(record: Record) -> tuple[int, float]:
    return _epochs(record) * int(record["data"]["train_images"]), float(record["selection"]["accuracy"])


def _epochs(record: Record) -> int:
    return int(record["config"]["train"]["epochs"])


def data_sets() -> Reference:
    """Accuracies and scores of the longest runs beside the notes' targets."""
    records = longest_runs()
    lines = [_line(name, record) for name, record in records.items()]
    for score, card in score_cards(records, list(records)).items():
        lines += card_lines(score, card)
    return Reference(plot_scores(records, list(records)), lines)


def term(runs: list[Record]) -> Reference:
    """The term against "off" over seeds, of one of the ``term_runs``."""
    reference, *others = variants_of(runs)
    differences = {one.label: accuracy_difference(one, reference, "test") for one in others}
    lines = [f"{label} against off: {found.text('{:+.1f}')} points" for label, found in differences.items()]
    return Reference(plot_variants(runs, "test"), [f"{runs[0]['data']['title']}:", *lines])


def _line(name: str, record: Record) -> str:
    target = target_name(name)
    wanted = "" if target is None else f", target {TARGET_ACCURACIES[target]:.0%}"
    return (
        f"{record['data']['title']}, {record['data']['train_images']:,} images, {_epochs(record)} epochs: "
        f"test accuracy {percent_accuracy(record, 'test').text('{:.1f}')} %{wanted}"
    )


def show_reference() -> None:
    """Display the pictures, print the sentences."""
    data_sets().show()
    for runs in term_runs(committed_runs()):
        term(runs).show()
