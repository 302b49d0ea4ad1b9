"""Phase 1: the ContextBlock learns, without labels, contexts that stay put and spread out (spec section 4).

One iteration sees every token once and takes one optimizer step. Token i is computed from the context that token
i - 1 had before: in the previous iteration (`context_source = previous_iteration`), or exactly, with the weights of
now (`exact`). That makes an iteration one large batch instead of a loop.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from newllm_core.config import Phase1Config
from newllm_core.context_store import allocate_contexts
from newllm_core.contexts import ExactContexts, NotFiniteContextsError, TokenEmbeds, exact_contexts
from newllm_core.losses import cvfp_loss, diversity_loss
from newllm_core.metrics import StreamRank, count_converged, stream_rank
from newllm_core.model import ContextBlock, NewLLM, StreamEmbeddings
from newllm_core.progress import progress_bar
from newllm_core.runs import derived_generator

# Noise is drawn in blocks of this many token positions, so that it does not depend on the batches.
_NOISE_BLOCK = 1000
# Batches whose exact contexts are computed in one call: enough tokens to run in parallel, few enough to hold.
_EXACT_GROUP = 8
# Tokens of the best pass that are kept to be held against exact contexts.
_STALE_TOKENS = 8192


class NotFiniteError(RuntimeError):
    """A loss became infinite or not a number; the message names the term and where."""


@dataclass(frozen=True)
class IterationRecord:
    """One iteration's figures; loss terms are means over its batches, unweighted."""

    iteration: int
    cvfp: float
    diversity: float
    total: float
    gradient_norm: float
    converged: int
    train_rank: StreamRank
    validation_rank: StreamRank | None  # only where checked

    def record(self) -> dict[str, Any]:
        figures = asdict(self)
        figures["train_rank"] = self.train_rank.record()
        figures["validation_rank"] = self.validation_rank.record() if self.validation_rank else None
        return figures


@dataclass(frozen=True)
class Phase1History:
    """What happened during training.

    Attributes:
        untrained_rank: validation effective rank before training.
        iterations: one record each.
        best_iteration: the one whose weights were kept; 0 when nothing was trained.
        stopped_early: whether the validation rank stopped improving before `max_iterations`.
        stale_contexts: `[n, C]`, the first contexts of the best iteration's pass, one step behind the kept weights;
            None when nothing was trained.
        seconds: of training, checks included; None when nothing was trained.
    """

    untrained_rank: StreamRank
    iterations: list[IterationRecord] = field(default_factory=list)
    best_iteration: int = 0
    stopped_early: bool = False
    stale_contexts: Tensor | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Phase1Result:
    """What Phase 2 gets: exact contexts of the kept weights, from the zero context, and what led there.

    Attributes:
        train_contexts: `[num_train_tokens, L, C]`.
        validation_contexts: `[num_validation_tokens, L, C]`.
        history: of the training; None where the weights were loaded.
    """

    train_contexts: Tensor
    validation_contexts: Tensor
    history: Phase1History | None


def batch_slices(num_tokens: int, batch_tokens: int, min_last_batch: int) -> list[slice]:
    """Consecutive batches; a last one of fewer than ``min_last_batch`` tokens joins the one before."""
    firsts = list(range(0, num_tokens, batch_tokens))
    if len(firsts) > 1 and num_tokens - firsts[-1] < min_last_batch:
        firsts.pop()
    return [slice(first, last) for first, last in zip(firsts, [*firsts[1:], num_tokens], strict=True)]


def context_noise(rows: slice, context_dim: int, std: float, seed: int, iteration: int) -> Tensor:
    """Noise `[rows, C]` that depends on seed, iteration and token position, not on how tokens are batched."""
    first_block, last_block = rows.start // _NOISE_BLOCK, (rows.stop - 1) // _NOISE_BLOCK
    blocks = [
        torch.randn(_NOISE_BLOCK, context_dim, generator=derived_generator("noise", seed, iteration, block))
        for block in range(first_block, last_block + 1)
    ]
    offset = rows.start - first_block * _NOISE_BLOCK
    return torch.cat(blocks)[offset : offset + rows.stop - rows.start].mul_(std)


