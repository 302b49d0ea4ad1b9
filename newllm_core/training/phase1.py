"""Phase 1: the ContextBlock learns its contexts without labels (docs/method.md, section 4).

The checks on text that is not trained on, and the choice of the iteration whose weights are kept. What is minimised is
the objective's: `fixed_point.py` (the notes') or `predictive.py`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import allocate_contexts
from newllm_core.losses import NotFiniteError
from newllm_core.metrics.rank import StreamRank, stream_rank
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.runs.checkpoint import CheckpointPlace, with_read_data
from newllm_core.runs.progress import Seconds
from newllm_core.training.fixed_point import CvfpPass, PassFigures
from newllm_core.training.loop import TrainingLoop
from newllm_core.training.predictive import PredictivePass

logger = logging.getLogger("newllm")

# Tokens of the best pass that are kept to be held against exact contexts.
_STALE_TOKENS = 8192


@dataclass(frozen=True)
class IterationRecord(PassFigures):
    """One iteration's figures, with its ranks; ``validation_…`` is of the text that chooses, None where it was not
    checked."""

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
        selection_contexts: `[num_selection_tokens, L, C]`, of the text that chooses; None where validation does.
    """

    train_contexts: Tensor
    validation_contexts: Tensor
    history: Phase1History | None
    selection_contexts: Tensor | None = None


def all_contexts(model: NewLLM, tokens: Tensor) -> Tensor:
    """Exact contexts of all layers from the zero context. `[N]` token ids -> `[N, L, C]`."""
    block = model.context_block
    zero = torch.zeros(block.context_dim, device=tokens.device)
    cache = allocate_contexts(len(tokens), block.num_layers, block.context_dim, tokens.device)
    return exact_contexts(block, StreamEmbeddings(model, tokens), zero, all_layers=True, out=cache).contexts


def finish_phase1(
    model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, history: Phase1History | None,
    selection_tokens: Tensor | None = None,
) -> Phase1Result:  # fmt: skip
    """The result of Phase 1 on `[N]`, `[M]` and `[S]` tokens, for a model that already carries the kept weights."""
    train, validation = (all_contexts(model, tokens) for tokens in (train_tokens, validation_tokens))
    selection = None
    if selection_tokens is not None and selection_tokens is not validation_tokens:
        selection = all_contexts(model, selection_tokens)
    return Phase1Result(train, validation, history, selection)


def train_phase1(
    model: NewLLM,
    train_tokens: Tensor,
    validation_tokens: Tensor,
    config: Phase1Config,
    seed: int,
    checkpoints: CheckpointPlace | None = None,
    selection_tokens: Tensor | None = None,
) -> Phase1Result:
    """Train ``model.context_block`` in place, leave the weights of the best check in it.

    Args:
        train_tokens: `[N]`, validation_tokens: `[M]`, both on the model's device.
        selection_tokens: `[S]`, what the checks are made on; None: on ``validation_tokens``.
        seed: of the context noise.
        checkpoints: where they are written and gone on from, with the same result to the last bit; None: none. The
            caller deletes the last ones.

    Raises NotFiniteError when a loss term is not finite, ValueError for an unknown diversity algorithm, RunError for a
    checkpoint that is not this run's.
    """
    trainer = _Trainer(model, train_tokens, validation_tokens, config, seed, checkpoints, selection_tokens)
    return finish_phase1(model, train_tokens, validation_tokens, trainer.history(), selection_tokens)


