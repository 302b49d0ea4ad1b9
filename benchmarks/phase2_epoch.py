"""(c) An epoch of Phase 2 training, and an evaluation, over the first tokens of the stream."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import embeddings_name, load_streams, new_model
from benchmarks.plain_notes import PlainNotes, PlainPhase2
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import compared, interleaved
from newllm_core.config.hyperparameters import ModelConfig, Phase2Config
from newllm_core.runs.products import has_bf16_products
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training import phase2
from newllm_core.training.evaluation import evaluation_head
from newllm_core.training.loop import PassState
from newllm_core.training.phase1 import Phase1Result, all_contexts

PLAIN = "plain"


def measure(settings: BenchmarkSettings) -> dict[str, Any]:
    epochs, evaluations = [], []
    for embed_dim in settings.embed_dims:
        stream = _prepare(settings, embed_dim)
        epochs += [_epoch_case(settings, stream, batch) for batch in settings.batch_sizes]
        evaluations.append(_evaluation_case(settings, stream))
    return {"epochs": epochs, "evaluations": evaluations}


def project_methods() -> list[str]:
    return ["blocks", *(["blocks-bf16"] if has_bf16_products() else [])]


@dataclass(frozen=True)
class _Stream:
    embed_dim: int
    tokens: Tensor
    contexts: Tensor


def _prepare(settings: BenchmarkSettings, embed_dim: int) -> _Stream:
    model = new_model(ModelConfig.context_dim, embed_dim, settings.seed)
    tokens = load_streams(settings.num_conversations).train[: settings.epoch_tokens + 1]
    return _Stream(embed_dim, tokens, all_contexts(model, tokens))


def project_trainer(
    settings: BenchmarkSettings, embed_dim: int, tokens: Tensor, contexts: Tensor, batch: int, method: str
) -> phase2._Trainer:
    """The project's trainer of a new model, given contexts `[N, L, C]`; it evaluates on the training stream's start."""
    model = new_model(contexts.shape[2], embed_dim, settings.seed)
    config = dataclasses.replace(Phase2Config(), head=method, effective_batch_size=batch)
    evaluated = settings.evaluation_tokens + 1
    result = Phase1Result(contexts, contexts[:evaluated], None)
    return phase2._Trainer(model, result, tokens, tokens[:evaluated], config, settings.seed, None)


def trained_epoch(trainer: phase2._Trainer, epoch: int) -> tuple[float, float]:
    """Mean nats a token and accuracy of an epoch's training steps, which are taken."""
    trainer.within = PassState()
    for _ in trainer.steps(epoch):
        pass
    return trainer.epoch_means()


def plain_trainer(
    settings: BenchmarkSettings, embed_dim: int, tokens: Tensor, contexts: Tensor, batch: int
) -> PlainPhase2:
    model = PlainNotes(new_model(contexts.shape[2], embed_dim, settings.seed))
    return PlainPhase2(model, contexts, tokens, dataclasses.replace(Phase2Config(), effective_batch_size=batch))


def shuffled(num_targets: int, seed: int, epoch: int) -> Tensor:
    """The project's order of an epoch, so that both sides see the same batches."""
    return torch.randperm(num_targets, generator=derived_generator("shuffle", seed, epoch))


def _epoch_case(settings: BenchmarkSettings, stream: _Stream, batch: int) -> dict[str, Any]:
    given = settings, stream.embed_dim, stream.tokens, stream.contexts, batch
    losses: dict[str, list[float]] = {}
    plain = plain_trainer(*given)
    num_targets = len(stream.tokens) - 1

    def one_epoch(name: str, train: Callable[[int], float]) -> Callable[[], None]:
        losses[name] = []
        return lambda: losses[name].append(train(len(losses[name]) + 1))

    def plain_epoch(epoch: int) -> float:
        return plain.epoch(shuffled(num_targets, settings.seed, epoch)).mean_nats

    def project_epoch(trainer: phase2._Trainer) -> Callable[[int], float]:
        return lambda epoch: trained_epoch(trainer, epoch)[0]

    # "project, plain, project": the plain one stands between the project's.
    first, *others = project_methods()
    works = {first: one_epoch(first, project_epoch(project_trainer(*given, first)))}
    works[PLAIN] = one_epoch(PLAIN, plain_epoch)
    for method in others:
        works[method] = one_epoch(method, project_epoch(project_trainer(*given, method)))
    seconds = interleaved(works, settings.epoch_repetitions)
    return {
        "embed_dim": stream.embed_dim, "embeddings": embeddings_name(stream.embed_dim), "batch": batch,
        "targets": num_targets, **compared(seconds, PLAIN), "mean_nats_by_epoch": losses,
        "largest_delta_mean_nats": {
            name: max(abs(ours - theirs) for ours, theirs in zip(values, losses[PLAIN]))
            for name, values in losses.items() if name != PLAIN
        },
    }  # fmt: skip


def _evaluation_case(settings: BenchmarkSettings, stream: _Stream) -> dict[str, Any]:
    given = settings, stream.embed_dim, stream.tokens, stream.contexts, Phase2Config.effective_batch_size
    plain, trainer = plain_trainer(*given), project_trainer(*given, "blocks")
    rows = slice(0, settings.evaluation_tokens + 1)
    found: dict[str, float] = {}

    def project() -> None:
        found["project"] = trainer._evaluate(evaluation_head(trainer.model, trainer.method)).mean_nats

    def plainly() -> None:
        found[PLAIN] = plain.evaluate(stream.contexts[rows], stream.tokens[rows]).mean_nats

    seconds = interleaved({"project": project, PLAIN: plainly}, settings.epoch_repetitions)
    return {
        "embed_dim": stream.embed_dim, "targets": len(stream.tokens[rows]) - 1, **compared(seconds, PLAIN),
        "delta_mean_nats": abs(found["project"] - found[PLAIN]),
    }  # fmt: skip
