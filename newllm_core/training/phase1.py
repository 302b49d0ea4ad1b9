"""Phase 1: the ContextBlock learns its contexts without labels (spec section 4).

The loop over iterations, the checks on validation text, and the choice of the iteration whose weights are kept. What is
minimised is the objective's: `cvfp.py` (the notes') or `predictive.py`.
"""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.language import Phase1Config
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import allocate_contexts
from newllm_core.metrics.rank import StreamRank, stream_rank
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.runs.checkpoint import (
    Checkpoint,
    CheckpointPlace,
    generator_states,
    joined,
    load_checkpoint,
    parted,
    restore_generators,
    save_checkpoint,
    with_circumstances,
)
from newllm_core.runs.progress import Seconds, Stopwatch, progress_bar
from newllm_core.training.fixed_point import CvfpPass, PassFigures, exact_or_refuse
from newllm_core.training.predictive import PredictivePass

# Tokens of the best pass that are kept to be held against exact contexts.
_STALE_TOKENS = 8192
# A checkpoint holds the contexts of all tokens (2 GB of a million): one after every iteration would cost more than it
# saves.
_CHECKPOINT_SECONDS = 300.0


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
        earlier: what training had taken before an interruption.
    """

    untrained_rank: StreamRank
    iterations: list[IterationRecord] = field(default_factory=list)
    best_iteration: int = 0
    stopped_early: bool = False
    stale_contexts: Tensor | None = None
    seconds: float | None = None
    earlier: Seconds = Seconds()


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
    model: NewLLM,
    train_tokens: Tensor,
    validation_tokens: Tensor,
    config: Phase1Config,
    seed: int,
    checkpoints: CheckpointPlace | None = None,
) -> Phase1Result:
    """Train ``model.context_block`` in place, leave the weights of the best validation check in it.

    Args:
        train_tokens: `[N]`, validation_tokens: `[M]`, both on the model's device.
        seed: of the context noise.
        checkpoints: one is written every five minutes and gone on from, with the same result to the last bit; None:
            none. The caller deletes the last one.

    Raises NotFiniteError when a loss term is not finite, ValueError for an unknown diversity algorithm, RunError for a
    checkpoint that is not this run's.
    """
    history = _Trainer(model, train_tokens, validation_tokens, config, seed, checkpoints).train()
    return finish_phase1(model, train_tokens, validation_tokens, history)


class _Trainer:
    def __init__(
        self, model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, config: Phase1Config, seed: int,
        checkpoints: CheckpointPlace | None,
    ) -> None:  # fmt: skip
        self.model, self.train_tokens, self.config, self.seed = model, train_tokens, config, seed
        # One more than is measured: the last token of a stream is left out of the effective rank.
        self.check_tokens = validation_tokens[: config.effective_rank_tokens + 1]
        self.zero = torch.zeros(model.context_block.context_dim, device=train_tokens.device)
        read = {
            "initial_block": list(model.context_block.state_dict().values()),
            "tokens": [train_tokens, validation_tokens],
            "embedding": [model.embedding],
        }
        self.checkpoints = checkpoints and with_circumstances(checkpoints, train_tokens.device, read)
        self.records: list[IterationRecord] = []
        self.best_score, self.best_iteration, self.checks_without_gain = -math.inf, 0, 0
        self.best_weights, self.stale = dict[str, Tensor](), self.zero.new_empty(0, len(self.zero))
        self.watch, self.saved = Stopwatch(), time.perf_counter()

    def train(self) -> Phase1History:
        untrained = stream_rank(self._check_contexts(iteration=0), self.config.effective_rank_tokens)
        if self.config.max_iterations == 0:
            return Phase1History(untrained)
        kind = CvfpPass if self.config.objective == "cvfp" else PredictivePass
        objective = kind(self.model, self.train_tokens, self.config, self.seed)
        self._resume(objective)
        done, last = len(self.records), self.config.max_iterations
        with progress_bar(total=last, initial=done, desc="Phase 1", unit="iteration") as progress:
            for iteration in range(done + 1, last + 1):
                self._iterate(objective, iteration)
                progress.update()
                self._show(progress)
                if self.checks_without_gain >= self.config.patience and iteration >= self.config.min_iterations:
                    break
                if self.checkpoints and time.perf_counter() - self.saved >= _CHECKPOINT_SECONDS:
                    save_checkpoint(self.checkpoints.folder, self._checkpoint(self.checkpoints, objective))
                    self.saved = time.perf_counter()
        self.model.context_block.load_state_dict(self.best_weights)
        stopped_early = len(self.records) < last
        return Phase1History(
            untrained, self.records, self.best_iteration, stopped_early, self.stale, self.watch.total().wall,
            self.watch.earlier,
        )  # fmt: skip

    def _iterate(self, objective: CvfpPass | PredictivePass, iteration: int) -> None:
        """One pass, and where it is due the check, whose weights are kept if no check before was as good."""
        figures = objective.iterate(iteration)
        train_rank = stream_rank(objective.previous, self.config.effective_rank_tokens)
        rank, prediction = None, None
        if iteration % self.config.check_interval == 0 or iteration == self.config.max_iterations:
            rank, prediction = self._check(objective, iteration)
            # Without labels: how well unseen text is predicted, or else how many directions it takes up.
            score = rank.share if prediction is None else -prediction
            self.checks_without_gain += 1
            if score > self.best_score:
                self.best_score, self.best_iteration, self.checks_without_gain = score, iteration, 0
                self.best_weights = copy.deepcopy(self.model.context_block.state_dict())
                self.stale = objective.previous[:_STALE_TOKENS].clone()
        self.records.append(_iteration_record(iteration, figures, train_rank, rank, prediction))

    def _checkpoint(self, place: CheckpointPlace, objective: CvfpPass | PredictivePass) -> Checkpoint:
        tensors, states = objective.state()
        parts = {
            "block": self.model.context_block.state_dict(), "best": self.best_weights, "objective": tensors,
            "stale": {"contexts": self.stale},
        }  # fmt: skip
        states |= {
            "best": [self.best_score, self.best_iteration, self.checks_without_gain],
            "seconds": self.watch.state(),
            **generator_states(self.zero.device),
        }
        return Checkpoint(place.configs, [asdict(record) for record in self.records], joined(parts), states)

    def _resume(self, objective: CvfpPass | PredictivePass) -> None:
        """Take up the checkpoint, if there is one."""
        found = load_checkpoint(self.checkpoints, self.zero.device)
        if found is None:
            return
        parts = parted(found.tensors, ("block", "best", "objective", "stale"))
        self.model.context_block.load_state_dict(parts["block"])
        objective.load_state(parts["objective"], found.states)
        self.best_score, self.best_iteration, self.checks_without_gain = found.states["best"]
        self.best_weights, self.stale = parts["best"], parts["stale"]["contexts"]
        self.records = [_stored_record(figures) for figures in found.epochs]
        self.watch.resume(found.states["seconds"])
        restore_generators(found.states, self.zero.device)

    def _show(self, progress: Any) -> None:
        record = self.records[-1]
        shown = {
            "cvfp": f"{record.cvfp:.4f}",
            self.config.diversity_algorithm: f"{record.diversity:.4f}",
            "converged": f"{record.converged / len(self.train_tokens):.1%}",
            "ER train": f"{record.train_rank.share:.1%}",
        }
        if record.prediction is not None:
            shown["prediction"] = f"{record.prediction:.4f}"
        if self.best_iteration:
            shown["best check"] = f"{abs(self.best_score):.4f}"
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


def _stored_record(figures: Mapping[str, Any]) -> IterationRecord:
    """What `asdict` made of one."""
    ranks = {name: figures[name] and StreamRank(**figures[name]) for name in ("train_rank", "validation_rank")}
    return IterationRecord(**{**figures, **ranks})
