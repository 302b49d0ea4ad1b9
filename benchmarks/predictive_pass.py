"""(b) One pass of predictive Phase 1 at the sizes of the `best` profile: the project against automatic gradients.

The other side is what the project did before its own recurrence: a graph of every token, PyTorch's cross-entropy over
all scores, its dropout and its unfused optimizer, all in float32.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.inputs import WHISPER_WIDTH, Streams, embeddings_name
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import compared, interleaved
from newllm_core.config.hyperparameters import DataConfig, Phase1Config, Settings
from newllm_core.config.profiles import load_profile
from newllm_core.data.embeddings import load_embeddings
from newllm_core.model.dropout import RowsOf
from newllm_core.model.llm import NewLLM
from newllm_core.runs.files import DATA_DIR, PROJECT_ROOT
from newllm_core.training.loop import PassState
from newllm_core.training.predictive import PredictivePass, contrastive_loss

AUTOGRAD, OURS, IN_FLOAT32 = "automatic gradients", "project", "project, float32"
_PROFILE = PROJECT_ROOT / "notebooks" / "profiles" / "best.yaml"


class PassByAutograd(PredictivePass):
    """The same text, negatives and losses, token by token under autograd."""

    def __init__(self, model: NewLLM, train_tokens: Tensor, config: Phase1Config, seed: int) -> None:
        super().__init__(model, train_tokens, config, seed)
        self.rounded = False
        self.optimizer.param_groups[0]["fused"] = False

    def _contexts(self, positions: Tensor, context: Tensor, rows: RowsOf | None = None) -> Tensor:
        embeds = self.model.embed_for_contexts(self.tokens[positions])
        parts = self.block.token_parts(functional.dropout(embeds, self.config.prediction_dropout))
        contexts = []
        for token in range(positions.shape[1]):
            context = context + self.config.context_noise * torch.randn_like(context)
            context = self.block.forward_from_token_parts(context, [part[:, token] for part in parts])[-1]
            contexts.append(context)
        return torch.stack(contexts, dim=1)

    def _prediction(self, contexts: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        predicted = self.predictor(functional.dropout(contexts, self.config.prediction_dropout))
        return contrastive_loss(predicted, targets, negatives, self.targets)


def measure(settings: BenchmarkSettings, streams: Streams) -> dict[str, Any]:
    """Medians of a pass; CPU seconds of all threads beside it, since other work on the machine does not count there."""
    best = Settings.from_parameters(load_profile(_PROFILE))
    matrix = load_embeddings(
        DataConfig(embeddings=embeddings_name(WHISPER_WIDTH)), WHISPER_WIDTH, settings.seed, None, DATA_DIR
    ).matrix

    def trainer(kind: type[PredictivePass]) -> PredictivePass:
        return kind(NewLLM(best.model, matrix, settings.seed), streams.train, best.phase1, settings.seed)

    sides = {OURS: trainer(PredictivePass), AUTOGRAD: trainer(PassByAutograd), IN_FLOAT32: trainer(PredictivePass)}
    sides[IN_FLOAT32].loss_method, sides[IN_FLOAT32].rounded = "blocks", False
    processor_seconds: dict[str, list[float]] = {name: [] for name in sides}
    ways = {name: _pass(side, processor_seconds[name]) for name, side in sides.items()}
    for way in ways.values():
        way()
    for values in processor_seconds.values():  # the first pass loads code
        values.clear()
    found = compared(interleaved(ways, settings.repetitions), AUTOGRAD)
    return {**found, "processor": compared(processor_seconds, AUTOGRAD), "steps": sides[OURS].num_steps}


def _pass(side: PredictivePass, processor_seconds: list[float]) -> Callable[[], None]:
    def run() -> None:
        began, within = time.process_time(), PassState()
        for _ in side.steps(1 + len(processor_seconds), within):
            within.steps += 1
        processor_seconds.append(time.process_time() - began)

    return run
