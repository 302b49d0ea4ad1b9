"""Pictures of vision runs: training from records, attention from a trained model, scores against targets.

One function a figure. What shows a model takes an `Interpretation`, which only a trained checkpoint gives.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from newllm_core.comparison.accuracy import percent_accuracy
from newllm_core.report.style import MARK_COLOUR, TRAIN_COLOUR, VALIDATION_COLOUR, new_axes
from newllm_core.vision.experiment import score_cards
from newllm_core.vision.interpretation import Interpretation
from newllm_core.vision.score import TARGET_ACCURACIES, TARGET_GLOBAL, TARGET_SCORES


def vision_source_line(record: Mapping[str, Any]) -> str:
    """What every picture says below its title."""
    model, data = record["config"]["model"], record["data"]
    return (
        f"{data['title']}, {data['train_images']:,} training images, width {model['width']}, depth {model['depth']}, "
        f"nkat {model['nkat']}, {record['parameters']['total']:,} parameters, "
        f"{record['config']['train']['epochs']} epochs, seed {record['seed']}"
    )


def plot_training(record: Mapping[str, Any]) -> Figure:
    """Loss, accuracy and learning rate per epoch; the epoch whose weights are kept is ringed."""
    figure, (loss, accuracy, rate) = new_axes(3, width=4.2)
    _draw_epochs(loss, record, "loss", 1)
    _draw_epochs(accuracy, record, "accuracy", 100)
    if record["test"] is not None:
        value = 100 * record["test"]["accuracy"]
        accuracy.axhline(value, color=MARK_COLOUR, ls="--", lw=1.2, label=f"test, read once: {value:.1f} %")
    loss.set(xlabel="epoch", ylabel="nats an image", title="Cross-entropy (lower is better)")
    accuracy.set(xlabel="epoch", ylabel="% of images", title="Accuracy (higher is better)")
    accuracy.legend(fontsize=8)
    epochs = record["training"]["epochs"]
    rate.plot(
        [row["epoch"] for row in epochs], [row["learning_rate"] for row in epochs], "o-", ms=3, color=TRAIN_COLOUR
    )
    rate.set(xlabel="epoch", ylabel="at the epoch's last step", title="Learning rate")
    for axis in (loss, accuracy, rate):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{vision_source_line(record)} — ring: epoch kept, by selection accuracy", fontsize=9)
    return figure


def _draw_epochs(axis: Axes, record: Mapping[str, Any], name: str, scale: float) -> None:
    epochs, best = record["training"]["epochs"], record["training"]["best_epoch"]
    numbers = [row["epoch"] for row in epochs]
    for part, label, colour, style in (
        ("train", "training, augmented images and soft targets", TRAIN_COLOUR, "o-"),
        ("selection", "selection images", VALIDATION_COLOUR, "s-"),
    ):
        axis.plot(numbers, [scale * row[f"{part}_{name}"] for row in epochs], style, ms=3, color=colour, label=label)
    own = epochs[-1][f"own_selection_{name}"]
    if own is not None:
        axis.plot(numbers[-1:], [scale * own], "x", ms=7, color="black", label="the same without averaging weights")
    axis.margins(y=0.12)
    value = scale * epochs[best - 1][f"selection_{name}"]
    axis.plot([best], [value], "o", ms=11, mfc="none", mec="black")
    axis.annotate(
        f"{value:.3g}" if scale == 1 else f"{value:.1f}",
        (best, value), xytext=(0, 10), textcoords="offset points", ha="center",
    )  # fmt: skip


def plot_rollout(interpretation: Interpretation) -> Figure:
    """Sample images, and below each the rollout of the class token over its grey version; 1 is an even look."""
    samples = interpretation.samples
    count, side = len(samples.images), samples.images.shape[-1]
    figure = Figure(figsize=(1.35 * count + 0.9, 3.6), layout="constrained")
    axes = [[figure.add_subplot(2, count, row * count + number + 1) for number in range(count)] for row in range(2)]
    most = float(samples.rollout.max())
    for number, (above, below) in enumerate(zip(*axes)):
        pixels = samples.images[number].permute(1, 2, 0).numpy()
        above.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        below.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        heat = below.imshow(
            samples.rollout[number].numpy(), cmap="inferno", vmin=0, vmax=most, alpha=0.55,
            extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        )  # fmt: skip
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
        above.set_title(**_sample_title(interpretation, number), fontsize=8)
    figure.colorbar(heat, ax=axes[1], label="× an even look", fraction=0.03, pad=0.01)
    figure.suptitle(
        f"Attention rollout ∏(½Ā + ½I), class token\n{vision_source_line(interpretation.record)}", fontsize=9
    )
    return figure


def _sample_title(interpretation: Interpretation, number: int) -> dict[str, str]:
    """The image's class, and what the model said where it was wrong."""
    classes = interpretation.record["data"]["classes"]
    label, predicted = (
        classes[int(values[number])] for values in (interpretation.samples.labels, interpretation.samples.predicted)
    )
    if label == predicted:
        return {"label": label}
    return {"label": f"{label}\nsaid {predicted}", "color": VALIDATION_COLOUR}


