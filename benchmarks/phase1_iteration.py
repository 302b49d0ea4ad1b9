"""(b) One Phase 1 iteration, and one validation check, on the stream of the cpu profile."""

import dataclasses
from typing import Any

from benchmarks.inputs import WHISPER_WIDTH, Streams, load_streams, new_model
from benchmarks.plain_notes import PlainNotes, PlainPhase1, effective_rank
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import compared, interleaved
from newllm_core import phase1
from newllm_core.config import ModelConfig, Phase1Config
from newllm_core.contexts import exact_contexts
from newllm_core.model import NewLLM

PLAIN, OURS, EXACT = "plain", "project", "project, exact contexts"
PLAIN_WITH_RANK = "plain with training effective rank"


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    streams = load_streams(settings.num_conversations)
    plain = PlainPhase1(PlainNotes(default_model(settings)), streams.train, Phase1Config())
    ours = project_trainer(default_model(settings), streams, "previous_iteration", settings.seed)
    exact = project_trainer(default_model(settings), streams, "exact", settings.seed)
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
    checks = {OURS: lambda: ours._validation_rank(0), PLAIN: lambda: plain.validation_rank(streams.validation)}
    for warm_up in contenders.values():
        warm_up()
    return {
        "tokens": len(streams.train), "context_dim": ModelConfig.context_dim, "embed_dim": WHISPER_WIDTH,
        "note": "the project's iteration includes the effective rank of the training contexts, as its log shows it",
        "iteration": compared(interleaved(contenders, settings.repetitions), PLAIN),
        "validation_check": compared(interleaved(checks, settings.repetitions), PLAIN),
    }  # fmt: skip


def default_model(settings: BenchmarkSettings) -> NewLLM:
    """C = 500 on Whisper's embeddings."""
    return new_model(ModelConfig.context_dim, WHISPER_WIDTH, settings.seed)


def project_trainer(model: NewLLM, streams: Streams, context_source: str, seed: int) -> phase1._Trainer:
    """The project's trainer just before its first iteration."""
    config = dataclasses.replace(Phase1Config(), context_source=context_source)
    trainer = phase1._Trainer(model, streams.train, streams.validation, config, seed)
    trainer.previous = exact_contexts(model.context_block, trainer.embeds, trainer.zero).contexts
    return trainer