class _Trainer(TrainingLoop[IterationRecord]):
    name, unit = "Phase 1", "iteration"

    def __init__(
        self, model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, config: Phase1Config, seed: int,
        checkpoints: CheckpointPlace | None, selection_tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model, self.block, self.config = model, model.context_block, config
        self.train_tokens, self.seed = train_tokens, seed
        choosing = validation_tokens if selection_tokens is None else selection_tokens
        # One more than is measured: the last token of a stream is left out of the effective rank.
        measured = slice(config.effective_rank_tokens + 1)
        self.check_tokens, self.validation_tokens = choosing[measured], validation_tokens[measured]
        read = {
            "initial_block": list(self.block.state_dict().values()),
            "tokens": [train_tokens, choosing],
            "embedding": [model.embedding],
        }
        device = train_tokens.device
        super().__init__(
            device, config.max_iterations, checkpoints and with_read_data(checkpoints, device, read),
            patience=config.patience, min_passes=config.min_iterations,
        )  # fmt: skip

    def history(self) -> Phase1History:
        """Train, and leave the kept weights in the model."""
        with self.naming_not_finite(0):
            untrained = self.world.from_first(lambda: self._rank(self._exact_contexts(self.validation_tokens)))
            if self.num_passes == 0:
                return Phase1History(untrained)
            kind = CvfpPass if self.config.objective == "cvfp" else PredictivePass
            self.objective: CvfpPass | PredictivePass = kind(self.model, self.train_tokens, self.config, self.seed)
            self.parts = {"model": self.block, **self.objective.parts}
            self.steps_per_pass, self.device_batch = self.objective.num_steps, self.objective.device_batch
        self.run()
        kept = dict(self.best.weights)
        stale = kept.pop("stale")
        self.block.load_state_dict(kept)
        self._warn_of_learning_by_heart()
        return Phase1History(
            untrained, self.rows, self.best.number, self.stopped_early, stale, self.watch.total().wall,
            self.watch.earlier,
        )  # fmt: skip

    def _warn_of_learning_by_heart(self) -> None:
        """Where no later check predicted held-out text better than the first one did.

        All figures look as usual then, and the readout makes up for a part of it: docs/findings.md, 2026-11-28.
        """
        checked = [row.iteration for row in self.rows if row.validation_prediction is not None]
        if len(checked) < 2 or self.best.number != checked[0]:
            return
        config, names = self.config, ("context_noise", "prediction_dropout", "prediction_weight_decay")
        given = ", ".join(f"{name}={getattr(config, name):g}" for name in names)
        logger.warning(
            "Phase 1 kept iteration %d of %d, the first that was checked: later ones predict held-out text worse, as "
            "if the training text were learned by heart. Larger values of %s may help.",
            self.best.number, len(self.rows), given,
        )  # fmt: skip

    def steps(self, number: int) -> Iterator[None]:
        return self.objective.steps(number, self.within)

    def judged(self, number: int) -> tuple[IterationRecord, float | None]:
        self.objective.complete_on_first(max(self.config.effective_rank_tokens + 1, _STALE_TOKENS))
        return self.world.from_first(lambda: self._judged(number))

    def _judged(self, number: int) -> tuple[IterationRecord, float | None]:
        train_rank = self._rank(self.objective.previous)
        rank, prediction, score = None, None, None
        if number % self.config.check_interval == 0 or number == self.num_passes:
            contexts = self._exact_contexts(self.check_tokens)
            rank = self._rank(contexts)
            prediction = self.objective.held_out_prediction(contexts, self.check_tokens)
            # How well the text that chooses is predicted, by its next tokens; or else, without any, how many
            # directions its contexts take up.
            # All checks measure as many tokens, so what these can reach (`StreamRank.ceiling`) is the same for each.
            score = rank.share if prediction is None else -prediction
        row = IterationRecord(
            iteration=number, train_rank=train_rank, validation_rank=rank, validation_prediction=prediction,
            **asdict(self.objective.figures(self.within)),
        )  # fmt: skip
        return row, score

    def complete_on_first(self) -> None:
        self.objective.complete_on_first(len(self.train_tokens))

    def kept(self) -> Mapping[str, Tensor]:
        return {**self.block.state_dict(), "stale": self.objective.previous[:_STALE_TOKENS]}

    def stored_row(self, figures: Mapping[str, Any]) -> IterationRecord:
        ranks = {name: figures[name] and StreamRank(**figures[name]) for name in ("train_rank", "validation_rank")}
        return IterationRecord(**{**figures, **ranks})

    def shown(self) -> dict[str, str]:
        record = self.rows[-1]
        shown = {
            "cvfp": f"{record.cvfp:.4f}",
            self.config.diversity_algorithm: f"{record.diversity:.4f}",
            "converged": f"{record.converged / len(self.train_tokens):.1%}",
            "ER train": f"{record.train_rank.share:.1%}",
        }
        if record.prediction is not None:
            shown["prediction"] = f"{record.prediction:.4f}"
        if self.best.number:
            shown["best check"] = f"{abs(self.best.score):.4f}"
        return shown

    def _rank(self, contexts: Tensor) -> StreamRank:
        if not contexts[: self.config.effective_rank_tokens].any():
            raise NotFiniteError("contexts: all of them are zero, as where weights are far too large or too small")
        return stream_rank(contexts, self.config.effective_rank_tokens)

    @torch.no_grad()
    def _exact_contexts(self, tokens: Tensor) -> Tensor:
        zero = torch.zeros(self.block.context_dim, device=self.device)
        return exact_contexts(self.block, StreamEmbeddings(self.model, tokens), zero).contexts