def plot_theta(interpretation: Interpretation) -> Figure:
    """θ per layer and class, and how strongly the term acts in each layer. Raises ValueError with nkat="off"."""
    if interpretation.theta is None or interpretation.theta_spread is None:
        raise ValueError("plot_theta: expected a model with the NKAT term, given one with nkat='off'")
    layers = np.arange(len(interpretation.strength))
    figure, (heat_axis, strength) = new_axes(2, width=5.2, height=3.8)
    heat_axis.grid(False)
    heat = heat_axis.imshow(interpretation.theta.numpy(), aspect="auto", cmap="viridis")
    classes = interpretation.record["data"]["classes"]
    heat_axis.set(xlabel="class", ylabel="layer", title="θ, mean over heads, tokens and images", yticks=layers)
    heat_axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
    figure.colorbar(heat, ax=heat_axis, label="θ")
    values = interpretation.strength.numpy()
    strength.plot(layers, values, "o-", color=TRAIN_COLOUR, label="strength s · d^l")
    effect = values * interpretation.theta_spread.numpy()
    strength.plot(layers, effect, "s-", color=VALIDATION_COLOUR, label="times θ's spread over an image's tokens")
    if (effect > 0).all():
        strength.set_yscale("log")
    strength.set(xlabel="layer", ylabel="logits (key_bias), factor - 1 (literal)", title="How strongly the term acts")
    strength.set_xticks(layers)
    strength.legend(fontsize=8)
    figure.suptitle(_measured_line(interpretation), fontsize=9)
    return figure


def plot_attention(interpretation: Interpretation) -> Figure:
    """Entropy and keys kept per layer: a dot a head, their mean as a line, the most that is possible dashed."""
    model = interpretation.record["config"]["model"]
    tokens = 1 + math.prod(interpretation.samples.rollout.shape[1:])
    most = tokens if model["top_k"] is None else min(model["top_k"], tokens)
    figure, (entropy, kept) = new_axes(2)
    for axis, values, limit, what in (
        (entropy, interpretation.entropy.numpy(), math.log(most), f"ln {most}"),
        (kept, interpretation.tokens_kept.numpy(), most, f"top-k: {most} of {tokens} tokens"),
    ):
        layers = np.arange(len(values))
        for layer, heads in zip(layers, values):
            axis.plot([layer] * len(heads), heads, "o", ms=4, alpha=0.5, color=TRAIN_COLOUR)
        axis.plot(layers, values.mean(axis=1), "-", color=TRAIN_COLOUR, label="mean over heads")
        axis.axhline(limit, color="black", ls="--", lw=1, label=f"most possible ({what})")
        axis.set(xlabel="layer", xticks=layers, ylim=(0, 1.1 * limit))
        axis.legend(fontsize=8, loc="lower right")
    entropy.set(ylabel="nats", title="Entropy of a query's attention")
    kept.set(ylabel="keys", title=f"Keys kept per query (top-p {model['top_p']:g})")
    figure.suptitle(_measured_line(interpretation), fontsize=9)
    return figure


