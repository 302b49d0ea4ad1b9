"""Pictures of variants compared, from records only."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from newllm_core.comparison.accuracy import accuracy_difference, mean_accuracy
from newllm_core.intervals import SeedMean
from newllm_core.report.style import MARK_COLOUR, TRAIN_COLOUR, VALIDATION_COLOUR
from newllm_core.vision.variant_series import VariantRuns


def plot_variants(runs: Sequence[VariantRuns], reference: VariantRuns, part: str) -> Figure:
    """Accuracy of each variant with its 95 % interval, in groups; filled where it differs from the reference."""
    groups = list(dict.fromkeys(one.variant.group for one in runs))
    rows = [one for group in groups for one in runs if one.variant.group == group]
    figure = Figure(figsize=(8.4, 1.8 + 0.27 * len(rows)), layout="constrained")
    axis = figure.add_subplot()
    for place, one in enumerate(rows):
        differs = accuracy_difference(one, reference, part).is_distinguishable
        mean = mean_accuracy(one, part)
        colour = MARK_COLOUR if one is reference else VALIDATION_COLOUR if differs else TRAIN_COLOUR
        if mean.interval is not None:
            axis.plot(mean.interval, [place] * 2, color=colour, lw=1.6)
        axis.plot([_known(mean)], [place], "o", ms=6, color=colour, mfc=colour if differs else "white")
        if len(one.records) > 1:
            axis.plot([100 * record[part]["accuracy"] for record in one.records], [place] * len(one.records), "|",
                      ms=8, color="black")  # fmt: skip
        if place and rows[place - 1].variant.group != one.variant.group:
            axis.axhline(place - 0.5, color="0.8", lw=0.8)
    axis.axvline(_known(mean_accuracy(reference, part)), color=MARK_COLOUR, ls=":", lw=1)
    axis.set_yticks(range(len(rows)), [_label(one) for one in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", color="0.9")
    axis.set(xlabel=f"accuracy on {part} images, % (higher is better)")
    axis.set_title(_source(reference, runs), fontsize=9)
    figure.legend(handles=_legend(reference), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _label(runs: VariantRuns) -> str:
    variant = runs.variant
    return variant.name if variant.group == variant.name else f"{variant.group}: {variant.name}"


def _known(mean: SeedMean) -> float:
    assert mean.value is not None  # accuracy_difference refuses runs without the figure
    return mean.value


def _source(reference: VariantRuns, runs: Sequence[VariantRuns]) -> str:
    record = reference.records[0]
    model = record["config"]["model"]
    seeds = sorted({one["seed"] for run in runs for one in run.records})
    return (
        f"{record['data']['title']}, {record['data']['train_images']:,} training images, width {model['width']}, "
        f"depth {model['depth']}, {record['config']['train']['epochs']} epochs, "
        f"{'seeds' if seeds[1:] else 'seed'} {', '.join(map(str, seeds))}"
    )


def _legend(reference: VariantRuns) -> list[Line2D]:
    over = "seeds" if len(reference.records) > 1 else "images (one seed)"
    entries = [
        Line2D([], [], marker="o", color=VALIDATION_COLOUR, label=f"differs from {reference.variant.name}"),
        Line2D([], [], marker="o", mfc="white", color=TRAIN_COLOUR, label="not distinguishable from it"),
        Line2D([], [], color="0.4", lw=1.6, label=f"95 % interval over {over}"),
    ]
    if len(reference.records) > 1:
        entries.append(Line2D([], [], marker="|", ls="", color="black", label="a run"))
    return entries
