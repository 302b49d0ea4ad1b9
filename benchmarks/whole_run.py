"""(d) The whole cpu profile, project against plain: seconds and validation perplexity over seeds.

Each side of each seed runs in a process of its own, on the same noise and in the same order, and stops by the same
rules for itself: a check without a better rank ends Phase 1, an epoch without a better loss Phase 2.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.inputs import load_streams
from benchmarks.machine import in_fresh_process, peak_mb
from benchmarks.phase1_iteration import default_model
from benchmarks.phase2_epoch import shuffled
from benchmarks.plain_notes import PlainNotes, PlainPhase2
from benchmarks.plain_notes import train_phase1 as train_plain_phase1
from benchmarks.settings import BenchmarkSettings
from newllm_core.config.hyperparameters import Phase1Config, Phase2Config
from newllm_core.intervals import paired_difference
from newllm_core.metrics.prediction import perplexity
from newllm_core.runs.reproducibility import current_commit
from newllm_core.training.context_noise import context_noise
from newllm_core.training.phase1 import train_phase1
from newllm_core.training.phase2 import train_phase2


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    load_streams(settings.num_conversations)  # parsed and cached once: reading the corpus is not what is measured
    return summary([measure_seed(settings, seed) for seed in settings.whole_run_seeds])


def with_runs_of(figures: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the runs of other seeds that ``stored`` has, each of its own commit."""
    measured = {run["seed"] for run in figures["runs"]}
    runs = figures["runs"] + [run for run in stored.get("runs", []) if run["seed"] not in measured]
    return summary(sorted(runs, key=lambda run: int(run["seed"])))


def measure_seed(settings: BenchmarkSettings, seed: int) -> dict[str, Any]:
    """One run of each side."""
    phase1, phase2 = phase_configs(settings)
    fresh = seed, settings.num_threads
    ours = in_fresh_process(run_project, *fresh, settings, phase1, phase2, seed)
    plain = in_fresh_process(run_plain, *fresh, settings, phase1, phase2, seed)
    return {"seed": seed, "commit": current_commit(), "project": ours, "plain": plain}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of summed seconds, of the clock and of the processor, and the paired difference of log perplexities."""

    def ratio(name: str) -> float:
        plain, ours = (sum(run[side][name] for run in runs) for side in ("plain", "project"))
        return float(plain / ours)

    logarithms = [[math.log(run[side]["perplexity"]) for run in runs] for side in ("project", "plain")]
    over_plain = paired_difference(*logarithms).exp()
    return {
        "runs": list(runs),
        **{name.replace("seconds", "ratio"): ratio(name) for name in _SECONDS},
        "perplexity_over_plain": over_plain.value,
        "perplexity_over_plain_interval": over_plain.interval and list(over_plain.interval),
    }


def phase_configs(settings: BenchmarkSettings) -> tuple[Phase1Config, Phase2Config]:
    """The defaults, with fewer epochs; a quick run only goes through the motions."""
    phase2 = Phase2Config(max_epochs=settings.whole_run_epochs)
    if settings.whole_run_iterations is None:
        return Phase1Config(products="auto"), phase2
    return Phase1Config(min_iterations=1, max_iterations=settings.whole_run_iterations, products="auto"), phase2


def run_project(settings: BenchmarkSettings, phase1: Phase1Config, phase2: Phase2Config, seed: int) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    model = default_model(settings, seed)
    watch = _Watch()
    contexts = train_phase1(model, streams.train, streams.validation, phase1, seed)
    assert contexts.history is not None
    watch.between()
    result = train_phase2(model, contexts, streams.train, streams.validation, phase2, seed)
    return {
        **watch.seconds(), "iterations": len(contexts.history.iterations), "epochs": len(result.epochs),
        "train_tokens": len(streams.train), "validation_tokens": len(streams.validation),
        "context_source": phase1.context_source, "head": result.head_method,
        "perplexity": result.best.validation_perplexity, "accuracy": result.best.validation_accuracy,
        "peak_mb": peak_mb(),
    }  # fmt: skip


def run_plain(settings: BenchmarkSettings, phase1: Phase1Config, phase2: Phase2Config, seed: int) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    model = PlainNotes(default_model(settings, seed))

    def same_noise(rows: slice, width: int, iteration: int) -> Tensor:
        return context_noise(rows, width, 1.0, seed, iteration)

    watch = _Watch()
    trained = train_plain_phase1(model, streams.train, streams.validation, phase1, same_noise)
    watch.between()
    phase = PlainPhase2(model, trained.train, streams.train, phase2)
    best, accuracy, worse, epoch = math.inf, math.nan, 0, 0
    while worse < phase2.patience and epoch < phase2.max_epochs:
        epoch, worse = epoch + 1, worse + 1
        phase.epoch(shuffled(len(streams.train) - 1, seed, epoch))
        figures = phase.evaluate(trained.validation, streams.validation)
        if figures.mean_nats < best:
            best, accuracy, worse = figures.mean_nats, figures.accuracy, 0
    return {
        **watch.seconds(), "iterations": trained.iterations, "epochs": epoch, "context_source": "previous_iteration",
        "perplexity": perplexity(best), "accuracy": accuracy, "peak_mb": peak_mb(),
    }  # fmt: skip


_SECONDS = [f"{kind}seconds{part}" for kind in ("", "cpu_") for part in ("", "_phase1", "_phase2")]


class _Watch:
    """Seconds of the clock and of the processor, of both phases and of each; the clock's are those of a quiet machine
    only."""

    def __init__(self) -> None:
        self.marks = [(time.perf_counter(), time.process_time())]

    def between(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> dict[str, float]:
        self.between()
        parts = []
        for clock in range(2):
            first, second, third = (mark[clock] for mark in self.marks)
            parts += [third - first, second - first, third - second]
        return dict(zip(_SECONDS, parts, strict=True))
