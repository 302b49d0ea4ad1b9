"""The notes' algorithm as a reader would write it down: docs/method.md, sections 2, 4 and 5, nothing optimised.

One Linear of the concatenation per layer, a Python loop over the tokens for sequential contexts, a full matrix of
logits, a full SVD for the effective rank. The benchmarks measure the project against this, and the tests check that
both compute the same. It reads the weights of a `NewLLM`, so that both start from the same numbers.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.config.hyperparameters import Phase1Config, Phase2Config
from newllm_core.model import ContextBlock, ContextLayer, NewLLM, TokenBlock, TokenLayer

NoiseSource = Callable[[slice, int, int], Tensor]  # rows, width, iteration -> [rows, width], standard deviation 1


class PlainLayer(nn.Module):
    """`LayerNorm(residual + GELU(Linear([context; token])))`."""

    def __init__(self, context_dim: int, token_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim + token_dim, output_dim)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, residual: Tensor, context: Tensor, token: Tensor) -> Tensor:
        normed: Tensor = self.norm(residual + functional.gelu(self.linear(torch.cat([context, token], dim=1))))
        return normed


class PlainNotes(nn.Module):
    """Embedding `[V, E]`, L context layers, L token layers, and the embedding again as the head.

    Args:
        model: its weights are copied.

    Raises ValueError for a model with a trained or untied embedding, or with more than one input token.
    """

    def __init__(self, model: NewLLM) -> None:
        super().__init__()
        shape = model.config
        if shape.num_input_tokens != 1 or not (shape.tie_weights and shape.freeze_embedding):
            raise ValueError(f"PlainNotes: expected one input token and a tied, frozen embedding, given {shape}")
        self.context_dim = shape.context_dim
        self.embedding = nn.Parameter(model.embedding.detach().clone(), requires_grad=False)
        self.embed_norm = copy.deepcopy(model.embed_norm)
        self.context_layers = _copied_layers(model.context_block, shape.context_dim, shape.embed_dim)
        self.token_layers = _copied_layers(model.token_block, shape.context_dim, shape.embed_dim)

    def embed(self, tokens: Tensor) -> Tensor:
        """`[n]` -> `[n, E]`."""
        normed: Tensor = self.embed_norm(self.embedding[tokens])
        return normed

    def step_contexts(self, context: Tensor, embeds: Tensor) -> list[Tensor]:
        """`[n, C], [n, E]` -> L × `[n, C]`."""
        contexts = []
        for layer in self.context_layers:
            context = layer(context, context, embeds)
            contexts.append(context)
        return contexts

    @torch.no_grad()
    def loop_contexts(self, embeds: Tensor, initial: Tensor) -> Tensor:
        """Token by token. `[N, E], [C]` -> `[N, L, C]`."""
        context = initial.unsqueeze(0)
        stored: list[list[Tensor]] = [[] for _ in self.context_layers]
        for position in range(len(embeds)):
            contexts = self.step_contexts(context, embeds[position : position + 1])
            context = contexts[-1]
            for store, value in zip(stored, contexts):
                store.append(value)
        return torch.stack([torch.cat(store) for store in stored], dim=1)

    @torch.no_grad()
    def stream_contexts(self, tokens: Tensor) -> Tensor:
        """From the zero context. `[N]` -> `[N, L, C]`."""
        return self.loop_contexts(self.embed(tokens), self.embedding.new_zeros(self.context_dim))

    def hidden(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """`[n, L, C], [n]` -> `[n, E]`."""
        token = self.embed(tokens)
        for number, layer in enumerate(self.token_layers):
            token = layer(token, contexts[:, number], token)
        return token

    def logits(self, hidden: Tensor) -> Tensor:
        """`[n, E]` -> `[n, V]`."""
        return hidden @ self.embedding.T


def _copied_layers(block: nn.Module, context_dim: int, embed_dim: int) -> nn.ModuleList:
    assert isinstance(block, ContextBlock | TokenBlock)
    copies = []
    for layer in block.layers:
        assert isinstance(layer, ContextLayer | TokenLayer) and layer.from_token is not None
        plain = PlainLayer(context_dim, embed_dim, len(layer.norm.weight))
        with torch.no_grad():
            plain.linear.weight.copy_(torch.cat([layer.from_context.weight, layer.from_token.weight], dim=1))
            plain.linear.bias.copy_(layer.from_context.bias)
        plain.norm.load_state_dict(layer.norm.state_dict())
        copies.append(plain)
    return nn.ModuleList(copies)


def effective_rank(contexts: Tensor) -> float:
    """`exp(H(p))` of the singular values, by a full SVD. `[n, d]` -> 1 … min(n, d)."""
    sigma = torch.linalg.svdvals(contexts)
    share = sigma / sigma.sum()
    return math.exp(float(-(share * torch.log(share + 1e-12)).sum()))


def random_noise(rows: slice, width: int, iteration: int) -> Tensor:
    return torch.randn(rows.stop - rows.start, width)


class PlainPhase1:
    """The parallel iteration of docs/method.md, section 4, MCDL only."""

    def __init__(
        self, model: PlainNotes, tokens: Tensor, config: Phase1Config, noise: NoiseSource = random_noise
    ) -> None:
        self.model, self.config, self.noise = model, config, noise
        self.embeds = model.embed(tokens)
        self.optimizer = torch.optim.Adam(model.context_layers.parameters(), lr=config.learning_rate)
        self.previous = model.loop_contexts(self.embeds, torch.zeros(model.context_dim))[:, -1]
        starts = list(range(0, len(tokens), config.batch_tokens))
        if len(starts) > 1 and len(tokens) - starts[-1] < config.min_last_batch:
            starts.pop()
        self.batches = [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(tokens)])]

    def iterate(self, iteration: int) -> float:
        """All tokens once and one step; the mean loss of the batches."""
        self.optimizer.zero_grad()
        entering = torch.cat([self.previous[-1:], self.previous[:-1]])
        computed, losses = [], []
        for rows in self.batches:
            noise = self.config.context_noise * self.noise(rows, self.model.context_dim, iteration)
            contexts = self.model.step_contexts(entering[rows] + noise, self.embeds[rows])[-1]
            loss = self.loss(contexts, self.previous[rows])
            (loss / len(self.batches)).backward()
            losses.append(loss.item())
            computed.append(contexts.detach())
        torch.nn.utils.clip_grad_norm_(self.model.context_layers.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.previous = torch.cat(computed)
        return sum(losses) / len(losses)

    def loss(self, contexts: Tensor, previous: Tensor) -> Tensor:
        cvfp = functional.mse_loss(contexts, previous)
        diversity = -torch.linalg.matrix_norm(contexts - contexts.mean(dim=0)) / len(contexts)
        return (1 - self.config.dist_reg_weight) * cvfp + self.config.dist_reg_weight * diversity

    def validation_rank(self, tokens: Tensor) -> float:
        """Effective rank of the first validation contexts, computed by the loop."""
        limit = self.config.effective_rank_tokens
        contexts = self.model.stream_contexts(tokens[: limit + 1])[:, -1]
        return effective_rank(contexts[:-1])


@dataclass(frozen=True)
class TrainedPhase1:
    """Contexts of both streams `[N, L, C]` under the weights of the best check, and how many iterations were done."""

    train: Tensor
    validation: Tensor
    iterations: int


def train_phase1(
    model: PlainNotes, tokens: Tensor, validation: Tensor, config: Phase1Config, noise: NoiseSource
) -> TrainedPhase1:
    """Iterations until `patience` checks in a row bring no better rank, the weights of the best one kept."""
    phase = PlainPhase1(model, tokens, config, noise)
    best_rank, best_weights, worse = -math.inf, model.context_layers.state_dict(), 0
    for iteration in range(1, config.max_iterations + 1):
        phase.iterate(iteration)
        if iteration % config.check_interval and iteration != config.max_iterations:
            continue
        rank, worse = phase.validation_rank(validation), worse + 1
        if rank > best_rank:
            best_rank, best_weights, worse = rank, copy.deepcopy(model.context_layers.state_dict()), 0
        if worse >= config.patience and iteration >= config.min_iterations:
            break
    model.context_layers.load_state_dict(best_weights)
    return TrainedPhase1(model.stream_contexts(tokens), model.stream_contexts(validation), iteration)


@dataclass(frozen=True)
class Figures:
    """Mean nats per token and share of correct arg-max predictions."""

    mean_nats: float
    accuracy: float


class PlainPhase2:
    """Next-token training of docs/method.md, section 5 on stored contexts `[N, L, C]`."""

    def __init__(self, model: PlainNotes, contexts: Tensor, tokens: Tensor, config: Phase2Config) -> None:
        self.model, self.contexts, self.tokens, self.config = model, contexts, tokens, config
        self.optimizer = torch.optim.Adam(model.token_layers.parameters(), lr=config.learning_rate)

    def step(self, positions: Tensor) -> Figures:
        """One batch, one step. `[n]` positions of the predicting tokens."""
        targets = self.tokens[positions + 1]
        logits = self.model.logits(self.model.hidden(self.contexts[positions], self.tokens[positions]))
        loss = functional.cross_entropy(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.token_layers.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return Figures(loss.item(), (logits.argmax(dim=1) == targets).float().mean().item())

    def epoch(self, order: Tensor) -> Figures:
        """Every position of ``order`` once, in that order."""
        batches = order.split(self.config.effective_batch_size)
        return _weighted([self.step(batch) for batch in batches], [len(batch) for batch in batches])

    @torch.no_grad()
    def evaluate(self, contexts: Tensor, tokens: Tensor) -> Figures:
        """`[M, L, C], [M]`: figures of the M - 1 targets."""
        figures, counts = [], []
        for positions in torch.arange(len(tokens) - 1).split(self.config.effective_batch_size):
            targets = tokens[positions + 1]
            logits = self.model.logits(self.model.hidden(contexts[positions], tokens[positions]))
            loss = functional.cross_entropy(logits, targets)
            figures.append(Figures(loss.item(), (logits.argmax(dim=1) == targets).float().mean().item()))
            counts.append(len(positions))
        return _weighted(figures, counts)


def _weighted(figures: list[Figures], counts: list[int]) -> Figures:
    total = sum(counts)
    return Figures(
        sum(part.mean_nats * count for part, count in zip(figures, counts)) / total,
        sum(part.accuracy * count for part, count in zip(figures, counts)) / total,
    )
