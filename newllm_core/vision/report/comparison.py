"""The picture of variants compared, from records only."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from newllm_core.comparison.accuracy import VariantRuns, accuracy_difference, mean_accuracy, variants_of
from newllm_core.comparison.groups import Record
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest


def plot_variants(records: Sequence[Record], part: str) -> Figure:
    """Accuracy of each variant against the first's, in groups, paired by seed; of one seed over images alone."""
    reference, *others = variants_of(records)
    groups = list(dict.fromkeys(one.group for one in others))
    rows = [reference, *sorted(others, key=lambda one: groups.index(one.group))]
    differences = [None, *(accuracy_difference(one, reference, part) for one in rows[1:])]
    labels = [_label(one, part) for one in rows]
    xlabel = f"difference on {part} images, points (%; right: better), 95 %"
    panel = ForestPanel(f"Accuracy against that of: {labels[0].text}", xlabel, differences, "{:+.1f}", reference=0)
    return plot_forest(labels, [panel], _source(reference, records))


def _label(runs: VariantRuns, part: str) -> ForestLabel:
    note = f"accuracy {mean_accuracy(runs, part).value:.1f} %"
    return ForestLabel(runs.label, note, runs.group)


def _source(reference: VariantRuns, records: Sequence[Record]) -> str:
    record = reference.records[0]
    model, seeds = record["config"]["model"], sorted({one["seed"] for one in records})
    return (
        f"{record['data']['title']}, {record['data']['train_images']:,} training images, width {model['width']}, "
        f"depth {model['depth']}, {record['config']['train']['epochs']} epochs, "
        f"{'seeds' if seeds[1:] else 'seed'} {', '.join(map(str, seeds))}"
    )