def all_contexts(model: NewLLM, tokens: Tensor) -> Tensor:
    """Exact contexts of all layers from the zero context. `[N]` token ids -> `[N, L, C]`."""
    block = model.context_block
    zero = torch.zeros(block.context_dim, device=tokens.device)
    cache = allocate_contexts(len(tokens), block.num_layers, block.context_dim, tokens.device)
    return exact_contexts(block, StreamEmbeddings(model, tokens), zero, all_layers=True, out=cache).contexts


def finish_phase1(
    model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, history: Phase1History | None
) -> Phase1Result:
    """The result of Phase 1 for a model that already carries the kept weights."""
    return Phase1Result(all_contexts(model, train_tokens), all_contexts(model, validation_tokens), history)


def train_phase1(
    model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, config: Phase1Config, seed: int
) -> Phase1Result:
    """Train ``model.context_block`` in place, leave the weights of the best validation check in it.

    Args:
        train_tokens: `[N]`, validation_tokens: `[M]`, both on the model's device.
        seed: of the context noise.

    Raises NotFiniteError when a loss term is not finite, ValueError for an unknown diversity algorithm.
    """
    history = _Trainer(model, train_tokens, validation_tokens, config, seed).train()
    return finish_phase1(model, train_tokens, validation_tokens, history)


