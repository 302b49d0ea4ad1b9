"""(f) Time and memory of the project against the number of tokens; each size in a process of its own."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import phase1_iteration, phase2_epoch
from benchmarks.inputs import WHISPER_WIDTH, Streams, load_streams
from benchmarks.machine import MB, in_fresh_process, peak_mb, resident_mb
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import timed
from newllm_core.config.hyperparameters import ModelConfig, Phase1Config, Phase2Config
from newllm_core.contexts.store import context_batches
from newllm_core.gpu_memory import FLOAT_BYTES
from newllm_core.training.phase1 import all_contexts

STAGES = ("context_cache", "phase1_iteration", "phase2_epoch")
TOTAL = "total"
_WARM_UP_TOKENS = 2_000


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    load_streams(settings.scaling_conversations)  # parsed and cached once: reading the corpus is not what is measured
    sizes = [
        in_fresh_process(measure_size, settings.seed, settings.num_threads, settings, num_tokens)
        for num_tokens in settings.scaling_tokens
    ]
    tokens = [size["tokens"] for size in sizes]
    exponents = {name: exponent(tokens, [size["seconds"][name] for size in sizes]) for name in (*STAGES, TOTAL)}
    return {
        "meaning": "seconds = a * tokens ** exponent, least squares in log-log; "
        "total is one context cache, one Phase 1 iteration and one Phase 2 epoch; peak_mb is of the whole process",
        "batch": Phase2Config.effective_batch_size, "context_dim": ModelConfig.context_dim,
        "embed_dim": WHISPER_WIDTH, "context_source": Phase1Config.context_source, "head": Phase2Config.head,
        "sizes": sizes, "exponents": exponents,
    }  # fmt: skip


def exponent(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(tokens), np.log(seconds), 1)[0])


def measure_size(settings: BenchmarkSettings, num_tokens: int) -> dict[str, Any]:
    streams = _streams_of(settings, num_tokens)
    _run_stages(settings, Streams(streams.train[:_WARM_UP_TOKENS], streams.validation), 1, 1.0)
    before = resident_mb()
    share = 1.0 if num_tokens <= settings.whole_epoch_tokens else settings.epoch_share
    stages = _run_stages(settings, streams, settings.scaling_repetitions, share)
    medians = {name: statistics.median(values) for name, values in stages.items()}
    cache_mb = num_tokens * ModelConfig.num_layers * ModelConfig.context_dim * FLOAT_BYTES / MB
    return {
        "tokens": num_tokens, "epoch_share_timed": share,
        "epoch_is_extrapolated": share < 1, "all_seconds": stages,
        "seconds": {**medians, TOTAL: math.fsum(medians.values())},
        "resident_before_mb": before, "peak_mb": peak_mb(), "context_cache_mb": cache_mb,
        "peak_beyond_cache_mb": peak_mb() - cache_mb,
    }  # fmt: skip


def _streams_of(settings: BenchmarkSettings, num_tokens: int) -> Streams:
    streams = load_streams(settings.scaling_conversations)
    if len(streams.train) < num_tokens:
        raise ValueError(
            f"expected at least {num_tokens} training tokens, found {len(streams.train)} in "
            f"{settings.scaling_conversations} conversations; raise BenchmarkSettings.scaling_conversations"
        )
    # A copy: a view would keep the whole corpus's tokens in the memory that is measured.
    return Streams(streams.train[:num_tokens].clone(), streams.validation)


def _run_stages(
    settings: BenchmarkSettings, streams: Streams, repetitions: int, epoch_share: float
) -> dict[str, list[float]]:
    """Seconds per stage, in the order of a run: a stage's tensors are gone before the next one begins."""
    iteration = _iteration_seconds(settings, streams, repetitions)
    cache = _cache_seconds(settings, streams, repetitions)
    return dict(zip(STAGES, (cache, iteration, [_epoch_seconds(settings, streams, epoch_share)])))


def _iteration_seconds(settings: BenchmarkSettings, streams: Streams, repetitions: int) -> list[float]:
    model = phase1_iteration.default_model(settings)
    trainer = phase1_iteration.project_trainer(model, streams, Phase1Config.context_source, settings.seed)
    return [timed(lambda: phase1_iteration.iteration_with_rank(trainer)) for _ in range(repetitions)]


def _cache_seconds(settings: BenchmarkSettings, streams: Streams, repetitions: int) -> list[float]:
    model = phase1_iteration.default_model(settings)
    return [timed(lambda: all_contexts(model, streams.train)) for _ in range(repetitions)]


def _epoch_seconds(settings: BenchmarkSettings, streams: Streams, share: float) -> float:
    """Of one epoch's training steps; for a share of an epoch, the time of its steps over that share."""
    contexts = all_contexts(phase1_iteration.default_model(settings), streams.train)
    size, head = Phase2Config.effective_batch_size, Phase2Config.head
    trainer = phase2_epoch.project_trainer(settings, WHISPER_WIDTH, streams.train, contexts, size, head)
    num_targets = len(streams.train) - 1
    batches = list(trainer._positions(1))
    batches = batches[: max(1, round(len(batches) * share))]
    began = time.perf_counter()
    for batch in context_batches(contexts, streams.train, batches):
        trainer._step(batch)
    return (time.perf_counter() - began) * num_targets / sum(map(len, batches))
