"""Phase 1: the ContextBlock learns its contexts without labels (spec section 4).

The loop over iterations, the checks on validation text, and the choice of the iteration whose weights are kept. What is
minimised is the objective's: `cvfp.py` (the notes') or `predictive.py`.
"""

import copy
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from newllm_core.config import Phase1Config
from newllm_core.context_store import allocate_contexts
from newllm_core.contexts import exact_contexts
from newllm_core.cvfp import CvfpPass, PassFigures, exact_or_refuse
from newllm_core.metrics import StreamRank, stream_rank
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.predictive import PredictivePass
from newllm_core.progress import progress_bar

# Tokens of the best pass that are kept to be held against exact contexts.
_STALE_TOKENS = 8192


@dataclass(frozen=True)
class IterationRecord(PassFigures):
    """One iteration's figures, with its ranks; what is of the validation text is None where it was not checked."""

    iteration: int
    train_rank: StreamRank
    validation_rank: StreamRank | None
    validation_prediction: float | None

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
        stopped_early: whether the checks stopped improving before `max_iterations`.
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
        self.model, self.train_tokens, self.config, self.seed = model, train_tokens, config, seed
        # One more than is measured: the last token of a stream is left out of the effective rank.
        self.check_tokens = validation_tokens[: config.effective_rank_tokens + 1]
        self.zero = torch.zeros(model.context_block.context_dim, device=train_tokens.device)

    def train(self) -> Phase1History:
        began = time.perf_counter()
        untrained = stream_rank(self._check_contexts(iteration=0), self.config.effective_rank_tokens)
        if self.config.max_iterations == 0:
            return Phase1History(untrained)
        kind = CvfpPass if self.config.objective == "cvfp" else PredictivePass
        objective = kind(self.model, self.train_tokens, self.config, self.seed)
        records: list[IterationRecord] = []
        best_score, best_iteration, best_weights, checks_without_gain = -math.inf, 0, {}, 0
        stale = objective.previous[:0]
        progress = progress_bar(range(1, self.config.max_iterations + 1), desc="Phase 1", unit="iteration")
        for iteration in progress:
            figures = objective.iterate(iteration)
            train_rank = stream_rank(objective.previous, self.config.effective_rank_tokens)
            rank, prediction = None, None
            if iteration % self.config.check_interval == 0 or iteration == self.config.max_iterations:
                rank, prediction = self._check(objective, iteration)
                # Without labels: how well unseen text is predicted, or else how many directions it takes up.
                score = rank.share if prediction is None else -prediction
                checks_without_gain += 1
                if score > best_score:
                    best_score, best_iteration, checks_without_gain = score, iteration, 0
                    best_weights = copy.deepcopy(self.model.context_block.state_dict())
                    stale = objective.previous[:_STALE_TOKENS].clone()
            records.append(_iteration_record(iteration, figures, train_rank, rank, prediction))
            self._show(progress, records[-1], best_score)
            if checks_without_gain >= self.config.patience and iteration >= self.config.min_iterations:
                break
        progress.close()
        self.model.context_block.load_state_dict(best_weights)
        stopped_early = len(records) < self.config.max_iterations
        return Phase1History(untrained, records, best_iteration, stopped_early, stale, time.perf_counter() - began)

    def _show(self, progress: Any, record: IterationRecord, best_score: float) -> None:
        shown = {
            "cvfp": f"{record.cvfp:.4f}",
            self.config.diversity_algorithm: f"{record.diversity:.4f}",
            "converged": f"{record.converged / len(self.train_tokens):.1%}",
            "ER train": f"{record.train_rank.share:.1%}",
        }
        if record.prediction is not None:
            shown["prediction"] = f"{record.prediction:.4f}"
        if best_score > -math.inf:
            shown["best check"] = f"{abs(best_score):.4f}"
        progress.set_postfix(shown)

    def _check(self, objective: CvfpPass | PredictivePass, iteration: int) -> tuple[StreamRank, float | None]:
        contexts = self._check_contexts(iteration)
        rank = stream_rank(contexts, self.config.effective_rank_tokens)
        return rank, objective.held_out_prediction(contexts, self.check_tokens)

    @torch.no_grad()
    def _check_contexts(self, iteration: int) -> Tensor:
        return exact_or_refuse(
            self.model, StreamEmbeddings(self.model, self.check_tokens), self.zero, iteration
        ).contexts


def _iteration_record(
    iteration: int, figures: PassFigures, train_rank: StreamRank, rank: StreamRank | None, prediction: float | None
) -> IterationRecord:
    return IterationRecord(
        iteration=iteration, train_rank=train_rank, validation_rank=rank, validation_prediction=prediction,
        **asdict(figures),
    )  # fmt: skip
