"""(b) One Phase 1 iteration, and one validation check, on the stream of the cpu profile."""

import dataclasses
from typing import Any

import torch

from benchmarks.inputs import WHISPER_WIDTH, Streams, load_streams, new_model
from benchmarks.plain_notes import PlainNotes, PlainPhase1, effective_rank
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import compared, interleaved
from newllm_core import phase1
from newllm_core.config import ModelConfig, Phase1Config
from newllm_core.contexts import exact_contexts

PLAIN, OURS, EXACT = "plain", "project", "project, exact contexts"
PLAIN_WITH_RANK = "plain with training effective rank"


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    plain = PlainPhase1(_plain(settings), streams.train, Phase1Config())
    ours = project_trainer(settings, streams, "previous_iteration")
    exact = project_trainer(settings, streams, "exact")
    limit = Phase1Config.effective_rank_tokens

    def plain_with_rank() -> None:
        plain.iterate(1)
        effective_rank(plain.previous[:-1][:limit])

    contenders = {
        OURS: lambda: ours._iterate(1),
        PLAIN: lambda: plain.iterate(1),
        PLAIN_WITH_RANK: plain_with_rank,
        EXACT: lambda: exact._iterate(1),
    }
    checks = {OURS: ours._validation_rank, PLAIN: lambda: plain.validation_rank(streams.validation)}
    for warm_up in contenders.values():
        warm_up()
    return {
        "tokens": len(streams.train), "context_dim": ModelConfig.context_dim, "embed_dim": WHISPER_WIDTH,
        "note": "the project's iteration includes the effective rank of the training contexts, as its log shows it",
        "iteration": compared(interleaved(contenders, settings.repetitions), PLAIN),
        "validation_check": compared(interleaved(checks, settings.repetitions), PLAIN),
    }  # fmt: skip


def _plain(settings: BenchmarkSettings) -> PlainNotes:
    return PlainNotes(new_model(ModelConfig.context_dim, WHISPER_WIDTH, settings.seed))


def project_trainer(settings: BenchmarkSettings, streams: Streams, context_source: str) -> phase1._Trainer:
    """The project's trainer just before its first iteration."""
    config = dataclasses.replace(Phase1Config(), context_source=context_source)
    model = new_model(ModelConfig.context_dim, WHISPER_WIDTH, settings.seed)
    trainer = phase1._Trainer(model, streams.train, streams.validation, config, settings.seed)
    zero = torch.zeros(ModelConfig.context_dim)
    trainer.previous = exact_contexts(model.context_block, trainer.embeds, zero).contexts
    return trainer
