"""(d) The whole cpu profile, project against plain: seconds and validation perplexity. Each in a process of its own.

The project stops early by its own rules; the plain side then does the same number of iterations and epochs, on the
same noise and in the same order, and keeps its best weights likewise.
"""

import math
import time
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
from newllm_core.metrics.prediction import perplexity
from newllm_core.training.fixed_point import context_noise
from newllm_core.training.phase1 import train_phase1
from newllm_core.training.phase2 import train_phase2


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    phase1, phase2 = phase_configs(settings)
    fresh = settings.seed, settings.num_threads
    load_streams(settings.num_conversations)  # parsed and cached once: reading the corpus is not what is measured
    ours = in_fresh_process(run_project, *fresh, settings, phase1, phase2)
    plain = in_fresh_process(run_plain, *fresh, settings, phase1, phase2, ours["iterations"], ours["epochs"])
    return {
        "project": ours, "plain": plain,
        "ratio": plain["seconds"] / ours["seconds"],
        "ratio_phase1": plain["seconds_phase1"] / ours["seconds_phase1"],
        "ratio_phase2": plain["seconds_phase2"] / ours["seconds_phase2"],
        "perplexity_over_plain": ours["perplexity"] / plain["perplexity"],
    }  # fmt: skip


def phase_configs(settings: BenchmarkSettings) -> tuple[Phase1Config, Phase2Config]:
    """The defaults, with fewer epochs; a quick run only goes through the motions."""
    phase2 = Phase2Config(max_epochs=settings.whole_run_epochs)
    if settings.whole_run_iterations is None:
        return Phase1Config(products="auto"), phase2
    return Phase1Config(min_iterations=1, max_iterations=settings.whole_run_iterations, products="auto"), phase2


def run_project(settings: BenchmarkSettings, phase1: Phase1Config, phase2: Phase2Config) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    model = default_model(settings)
    began = time.perf_counter()
    contexts = train_phase1(model, streams.train, streams.validation, phase1, settings.seed)
    assert contexts.history is not None
    between = time.perf_counter()
    result = train_phase2(model, contexts, streams.train, streams.validation, phase2, settings.seed)
    return {
        **_seconds(began, between), "iterations": len(contexts.history.iterations), "epochs": len(result.epochs),
        "train_tokens": len(streams.train), "validation_tokens": len(streams.validation),
        "context_source": phase1.context_source, "head": result.head_method,
        "perplexity": result.best.validation_perplexity, "accuracy": result.best.validation_accuracy,
        "peak_mb": peak_mb(),
    }  # fmt: skip


def run_plain(
    settings: BenchmarkSettings, phase1: Phase1Config, phase2: Phase2Config, iterations: int, epochs: int
) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    model = PlainNotes(default_model(settings))

    def same_noise(rows: slice, width: int, iteration: int) -> Tensor:
        return context_noise(rows, width, 1.0, settings.seed, iteration)

    began = time.perf_counter()
    train, validation = train_plain_phase1(model, streams.train, streams.validation, phase1, iterations, same_noise)
    between = time.perf_counter()
    phase = PlainPhase2(model, train, streams.train, phase2)
    best, accuracy = math.inf, math.nan
    for epoch in range(1, epochs + 1):
        phase.epoch(shuffled(len(streams.train) - 1, settings.seed, epoch))
        figures = phase.evaluate(validation, streams.validation)
        if figures.mean_nats < best:
            best, accuracy = figures.mean_nats, figures.accuracy
    return {
        **_seconds(began, between), "iterations": iterations, "epochs": epochs,
        "perplexity": perplexity(best), "accuracy": accuracy, "peak_mb": peak_mb(),
    }  # fmt: skip


def _seconds(began: float, between: float) -> dict[str, float]:
    now = time.perf_counter()
    return {"seconds": now - began, "seconds_phase1": between - began, "seconds_phase2": now - between}
