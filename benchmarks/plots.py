"""One picture per part of a benchmark file: ratio bars with the target as a line, and curves against tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import report
from newllm_core.report.style import BLUE, GREEN, ORANGE, PLAIN_COLOUR, PURPLE, VERMILION, new_axes, save_figure

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, PLAIN_COLOUR)
_PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:,.7g}")
_RATIO_LABEL = "times as fast as plain (higher is better)"


def plot_all(parts: dict[str, Any], folder: Path) -> list[Path]:
    """Write `<part>_<what>.png` for every part that is there."""
    written = []
    for name, draw in _DRAWINGS:
        if name in parts:
            path = folder / f"{name}_{draw.__name__.removeprefix('draw_')}.png"
            written.append(save_figure(draw(parts[name]["figures"]), path))
    return written


def _bars(axes: Axes, labels: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    """Horizontal bars, first on top, each with its value."""
    positions = np.arange(len(labels))[::-1]
    axes.grid(visible=False, axis="y")
    drawn = axes.barh(positions, values, color=colours, height=0.7)
    texts = [f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in values]
    # A white ground, or a target line would strike the figure out.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(drawn, labels=texts, padding=4, bbox=ground, zorder=3)
    axes.set_yticks(positions, labels)
    axes.set_xlim(right=max(values) * 1.18)


def _target(axes: Axes, value: float, text: str, colour: str = "black") -> None:
    axes.axvline(value, color=colour, linestyle="--", linewidth=1.2, label=text)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    axes.set_xlim(right=max(axes.get_xlim()[1], value * 1.1))


def draw_contexts(figures: dict[str, Any]) -> Figure:
    figure, (left, right) = new_axes(2, 6, 4.6)
    cases = figures["streams"]
    labels = [
        f"C = {c['context_dim']}, E = {c['embed_dim']}\n" + ("trained" if c["trained_iterations"] else "untrained")
        for c in cases
    ]
    _bars(left, labels, [c["ratio"]["exact_contexts"] for c in cases], [_COLOURS[0]] * len(cases))
    _target(left, report.CONTEXTS_TARGET, f"target at C = 500, E = 768: {report.CONTEXTS_TARGET:g}")
    left.set_xlabel(_RATIO_LABEL)
    left.set_title(f"exact_contexts, {cases[0]['tokens']:,} tokens")
    _draw_small(right, figures["small"])
    return figure


def _draw_small(axes: Axes, cases: Sequence[dict[str, Any]]) -> None:
    widths = sorted({case["context_dim"] for case in cases})
    stds = sorted({case["weight_std"] for case in cases})
    for width, colour in zip(widths, _COLOURS):
        for std, style in zip(stds, ("o-", "s:")):
            rows = [c for c in cases if c["context_dim"] == width and c["weight_std"] == std]
            ratios = [c["ratio"]["exact_contexts"] for c in rows]
            axes.plot([c["tokens"] for c in rows], ratios, style, color=colour, label=f"C = {width}, std {std:g}")
    axes.axhline(report.NEVER_BELOW, color="black", linestyle="--", label=f"wanted: not below {report.NEVER_BELOW:g}")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=_RATIO_LABEL)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_PLAIN_NUMBERS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("short streams, narrow and wide blocks, weight std")
    axes.legend(fontsize=8, ncols=2)


def draw_phase1_iteration(figures: dict[str, Any]) -> Figure:
    figure, (left, right) = new_axes(2, 6, 3.4)
    for axes, key, title in ((left, "iteration", "one iteration"), (right, "validation_check", "validation check")):
        medians = figures[key]["median_seconds"]
        colours = [_COLOURS[1] if name.startswith("plain") else _COLOURS[0] for name in medians]
        _bars(axes, list(medians), list(medians.values()), colours)
        axes.set(xlabel="seconds (lower is better)", title=f"Phase 1, {title}, {figures['tokens']:,} training tokens")
    return figure


def draw_epoch(figures: dict[str, Any]) -> Figure:
    figure, (axes,) = new_axes(1, 8, 6)
    rows = [
        (f"E = {case['embed_dim']}, batch {case['batch']}\n{name}", name, ratio)
        for case in figures["epochs"] for name, ratio in case["ratio"].items()
    ]  # fmt: skip
    colours = dict(zip(report.EPOCH_TARGETS, _COLOURS))
    _bars(axes, [label for label, _, _ in rows], [ratio for *_, ratio in rows], [colours[name] for _, name, _ in rows])
    for name, target in report.EPOCH_TARGETS.items():
        _target(axes, target, f"target of {name}: {target:g}", colours[name])
    axes.set(xlabel=_RATIO_LABEL, title=f"Phase 2, an epoch of {figures['epochs'][0]['targets']:,} targets")
    return figure


def draw_head(figures: dict[str, Any]) -> Figure:
    """Of the last width and batch measured."""
    figure, (left, right) = new_axes(2, 7, 5)
    case = figures["candidates"][-1]
    medians = case["median_seconds"]
    colours = [_COLOURS[0] if name.startswith("blocks") else _COLOURS[5] for name in medians]
    _bars(left, list(medians), [case["batch"] / seconds for seconds in medians.values()], colours)
    left.set(xlabel="tokens per second (higher is better)")
    left.set_title(f"loss and gradient alone, E = {case['embed_dim']}, batch {case['batch']}")
    memory = {name: list(by_batch.items())[-1] for name, by_batch in case["extra_memory_mb"].items()}
    labels = [f"{name}\nat batch {batch}" for name, (batch, _) in memory.items()]
    # A growth that the gradient's size more than covers is no memory.
    _bars(right, labels, [max(mb, 0.0) for _, mb in memory.values()], colours)
    _target(right, report.HEAD_MEMORY_TARGET_MB, f"target: {report.HEAD_MEMORY_TARGET_MB:g} MB")
    right.set(xlabel="extra memory, MB (lower is better)", title="beyond hidden states and gradient")
    return figure


def draw_whole_run(figures: dict[str, Any]) -> Figure:
    figure, (left, right) = new_axes(2, 6, 3.8)
    sides, runs = ("project", "plain"), figures["runs"]
    starts = np.zeros(2)
    for phase, colour in (("phase1", _COLOURS[0]), ("phase2", _COLOURS[1])):
        seconds = np.array([np.mean([run[side][f"cpu_seconds_{phase}"] for run in runs]) for side in sides])
        left.barh([1, 0], seconds, left=starts, color=colour, label=phase.replace("phase", "Phase "))
        starts += seconds
    left.set_yticks([1, 0], [f"{side}\nPPL {np.mean([run[side]['perplexity'] for run in runs]):.1f}" for side in sides])
    tokens = runs[0]["project"]["train_tokens"]
    left.set(xlabel=f"CPU seconds (lower is better), seeds: {len(runs)}", title=f"cpu profile, {tokens:,} tokens")
    left.legend()
    labels = ("Phase 1", "Phase 2", "whole run")
    ratios = [figures["cpu_ratio_phase1"], figures["cpu_ratio_phase2"], figures["cpu_ratio"]]
    _bars(right, labels, ratios, [_COLOURS[0], _COLOURS[1], _COLOURS[5]])
    _target(right, report.WHOLE_RUN_TARGET, f"target of the whole run: {report.WHOLE_RUN_TARGET:g}")
    right.set(xlabel=_RATIO_LABEL)
    return figure


def draw_memory(figures: dict[str, Any]) -> Figure:
    figure, (axes,) = new_axes(1, 9, 5)
    cases = [("Phase 1", figures["phase1_iteration_and_check"])]
    for case in figures["phase2_steps_and_evaluation"]:
        cases.append((f"Phase 2, E = {case['embed_dim']},\nbatch {case['batch']}", case))
    positions = np.arange(len(cases))[::-1]
    for side, shift, colour in (("project", 0.2, _COLOURS[0]), ("plain", -0.2, _COLOURS[1])):
        drawn = axes.barh(positions + shift, [c[side]["peak_mb"] for _, c in cases], 0.38, color=colour, label=side)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.set_yticks(positions, [label for label, _ in cases])
    axes.margins(x=0.12)
    axes.set(xlabel="peak memory of the process, MB (lower is better)", title="peak memory, libraries included")
    axes.legend()
    return figure


def draw_scaling_with_tokens(figures: dict[str, Any]) -> Figure:
    figure, (left, right) = new_axes(2, 6, 4.6)
    sizes = figures["sizes"]
    tokens = np.array([size["tokens"] for size in sizes])
    for (name, power), colour in zip(figures["exponents"].items(), _COLOURS):
        seconds = np.array([size["seconds"][name] for size in sizes])
        left.plot(tokens, seconds, "o", color=colour, label=f"{name.replace('_', ' ')}: exponent {power:.3f}")
        centre = np.log(seconds).mean() - power * np.log(tokens).mean()
        left.plot(tokens, np.exp(centre) * tokens**power, color=colour)
    for size in sizes:
        if size["epoch_is_extrapolated"]:
            left.plot(size["tokens"], size["seconds"]["phase2_epoch"], "o", mfc="white", color=_COLOURS[2])
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds (lower is better)")
    left.set_title("time; hollow: a share of the epoch, extrapolated")
    cache = np.array([size["context_cache_mb"] for size in sizes])
    right.plot(tokens, [size["peak_mb"] for size in sizes], "o-", color=_COLOURS[0], label="peak of the process")
    right.plot(tokens, cache, ":", color=_COLOURS[5], label="context cache")
    limit = cache + report.MEMORY_BEYOND_CACHE_MB
    right.plot(tokens, limit, "--", color="black", label="context cache + 1 GB: limit at the largest size")
    right.set(xlabel="tokens", ylabel="MB (lower is better)", title="memory", ylim=(0, None))
    right.xaxis.set_major_formatter(_PLAIN_NUMBERS)
    for axes in (left, right):
        axes.legend(fontsize=9)
    return figure


_DRAWINGS: list[tuple[str, Callable[[dict[str, Any]], Figure]]] = [
    ("a", draw_contexts),
    ("b", draw_phase1_iteration),
    ("c", draw_epoch),
    ("c", draw_head),
    ("d", draw_whole_run),
    ("e", draw_memory),
    ("f", draw_scaling_with_tokens),
]
