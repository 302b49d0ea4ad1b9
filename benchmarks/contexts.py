"""(a) Contexts of a stream: `exact_contexts` against the loop, and how far both are from a float64 loop."""

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import embeddings_name, load_streams, new_model
from benchmarks.plain_notes import PlainNotes
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import calls_that_last, compared, interleaved
from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.model import ContextBlock, NewLLM
from newllm_core.training.phase1 import train_phase1

PLAIN, EXACT, LOOP = "plain loop", "exact_contexts", "sequential_contexts"
_WARM_UP_TOKENS = 512
TRAINED_SHAPE = (500, 384)  # C, E


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    return {"streams": _stream_cases(settings), "small": _small_cases(settings)}


def _stream_cases(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    shapes = [(c, e) for e in settings.embed_dims for c in settings.context_dims]
    cases = [_stream_case(settings, *shape, trained=False) for shape in shapes]
    return [*cases, _stream_case(settings, *_trained_shape(settings), trained=True)]


def _trained_shape(settings: BenchmarkSettings) -> tuple[int, int]:
    wanted_context, wanted_embed = TRAINED_SHAPE
    return (wanted_context if wanted_context in settings.context_dims else settings.context_dims[0]), wanted_embed


def _stream_case(settings: BenchmarkSettings, context_dim: int, embed_dim: int, trained: bool) -> dict[str, Any]:
    model = _block_to_measure(settings, context_dim, embed_dim, trained)
    with torch.no_grad():
        embeds = model.embed(load_streams(settings.num_conversations).train[: settings.context_tokens])
    block, plain, zero = model.context_block, PlainNotes(model), torch.zeros(context_dim)
    for warm_up in (block_ways(block, plain, embeds[:_WARM_UP_TOKENS], zero)).values():
        warm_up()
    seconds = interleaved(block_ways(block, plain, embeds, zero), settings.repetitions)
    outcome = exact_contexts(block, embeds, zero)
    wide_loop = PlainNotes(model).double().loop_contexts(embeds.double(), zero.double())[:, -1]
    return {
        "context_dim": context_dim, "embed_dim": embed_dim, "embeddings": embeddings_name(embed_dim),
        "trained_iterations": settings.trained_iterations if trained else 0, "tokens": len(embeds),
        **compared(seconds, PLAIN),
        "largest_deviation_from_float64": {
            EXACT: _largest(outcome.contexts, wide_loop),
            PLAIN: _largest(plain.loop_contexts(embeds, zero)[:, -1], wide_loop),
        },
        "passes": outcome.passes, "residual": outcome.residual, "success": outcome.success,
        "segment_length": outcome.segment_length, "horizon": outcome.horizon,
        "contraction_rate": contraction_rate(block, embeds),
    }  # fmt: skip


def _block_to_measure(settings: BenchmarkSettings, context_dim: int, embed_dim: int, trained: bool) -> NewLLM:
    model = new_model(context_dim, embed_dim, settings.seed)
    if trained:
        streams, count = load_streams(settings.num_conversations), settings.trained_iterations
        config = Phase1Config(
            min_iterations=count, max_iterations=count, check_interval=count, context_source="previous_iteration"
        )
        train_phase1(model, streams.train, streams.validation, config, settings.seed)
    return model


def block_ways(block: ContextBlock, plain: PlainNotes, embeds: Tensor, initial: Tensor) -> dict[str, Any]:
    return {
        EXACT: lambda: exact_contexts(block, embeds, initial),
        PLAIN: lambda: plain.loop_contexts(embeds, initial),
        LOOP: lambda: sequential_contexts(block, embeds, initial),
    }


def _largest(contexts: Tensor, reference: Tensor) -> float:
    return float((contexts.double() - reference).abs().max())


def _small_cases(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Short streams, narrow and wide blocks, expanding blocks: where the parallel way could only lose."""
    tokens = load_streams(settings.num_conversations).train
    cases = []
    for context_dim in settings.small_context_dims:
        for weight_std in settings.small_weight_stds:
            model = new_model(context_dim, settings.embed_dims[0], settings.seed, weight_std)
            with torch.no_grad():
                embeds = model.embed(tokens[: max(settings.small_tokens)])
            for num_tokens in settings.small_tokens:
                cases.append(_small_case(settings, model, embeds[:num_tokens], weight_std))
    return cases


def _small_case(settings: BenchmarkSettings, model: NewLLM, embeds: Tensor, weight_std: float) -> dict[str, Any]:
    context_dim = model.context_block.context_dim
    plain, zero = PlainNotes(model), torch.zeros(context_dim)
    ways = block_ways(model.context_block, plain, embeds, zero)
    calls = calls_that_last(ways[PLAIN], settings.small_seconds)
    for name in (EXACT, LOOP):
        ways[name]()
    seconds = interleaved(ways, settings.repetitions, calls)
    outcome = exact_contexts(model.context_block, embeds, zero)
    deviation = _largest(outcome.contexts, plain.loop_contexts(embeds, zero)[:, -1].double())
    return {
        "context_dim": context_dim, "embed_dim": embeds.shape[1], "weight_std": weight_std, "tokens": len(embeds),
        "calls": calls, **compared(seconds, PLAIN),
        "ratio_to_project_loop": compared(seconds, LOOP)["ratio"][EXACT],
        "largest_deviation_from_plain_loop": deviation if math.isfinite(deviation) else None,
        "success": outcome.success, "segment_length": outcome.segment_length, "horizon": outcome.horizon,
    }  # fmt: skip
