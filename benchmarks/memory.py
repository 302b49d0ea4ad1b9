"""(e) Peak memory of the stages, project against plain, each side and batch in a process of its own."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import phase1_iteration
from benchmarks.inputs import load_streams, new_model
from benchmarks.machine import forget_peak, in_fresh_process, peak_mb, resident_mb
from benchmarks.phase2_epoch import plain_trainer, project_trainer, shuffled
from benchmarks.plain_notes import PlainNotes, PlainPhase1
from benchmarks.settings import BenchmarkSettings
from newllm_core.config.hyperparameters import ModelConfig, Phase1Config, Phase2Config
from newllm_core.contexts.store import context_batches
from newllm_core.training.evaluation import evaluation_head
from newllm_core.training.phase1 import all_contexts


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    fresh = settings.seed, settings.num_threads
    load_streams(settings.num_conversations)  # parsed and cached once: reading the corpus is not what is measured
    phase1 = {
        "project": in_fresh_process(project_phase1, *fresh, settings),
        "plain": in_fresh_process(plain_phase1, *fresh, settings),
    }
    phase2 = [
        {
            "embed_dim": embed_dim, "batch": batch,
            "project": in_fresh_process(project_phase2, *fresh, settings, embed_dim, batch),
            "plain": in_fresh_process(plain_phase2, *fresh, settings, embed_dim, batch),
        }
        for embed_dim in settings.embed_dims for batch in settings.batch_sizes
    ]  # fmt: skip
    return {"phase1_iteration_and_check": phase1, "phase2_steps_and_evaluation": phase2}


def _peak(work: Callable[[], object]) -> dict[str, float]:
    """``before_mb``: interpreter, libraries, tokens and model; ``peak_mb``: the largest total during the work."""
    before = resident_mb()
    forget_peak()
    work()
    return {"before_mb": before, "peak_mb": peak_mb(), "growth_mb": peak_mb() - before}


def project_phase1(settings: BenchmarkSettings) -> dict[str, float]:
    streams, model = load_streams(settings.num_conversations), phase1_iteration.default_model(settings)

    def work() -> None:
        trainer = phase1_iteration.project_trainer(model, streams, Phase1Config.context_source, settings.seed)
        phase1_iteration.iteration_with_rank(trainer)
        phase1_iteration.validation_rank(model, streams)

    return _peak(work)


def plain_phase1(settings: BenchmarkSettings) -> dict[str, float]:
    streams = load_streams(settings.num_conversations)
    model = PlainNotes(phase1_iteration.default_model(settings))

    def work() -> None:
        phase = PlainPhase1(model, streams.train, Phase1Config())
        phase.iterate(1)
        phase.validation_rank(streams.validation)

    return _peak(work)


def project_phase2(settings: BenchmarkSettings, embed_dim: int, batch: int) -> dict[str, float]:
    tokens, contexts = _stored_contexts(settings, embed_dim)
    trainer = project_trainer(settings, embed_dim, tokens, contexts, batch, Phase2Config.head)

    def work() -> None:
        for part in context_batches(contexts, tokens, _first_batches(settings, len(tokens), batch)):
            trainer._step(part)
        trainer._evaluate(evaluation_head(trainer.model, trainer.method))

    return _peak(work)


def plain_phase2(settings: BenchmarkSettings, embed_dim: int, batch: int) -> dict[str, float]:
    tokens, contexts = _stored_contexts(settings, embed_dim)
    phase, evaluated = plain_trainer(settings, embed_dim, tokens, contexts, batch), settings.evaluation_tokens + 1

    def work() -> None:
        for positions in _first_batches(settings, len(tokens), batch):
            phase.step(positions)
        phase.evaluate(contexts[:evaluated], tokens[:evaluated])

    return _peak(work)


def _first_batches(settings: BenchmarkSettings, num_tokens: int, batch: int) -> tuple[torch.Tensor, ...]:
    return shuffled(num_tokens - 1, settings.seed, 1).split(batch)[: settings.memory_steps]


def _stored_contexts(settings: BenchmarkSettings, embed_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = load_streams(settings.num_conversations).train[: settings.epoch_tokens + 1]
    return tokens, all_contexts(new_model(ModelConfig.context_dim, embed_dim, settings.seed), tokens)
