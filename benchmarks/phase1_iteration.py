"""(b) One Phase 1 iteration, and one validation check, on the stream of the cpu profile."""

import dataclasses
from typing import Any

from benchmarks import predictive_pass
from benchmarks.inputs import WHISPER_WIDTH, Streams, load_streams, new_model
from benchmarks.plain_notes import PlainNotes, PlainPhase1, effective_rank
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import compared, interleaved
from newllm_core.config.hyperparameters import ModelConfig, Phase1Config
from newllm_core.metrics.rank import StreamRank, stream_rank
from newllm_core.model import NewLLM
from newllm_core.training.fixed_point import CvfpPass
from newllm_core.training.phase1 import all_contexts

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

    ways = {
        OURS: lambda: iteration_with_rank(ours),
        PLAIN: lambda: plain.iterate(1),
        PLAIN_WITH_RANK: plain_with_rank,
        EXACT: lambda: iteration_with_rank(exact),
    }
    checks = {
        OURS: lambda: validation_rank(ours.model, streams),
        PLAIN: lambda: plain.validation_rank(streams.validation),
    }
    for warm_up in ways.values():
        warm_up()
    return {
        "tokens": len(streams.train), "context_dim": ModelConfig.context_dim, "embed_dim": WHISPER_WIDTH,
        "note": "the project's iteration includes the effective rank of the training contexts, as its log shows it",
        "iteration": compared(interleaved(ways, settings.repetitions), PLAIN),
        "validation_check": compared(interleaved(checks, settings.repetitions), PLAIN),
        "predictive_pass": predictive_pass.measure(settings, streams),
    }  # fmt: skip


def default_model(settings: BenchmarkSettings) -> NewLLM:
    """C = 500 on Whisper's embeddings."""
    return new_model(ModelConfig.context_dim, WHISPER_WIDTH, settings.seed)


def project_trainer(model: NewLLM, streams: Streams, context_source: str, seed: int) -> CvfpPass:
    """The project's trainer just before its first iteration."""
    config = dataclasses.replace(Phase1Config(), context_source=context_source, products="auto")
    return CvfpPass(model, streams.train, config, seed)


def iteration_with_rank(trainer: CvfpPass) -> None:
    """One iteration, and the rank of its contexts that the log shows."""
    trainer.iterate(1)
    stream_rank(trainer.previous, Phase1Config.effective_rank_tokens)


def validation_rank(model: NewLLM, streams: Streams) -> StreamRank:
    """One check on validation text."""
    few = Phase1Config.effective_rank_tokens
    return stream_rank(all_contexts(model, streams.validation[: few + 1])[:, -1], few)
