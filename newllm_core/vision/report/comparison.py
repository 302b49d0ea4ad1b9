"""Pictures of variants compared, from records only: accuracies with intervals, and how each learned."""

from collections.abc import Sequence
from itertools import product

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from newllm_core.comparison.accuracy import VariantRuns, accuracy_difference, mean_accuracy, variants_of
from newllm_core.comparison.groups import Record
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import LINE_COLOURS, new_axes

_DASHES = ("-", "--", ":", "-.")


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


def plot_epochs(records: Sequence[Record]) -> Figure:
    """Accuracy per epoch on training and on selection images, a line a seed; a colour a variant, and from the eighth
    variant on another dash."""
    variants = variants_of(records)
    figure, panels = new_axes(2, width=5, height=3.8)
    for axis, part in zip(panels, ("train", "selection"), strict=True):
        for (dash, colour), runs in zip(product(_DASHES, LINE_COLOURS), variants):
            for number, record in enumerate(runs.records):
                epochs = record["training"]["epochs"]
                accuracies = [100 * one[f"{part}_accuracy"] for one in epochs]
                label = runs.label if number == 0 else None
                axis.plot([one["epoch"] for one in epochs], accuracies, dash, color=colour, lw=1.5, label=label)
        axis.set(xlabel="epoch", ylabel="% of images")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_title("Training images, as augmented")
    panels[1].set_title("Selection images, as they are")
    panels[0].sharey(panels[1])
    panels[0].legend(fontsize=9, loc="upper left")
    figure.suptitle(_source(variants[0], records), fontsize=10)
    return figure


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
