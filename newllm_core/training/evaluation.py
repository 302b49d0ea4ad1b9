"""How well frozen contexts predict: nats and accuracy of each target, exactly, with cache and counted n-grams."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import Phase2Config
from newllm_core.contexts.store import Batch, context_batches
from newllm_core.gpu_memory import find_executable
from newllm_core.head.continuous_cache import configured_cache
from newllm_core.head.cross_entropy import Head
from newllm_core.head.mixture import mixed_nats
from newllm_core.model import NewLLM
from newllm_core.runs.world import current_world

_BATCH = 4096  # tokens at once, fewer where memory runs out


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
    model: NewLLM, contexts: Tensor, tokens: Tensor, head: Head, mixed: Phase2Config | None = None
) -> Evaluation:
    """Context i predicts token i + 1. `contexts [N, L, C], tokens [N]`, N >= 2 -> figures of N - 1 targets.

    ``mixed``: whose continuous cache, if it has one, is mixed into the losses, as are then the model's counted n-grams;
    the cache's states are the `[n, E]` hidden states. Accuracy stays the model's. Each rank reads its part, and has the
    figures of all.
    """
    cache = configured_cache(mixed)
    parts, world, num_targets = list[_Part](), current_world(), len(tokens) - 1
    own = world.part(slice(0, num_targets))

    def read_all(size: int) -> None:
        parts.clear()
        for batch in context_batches(contexts, tokens, torch.arange(own.start, own.stop).split(size)):
            parts.append(_read(model, batch, head, keep_states=cache is not None))

    find_executable(read_all, _BATCH)
    nats, correct = torch.cat([part.nats for part in parts]).cpu(), torch.cat([part.correct for part in parts]).cpu()
    plain = Evaluation(world.gathered(nats, num_targets), world.gathered(correct, num_targets))
    if mixed is None:
        return plain

    def states() -> Tensor:
        return world.gathered(torch.cat([part.states for part in parts if part.states is not None]), num_targets)

    return Evaluation(mixed_nats(plain.nats, tokens.cpu(), cache, model.ngrams, states), plain.correct)


class _Part(NamedTuple):
    """Of a batch of n targets; the hidden states `[n, E]` only where the cache asks for them."""

    nats: Tensor
    correct: Tensor
    states: Tensor | None


def _read(model: NewLLM, batch: Batch, head: Head, *, keep_states: bool) -> _Part:
    states = model.hidden(batch.contexts, batch.tokens)
    figures = head.token_figures(states, batch.targets)
    # Without a bias's two unit columns, which would make every state a little more like every other.
    kept = states[:, : model.config.embed_dim].cpu() if keep_states else None
    return _Part(figures.nats, figures.correct, kept)


def evaluation_head(model: NewLLM, head_method: str) -> Head:
    """Exact products for the figures that are compared across runs, whatever training rounds."""
    return Head(model.output_weight().detach(), "direct" if head_method == "direct" else "blocks")
