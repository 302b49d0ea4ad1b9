"""Figures from records: one function a figure, data in, matplotlib Figure out; nothing is trained here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from newllm_core.report.style import (
    MARK_COLOUR,
    PLAIN_COLOUR,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    empty_figure,
    new_axes,
    source_line,
)


def plot_tokens(tokens_per_sample: Sequence[int], train_tokens: ArrayLike, source: str) -> Figure:
    """Tokens per conversation, and frequency of token types by rank. ``train_tokens`` `[N]`, ids."""
    figure, (lengths, frequency) = new_axes(2)
    lengths.hist(tokens_per_sample, bins=min(30, max(5, len(tokens_per_sample) // 2)), color=TRAIN_COLOUR)
    median = float(np.median(tokens_per_sample))
    lengths.axvline(median, color=VALIDATION_COLOUR, linestyle="--", label=f"median {median:,.0f}")
    lengths.set(xlabel="tokens per conversation", ylabel="conversations", title="Length of a training conversation")
    lengths.legend()
    counts = np.sort(np.unique(train_tokens, return_counts=True)[1])[::-1]
    frequency.loglog(np.arange(1, len(counts) + 1), counts, color=TRAIN_COLOUR)
    frequency.set(xlabel="rank of the token type", ylabel="occurrences", title=f"{len(counts):,} token types")
    figure.suptitle(source, fontsize=9)
    return figure


def plot_phase1(record: Mapping[str, Any]) -> Figure:
    """Loss terms, convergence and effective rank per iteration."""
    phase1 = record["phase1"]
    history, best = phase1["history"], phase1["best_iteration"]
    iterations = [row["iteration"] for row in history]
    figure, (losses, convergence, rank) = new_axes(3, width=4.2)
    algorithm = record["config"]["phase1"]["diversity_algorithm"]
    losses.plot(iterations, [row["cvfp"] for row in history], "o-", label="CVFP", color=TRAIN_COLOUR, ms=3)
    losses.plot(iterations, [row["diversity"] for row in history], "s-", label=algorithm, color=MARK_COLOUR, ms=3)
    objective = record["config"]["phase1"]["objective"]
    if objective != "cvfp":
        _draw_prediction(losses, history, objective)
    losses.set(xlabel="iteration", ylabel="loss term, unweighted", title="Loss terms (lower is better)")
    losses.legend()
    total = phase1["convergence"]["train_total"]
    # Iteration 1 has no trained one before it to compare with.
    later = [row for row in history if row["iteration"] > 1]
    shares = [100 * row["converged"] / total for row in later]
    convergence.plot([row["iteration"] for row in later], shares, "o-", color=TRAIN_COLOUR, ms=3)
    threshold = record["config"]["phase1"]["convergence_threshold"]
    convergence.set(
        xlabel="iteration",
        ylabel=f"% of {total:,} tokens",
        title=f"Converged: moved < {threshold} (training)",
        ylim=(0, max([*shares, 1.0]) * 1.05),
    )
    _draw_rank(rank, phase1, iterations)
    for axis in (losses, convergence, rank):
        axis.axvline(best, color="grey", linestyle=":", lw=1.2)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{source_line(record)} — dotted: iteration {best}, whose weights are kept", fontsize=9)
    return figure


def _draw_prediction(axis: Axes, history: list[dict[str, Any]], objective: str) -> None:
    numbers = [row["iteration"] for row in history]
    axis.plot(numbers, [row["prediction"] for row in history], "^-", label=objective, color=TRAIN_COLOUR, ms=4)
    checked = [row for row in history if row["validation_prediction"] is not None]
    axis.plot(
        [row["iteration"] for row in checked], [row["validation_prediction"] for row in checked], "D",
        label=f"{objective}, validation", color=VALIDATION_COLOUR, ms=4,
    )  # fmt: skip


def _draw_rank(axis: Axes, phase1: Mapping[str, Any], iterations: list[int]) -> None:
    history, rank = phase1["history"], phase1["effective_rank"]
    axis.plot(
        iterations, [100 * row["train_rank"]["share"] for row in history], "-", color=TRAIN_COLOUR,
        label="training, contexts of this pass",
    )  # fmt: skip
    checked = [row for row in history if row["validation_rank"] is not None]
    axis.plot(
        [0, *(row["iteration"] for row in checked)],
        [100 * rank["validation_untrained"] / rank["context_dim"],
         *(100 * row["validation_rank"]["share"] for row in checked)],
        "D", color=VALIDATION_COLOUR, label="validation, exact contexts",
    )  # fmt: skip
    tokens = rank["validation_tokens"]
    ceiling = 100 * rank["validation_ceiling"] / rank["context_dim"]
    axis.axhline(ceiling, color="black", lw=0.8, ls=":", label="white noise, as many validation tokens")
    axis.set(xlabel="iteration", ylabel=f"% of C = {rank['context_dim']}", title=f"Effective rank ({tokens:,} tokens)")
    axis.legend(fontsize=8)


def plot_spectrum(record: Mapping[str, Any]) -> Figure:
    """Singular values of the validation contexts before and after training, as shares of their sum."""
    spectrum, rank = record["phase1"]["spectrum"], record["phase1"]["effective_rank"]
    figure, (axis,) = new_axes(1, width=6)
    for name, values, value, colour in (
        ("before training", spectrum["validation_before"], rank["validation_untrained"], PLAIN_COLOUR),
        ("after training", spectrum["validation"], rank["validation"], VALIDATION_COLOUR),
    ):
        shares = 100 * np.array(values) / np.sum(values)
        axis.semilogy(np.arange(1, len(shares) + 1), shares, color=colour, label=f"{name}: effective rank {value:.0f}")
    most = min(rank["context_dim"], rank["validation_tokens"])
    axis.axhline(100 / most, color="black", lw=0.8, ls=":", label=f"all equal: effective rank {most}")
    # A direction below a tenth of an even share is hardly used; decades of such would press the others flat.
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 10 / most))
    axis.set(
        xlabel="singular value, by size", ylabel="% of the sum of singular values",
        title=f"Spectrum of {rank['validation_tokens']:,} validation contexts (flatter is more diverse)",
    )  # fmt: skip
    axis.legend()
    figure.suptitle(source_line(record), fontsize=9)
    return figure


def plot_forgetting(record: Mapping[str, Any]) -> Figure:
    """How fast two unlike starting contexts become one, beside the slope that the contraction rate predicts."""
    forgetting, rate = record["phase1"]["forgetting"], record["phase1"]["contraction_rate"]
    if forgetting is None:
        return empty_figure("Forgetting: not measurable on so few validation tokens", source_line(record))
    distances = np.array(forgetting["distances"])
    steps = np.arange(1, len(distances) + 1)
    figure, (axis,) = new_axes(1, width=6)
    axis.semilogy(
        steps, np.maximum(distances, np.finfo(float).tiny), color=TRAIN_COLOUR, label="measured, slowest of 4"
    )
    axis.semilogy(
        steps, distances[0] * np.exp(rate * steps), "--", color="grey", label=f"{rate:+.3f} nats a token (exponent)"
    )
    if forgetting["horizon"] is not None:
        axis.axvline(forgetting["horizon"], color=VALIDATION_COLOUR, ls=":")
        axis.annotate(
            f"horizon {forgetting['horizon']}", (forgetting["horizon"], distances[0]), xytext=(-4, -4),
            textcoords="offset points", ha="right", va="top", color=VALIDATION_COLOUR,
        )  # fmt: skip
    axis.set(
        xlabel="tokens read since the two starts", ylabel="largest difference of a component",
        title=f"Forgetting: until a difference has fallen by {forgetting['factor']:.0e}",
    )  # fmt: skip
    axis.legend(loc="lower left")
    figure.suptitle(source_line(record), fontsize=9)
    return figure


def plot_epochs(record: Mapping[str, Any]) -> Figure:
    """Perplexity and accuracy per epoch, the best epoch marked with its figure on the validation text."""
    phase2 = record["phase2"]
    epochs, best = phase2["epochs"], phase2["best"]
    numbers = [epoch["epoch"] for epoch in epochs]
    figure, (ppl, accuracy) = new_axes(2)
    for axis, figure_name, scale in ((ppl, "perplexity", 1), (accuracy, "accuracy", 100)):
        chooses = record["chosen_on"]
        for part, name, colour, style in (
            ("train", "train", TRAIN_COLOUR, "o-"), ("validation", chooses, VALIDATION_COLOUR, "s-"),
        ):  # fmt: skip
            values = [scale * epoch[f"{part}_{figure_name}"] for epoch in epochs]
            axis.plot(numbers, values, style, color=colour, label=name, ms=4)
        value = scale * best[f"validation_{figure_name}"]
        axis.plot([best["epoch"]], [value], "o", ms=12, mfc="none", mec="black")
        axis.annotate(f"{value:,.1f}", (best["epoch"], value), xytext=(0, 12), textcoords="offset points", ha="center")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.margins(y=0.18)
    ppl.set_yscale("log")
    ppl.set(xlabel="epoch", ylabel="perplexity", title="Perplexity (lower is better)")
    accuracy.set(xlabel="epoch", ylabel="% of next tokens", title="Accuracy (higher is better)")
    ppl.legend()
    figure.suptitle(f"{source_line(record)} — ring: best epoch ({best['epoch']})", fontsize=9)
    return figure