class _Trainer:
    def __init__(
        self, model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, config: Phase1Config, seed: int
    ) -> None:
        self.block: ContextBlock = model.context_block
        self.embeds = StreamEmbeddings(model, train_tokens)
        # One more than is measured: the last token of a stream is left out of the effective rank.
        self.check_embeds = StreamEmbeddings(model, validation_tokens[: config.effective_rank_tokens + 1])
        self.config, self.seed = config, seed
        self.diversity = diversity_loss(config.diversity_algorithm)
        self.optimizer = torch.optim.Adam(self.block.parameters(), lr=config.learning_rate)
        self.zero = torch.zeros(self.block.context_dim, device=train_tokens.device)
        self.batches = batch_slices(len(train_tokens), config.batch_tokens, config.min_last_batch)

    def train(self) -> Phase1History:
        began = time.perf_counter()
        untrained = self._validation_rank(iteration=0)
        if self.config.max_iterations == 0:
            return Phase1History(untrained)
        # Iteration 0: contexts without training. Rewritten in place, batch by batch, by every iteration.
        self.previous = exact_contexts(self.block, self.embeds, self.zero).contexts
        records: list[IterationRecord] = []
        best_share, best_iteration, best_weights, checks_without_gain = -math.inf, 0, {}, 0
        stale = self.previous[:0]
        progress = progress_bar(range(1, self.config.max_iterations + 1), desc="Phase 1", unit="iteration")
        for iteration in progress:
            rank = None
            figures = self._iterate(iteration)
            if iteration % self.config.check_interval == 0 or iteration == self.config.max_iterations:
                rank = self._validation_rank(iteration)
                checks_without_gain += 1
                if rank.share > best_share:
                    best_share, best_iteration, checks_without_gain = rank.share, iteration, 0
                    best_weights = copy.deepcopy(self.block.state_dict())
                    stale = self.previous[:_STALE_TOKENS].clone()
            records.append(IterationRecord(iteration=iteration, validation_rank=rank, **figures))
            self._show(progress, records[-1], best_share)
            if checks_without_gain >= self.config.patience and iteration >= self.config.min_iterations:
                break
        progress.close()
        self.block.load_state_dict(best_weights)
        stopped_early = len(records) < self.config.max_iterations
        return Phase1History(untrained, records, best_iteration, stopped_early, stale, time.perf_counter() - began)

    def _show(self, progress: Any, record: IterationRecord, best_share: float) -> None:
        shown = {
            "cvfp": f"{record.cvfp:.4f}",
            self.config.diversity_algorithm: f"{record.diversity:.4f}",
            "converged": f"{record.converged / len(self.embeds):.1%}",
            "ER train": f"{record.train_rank.share:.1%}",
        }
        if best_share > -math.inf:
            shown["best ER val"] = f"{best_share:.1%}"
        progress.set_postfix(shown)

    @torch.no_grad()
    def _validation_rank(self, iteration: int) -> StreamRank:
        contexts = self._exact(self.check_embeds, self.zero, iteration).contexts
        return stream_rank(contexts, self.config.effective_rank_tokens)

    def _iterate(self, iteration: int) -> dict[str, Any]:
        """One pass over all batches and one step; returns the fields of its IterationRecord."""
        self.optimizer.zero_grad(set_to_none=True)
        # Sums stay on the device: reading one per batch would make a GPU wait.
        sums = self.zero.new_zeros(3, dtype=torch.float64)
        converged = torch.zeros((), dtype=torch.int64, device=self.zero.device)
        for rows, inputs, previous in self._inputs(iteration):
            contexts = self.block(self._with_noise(inputs, rows, iteration), self.embeds[rows])
            terms = cvfp_loss(contexts, previous), self.diversity(contexts)
            weight = self.config.dist_reg_weight
            total = (1 - weight) * terms[0] + weight * terms[1]
            (total / len(self.batches)).backward()
            contexts = contexts.detach()
            sums += torch.stack([*terms, total]).detach()
            converged += count_converged(contexts, previous, self.config.convergence_threshold)
            if self.config.context_source == "previous_iteration":
                previous.copy_(contexts)
        cvfp, diversity, total_loss = (sums / len(self.batches)).tolist()
        self._refuse_not_finite(iteration, {"cvfp": cvfp, self.config.diversity_algorithm: diversity})
        norm = torch.nn.utils.clip_grad_norm_(self.block.parameters(), self.config.gradient_clip)
        self._refuse_not_finite(iteration, {"gradient norm": float(norm)})
        rank = stream_rank(self.previous, self.config.effective_rank_tokens)
        self.optimizer.step()
        largest = max(float(parameter.detach().abs().max()) for parameter in self.block.parameters())
        self._refuse_not_finite(iteration, {"largest weight": largest})
        return {
            "cvfp": cvfp, "diversity": diversity, "total": total_loss, "gradient_norm": float(norm),
            "converged": int(converged), "train_rank": rank,
        }  # fmt: skip

    def _inputs(self, iteration: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Per batch: its rows, the contexts entering them, and a view of the previous iteration's contexts there.

        Token 0 is entered by the last context of the previous iteration, the carry-over. The stored contexts of a
        batch change before the next batch is drawn, so the row between two batches is kept aside.
        """
        if self.config.context_source == "exact":
            yield from self._exact_inputs(iteration)
            return
        entering = self.previous[-1:].clone()
        for rows in self.batches:
            inputs = torch.cat([entering, self.previous[rows.start : rows.stop - 1]])
            entering = self.previous[rows.stop - 1 : rows.stop].clone()
            yield rows, inputs, self.previous[rows]

    def _exact_inputs(self, iteration: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The same with exact contexts of the current weights; CVFP still compares with the iteration before."""
        entering = self.previous[-1].clone()
        for first in range(0, len(self.batches), _EXACT_GROUP):
            group = self.batches[first : first + _EXACT_GROUP]
            offset = group[0].start
            # Written behind the entering context: what enters token i lies in row i.
            inputs = self.zero.new_empty(group[-1].stop - offset + 1, self.block.num_layers, self.block.context_dim)
            inputs[0, -1] = entering
            window = _Rows(self.embeds, slice(offset, group[-1].stop))
            current = self._exact(window, entering, iteration, inputs[1:])
            inputs, entering = inputs[:, -1], current.end
            for rows in group:
                yield rows, inputs[rows.start - offset : rows.stop - offset], self.previous[rows]
            self.previous[offset : group[-1].stop] = current.contexts

    def _exact(self, embeds: TokenEmbeds, initial: Tensor, iteration: int, out: Tensor | None = None) -> ExactContexts:
        try:
            return exact_contexts(self.block, embeds, initial, out=out)
        except NotFiniteContextsError as error:
            raise NotFiniteError(f"Phase 1, iteration {iteration}: {error}") from error

    def _with_noise(self, inputs: Tensor, rows: slice, iteration: int) -> Tensor:
        if self.config.context_noise == 0:
            return inputs
        noise = context_noise(rows, inputs.shape[1], self.config.context_noise, self.seed, iteration)
        return inputs + noise.to(inputs.device, non_blocking=True)

    def _refuse_not_finite(self, iteration: int, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"Phase 1, iteration {iteration}: {name} is {value}. Training stops here; nothing was saved. "
                    "A smaller learning rate or gradient clip is the usual remedy."
                )


@dataclass(frozen=True)
class _Rows:
    """A window of a stream's embeddings, sliced from its own start."""

    embeds: StreamEmbeddings
    rows: slice

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        return self.embeds[self.rows.start + start : self.rows.start + stop]