def _measured_line(interpretation: Interpretation) -> str:
    return f"{vision_source_line(interpretation.record)} — {interpretation.num_images:,} selection images"


def target_name(data_set: str) -> str | None:
    """The data set whose target applies: mnist for mnist-5k, cifar10 for cifar10-jpeg; None where there is none."""
    return next((name for name in TARGET_ACCURACIES if data_set == name or data_set.startswith(f"{name}-")), None)


def plot_scores(
    records: Mapping[str, dict[str, Any]], names: Sequence[str], part: str = "test", score: str = "tpe_scalar"
) -> Figure:
    """Accuracy and score per named data set beside their targets, and Global. Raises ScoreError for a missing one.

    Args:
        part: whose accuracies, "test" or "selection".
        score: "tpe_scalar", which the targets are for, or "tpe_params".
    """
    card = score_cards(records, names, part)[score]
    figure, (accuracy, scores) = new_axes(2, width=1.1 * len(names) + 3.2, height=3.8)
    titles = [records[name]["data"]["title"] for name in names]
    targets = [target_name(name) for name in names]
    wanted = [None if target is None else 100 * TARGET_ACCURACIES[target] for target in targets]
    _draw_bars(
        accuracy, titles, [100 * card.accuracy[name] for name in names], wanted, [100.0] * len(names), "{:.1f} %"
    )
    for place, name in enumerate(names):
        interval = percent_accuracy(records[name], part).interval
        assert interval is not None  # Wilson's, over images
        accuracy.vlines(place, *interval, color="black", lw=1.5)
    title = f"Accuracy, {part} images, 95 % over images (higher is better)"
    accuracy.set(ylabel="% of images", title=title)
    wanted = [None if target is None else TARGET_SCORES[target] for target in targets] + [TARGET_GLOBAL]
    if score != "tpe_scalar":
        wanted = [None] * len(wanted)
    values = [card.score[name] for name in names] + [card.global_score]
    maxima = [card.maximum[name] for name in names] + [card.global_maximum]
    _draw_bars(scores, [*titles, "Global"], values, wanted, maxima, "{:.3f}")
    amounts = ", ".join(f"{value:.3g}" for value in dict.fromkeys(card.theory.values()))
    scores.set(ylabel="accuracy / log₁₀(1 + λ)", title=f"Score, λ = {amounts} (higher is better)")
    for axis in (accuracy, scores):
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    figure.suptitle("Against the notes' targets; a data set without one has no mark", fontsize=9)
    return figure


def _draw_bars(
    axis: Axes, labels: Sequence[str], values: Sequence[float | None], targets: Sequence[float | None],
    maxima: Sequence[float | None], form: str,
) -> None:  # fmt: skip
    """A bar a value, with lines for its target and the most that is attainable; nothing for None."""
    for place, value in enumerate(values):
        if value is not None:
            axis.bar(place, value, width=0.6, color=TRAIN_COLOUR)
    for kind, heights, style in (
        ("target", targets, {"color": VALIDATION_COLOUR, "lw": 2}),
        ("at 100 % accuracy", maxima, {"color": "grey", "ls": ":"}),
    ):
        lines = [(place, height) for place, height in enumerate(heights) if height is not None]
        for number, (place, height) in enumerate(lines):
            axis.plot([place - 0.4, place + 0.4], [height] * 2, label=None if number else kind, **style)
    figures = ["not defined" if value is None else form.format(value) for value in values]
    axis.set_xticks(range(len(labels)), [f"{label}\n{text}" for label, text in zip(labels, figures)], fontsize=8)
