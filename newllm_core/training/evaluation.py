"""How well frozen contexts predict: nats and accuracy of each target, exactly, and with the continuous cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import Phase2Config
from newllm_core.contexts.store import context_batches
from newllm_core.head.continuous_cache import cached_nats
from newllm_core.head.cross_entropy import Head
from newllm_core.model import NewLLM

_BATCH = 4096  # tokens


@dataclass(frozen=True)
class Evaluation:
    """Per-token figures of a stream: nats `[n]` and whether the arg-max was right `[n]`, for its n = N - 1 targets."""

    nats: Tensor
    correct: Tensor

    @property
    def mean_nats(self) -> float:
        return float(self.nats.double().mean())

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())


@torch.no_grad()
def evaluate(
    model: NewLLM, contexts: Tensor, tokens: Tensor, head: Head, cache: Phase2Config | None = None
) -> Evaluation:
    """Context i predicts token i + 1. `contexts [N, L, C], tokens [N]`, N >= 2 -> figures of N - 1 targets.

    ``cache``: whose continuous cache, if it has one, is mixed into the losses; its states are the `[n, E]` hidden
    states. Accuracy stays the model's.
    """
    mixes = cache is not None and cache.cache_weight > 0
    hidden, nats, correct = [], [], []
    for batch in context_batches(contexts, tokens, torch.arange(len(tokens) - 1).split(_BATCH)):
        states = model.hidden(batch.contexts, batch.tokens)
        figures = head.token_figures(states, batch.targets)
        nats.append(figures.nats)
        correct.append(figures.correct)
        if mixes:
            # Without a bias's two unit columns, which would make every state a little more like every other.
            hidden.append(states[:, : model.config.embed_dim].cpu())
    plain = Evaluation(torch.cat(nats).cpu(), torch.cat(correct).cpu())
    if cache is None or not mixes:
        return plain
    mixed = cached_nats(
        plain.nats, torch.cat(hidden), tokens.cpu(),
        weight=cache.cache_weight, scale=cache.cache_scale, num_cached=cache.cache_tokens,
    )  # fmt: skip
    return Evaluation(mixed, plain.correct)


def evaluation_head(model: NewLLM, head_method: str) -> Head:
    """Exact products for the figures that are compared across runs, whatever training rounds."""
    return Head(model.output_weight().detach(), "direct" if head_method == "direct" else "blocks")
