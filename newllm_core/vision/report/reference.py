"""The reference result that notebook 7 opens with: the longest committed run of each data set, from records."""

from typing import Any

from newllm_core.comparison.accuracy import percent_accuracy
from newllm_core.report.reference import Reference
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.vision.experiment import score_cards
from newllm_core.vision.report.runs import plot_scores, target_name
from newllm_core.vision.score import TARGET_ACCURACIES, TARGET_GLOBAL

Record = dict[str, Any]


def longest_runs() -> dict[str, Record]:
    """By data set, the committed run that has seen most images, of those that have read their test images."""
    found: dict[str, Record] = {}
    for path in sorted((REFERENCE_DIR / "nkat" / "runs").glob("*/run.json")):
        record = read_json(path)
        name = record["dataset"]
        if record["test"] is not None and (name not in found or _images_seen(record) > _images_seen(found[name])):
            found[name] = record
    return found


def _images_seen(record: Record) -> int:
    return _epochs(record) * int(record["data"]["train_images"])


def _epochs(record: Record) -> int:
    return int(record["config"]["train"]["epochs"])


def data_sets() -> Reference:
    """Accuracies and scores of the longest runs beside the notes' targets."""
    records = longest_runs()
    lines = [_line(name, record) for name, record in records.items()]
    card = score_cards(records, list(records))["tpe_scalar"]
    reached, most = card.global_score, card.global_maximum
    lines.append(f"Global score over these {len(records)}: {reached:.3f} (target {TARGET_GLOBAL}), at most {most:.3f}.")
    return Reference(plot_scores(records, list(records)), lines)


def _line(name: str, record: Record) -> str:
    target = target_name(name)
    wanted = "" if target is None else f", target {TARGET_ACCURACIES[target]:.0%}"
    return (
        f"{record['data']['title']}, {record['data']['train_images']:,} images, {_epochs(record)} epochs: "
        f"test accuracy {percent_accuracy(record, 'test').text('{:.1f}')} %{wanted}"
    )


def show_reference() -> None:
    """Display the picture, print the sentences."""
    data_sets().show()
