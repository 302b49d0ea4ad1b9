"""Phase 2: the TokenBlock learns to predict the next token from frozen contexts (spec section 5)."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from newllm_core.config import ConfigError, Phase2Config
from newllm_core.context_store import Batch, context_batches
from newllm_core.continuous_cache import cached_nats
from newllm_core.errors import NotFiniteError
from newllm_core.gpu_memory import device_batch_size, find_executable
from newllm_core.head import Head, choose_head
from newllm_core.metrics import perplexity
from newllm_core.model import NewLLM
from newllm_core.phase1 import Phase1Result
from newllm_core.progress import progress_bar
from newllm_core.runs import derived_generator
from newllm_core.unigram import fit_unigram
from newllm_core.vocabulary_sample import SampledHead, epochs_head

logger = logging.getLogger("newllm")

# Tokens per evaluation batch.
_EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Losses in nats per token, accuracies 0 … 1, perplexity is `exp(loss)`.

    Training figures are means over the epoch, while the weights moved. With rounded products training and validation
    figures carry that rounding, about 1e-4 nats, which is enough to find the best epoch; see ``Phase2Result.best``.
    """

    epoch: int
    train_loss: float
    train_perplexity: float
    train_accuracy: float
    validation_loss: float
    validation_perplexity: float
    validation_accuracy: float


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


@dataclass(frozen=True)
class Phase2Result:
    """What training did; the model itself carries the weights of the best epoch.

    Attributes:
        epochs: one record each.
        best_epoch: the one with the lowest validation loss.
        validation: of that epoch's weights, evaluated once more with exact products: these figures are compared
            across runs.
        stopped_early: before `max_epochs`.
        head_method: how the cross-entropy was computed.
        device_batch_size: tokens computed at once at the end; smaller than at the start after out-of-memory.
        seconds: of training and evaluation.
    """

    epochs: list[EpochRecord]
    best_epoch: int
    validation: Evaluation
    stopped_early: bool
    head_method: str
    device_batch_size: int
    seconds: float

    @property
    def best(self) -> EpochRecord:
        """The best epoch, its validation figures with exact products."""
        loss = self.validation.mean_nats
        return replace(
            self.epochs[self.best_epoch - 1], validation_loss=loss, validation_perplexity=perplexity(loss),
            validation_accuracy=self.validation.accuracy,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": asdict(self.best),
            "stopped_early": self.stopped_early,
            "head_method": self.head_method,
            "device_batch_size": self.device_batch_size,
        }


@torch.no_grad()
def evaluate(model: NewLLM, contexts: Tensor, tokens: Tensor, head: Head) -> Evaluation:
    """Context i predicts token i + 1. `contexts [N, L, C], tokens [N]`, N >= 2 -> figures of N - 1 targets."""
    nats, correct = [], []
    for batch in context_batches(contexts, tokens, torch.arange(len(tokens) - 1).split(_EVALUATION_BATCH)):
        figures = head.token_figures(model.hidden(batch.contexts, batch.tokens), batch.targets)
        nats.append(figures.nats)
        correct.append(figures.correct)
    return Evaluation(torch.cat(nats).cpu(), torch.cat(correct).cpu())


@torch.no_grad()
def with_cache(
    evaluation: Evaluation, model: NewLLM, contexts: Tensor, tokens: Tensor, config: Phase2Config
) -> Evaluation:
    """The losses with the continuous cache mixed in, whose states are the hidden states; accuracy stays the model's."""
    positions = torch.arange(len(tokens) - 1).split(_EVALUATION_BATCH)
    states = [model.hidden(batch.contexts, batch.tokens) for batch in context_batches(contexts, tokens, positions)]
    nats = cached_nats(
        evaluation.nats, torch.cat(states).cpu(), tokens.cpu(),
        weight=config.cache_weight, scale=config.cache_scale, num_cached=config.cache_tokens,
    )  # fmt: skip
    return Evaluation(nats, evaluation.correct)


def evaluation_head(model: NewLLM, head_method: str) -> Head:
    """Exact products for the figures that are compared across runs, whatever training rounds."""
    return Head(model.output_weight().detach(), "direct" if head_method == "direct" else "blocks")


def set_output_bias(model: NewLLM, train_tokens: Tensor, config: Phase2Config) -> None:
    """Give the head the unigram of ``train_tokens`` as its bias, where the config asks for it.

    Raises ConfigError where the head itself is trained.
    """
    if not config.unigram_bias:
        return
    _demand_frozen_head(model, "unigram_bias")
    unigram = fit_unigram(train_tokens, len(model.embedding)).log_probabilities
    model.output_bias = unigram.to(model.embedding)


def _demand_frozen_head(model: NewLLM, wanted_by: str) -> None:
    if not model.head_is_frozen:
        raise ConfigError(
            f"{wanted_by}: expected a frozen head (tie_weights and freeze_embedding), given one that is trained"
        )


def train_phase2(
    model: NewLLM,
    phase1: Phase1Result,
    train_tokens: Tensor,
    validation_tokens: Tensor,
    config: Phase2Config,
    seed: int,
) -> Phase2Result:
    """Train ``model.token_block`` (and embedding or head where they are not frozen) in place.

    Args:
        phase1: contexts of the frozen ContextBlock.
        train_tokens: `[N]`, validation_tokens: `[M]`, on the model's device; at least two tokens each.
        seed: of the shuffling.

    Raises NotFiniteError when a loss is not finite.
    """
    return _Trainer(model, phase1, train_tokens, validation_tokens, config, seed).train()


class _Trainer:
    def __init__(
        self, model: NewLLM, phase1: Phase1Result, train_tokens: Tensor, validation_tokens: Tensor,
        config: Phase2Config, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.phase1, self.config, self.seed = model, phase1, config, seed
        self.train_tokens, self.validation_tokens = train_tokens, validation_tokens
        set_output_bias(model, train_tokens, config)
        if config.unseen_sample is not None:
            _demand_frozen_head(model, "unseen_sample")
        self.method = choose_head(config.head, train_tokens.device)
        self.head: Head | SampledHead = Head(model.output_weight(), self.method)
        self.parameters = model.phase2_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=config.weight_decay)
        steps = math.ceil((len(train_tokens) - 1) / config.effective_batch_size) * config.max_epochs
        self.schedule = (
            torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps) if config.schedule == "cosine" else None
        )
        fits = device_batch_size(
            train_tokens.device, config.effective_batch_size, self.method, model.config, len(model.embedding)
        )
        self.device_batch_size = min(config.device_batch_size or fits, config.effective_batch_size)

    def train(self) -> Phase2Result:
        began = time.perf_counter()
        epochs: list[EpochRecord] = []
        best_loss, best_epoch, best_weights = math.inf, 0, {}
        if self.config.dropout:
            torch.manual_seed(derived_generator("phase 2 dropout", self.seed).initial_seed())
        progress = progress_bar(range(1, self.config.max_epochs + 1), desc="Phase 2", unit="epoch")
        for epoch in progress:
            train_loss, train_accuracy = self._train_epoch(epoch)
            validation = self._evaluate(epoch, Head(self.model.output_weight().detach(), self.method))
            epochs.append(_epoch_record(epoch, train_loss, train_accuracy, validation))
            if validation.mean_nats < best_loss:
                best_loss, best_epoch = validation.mean_nats, epoch
                best_weights = {name: value.detach().clone() for name, value in self._trained_state().items()}
            progress.set_postfix(
                {"PPL val": f"{epochs[-1].validation_perplexity:.1f}", "best": f"{perplexity(best_loss):.1f}",
                 "accuracy val": f"{validation.accuracy:.1%}"}
            )  # fmt: skip
            if epoch - best_epoch >= self.config.patience:
                break
        progress.close()
        self.model.load_state_dict(best_weights, strict=False)
        exact = self._evaluate(best_epoch, evaluation_head(self.model, self.method))
        return Phase2Result(
            epochs, best_epoch, exact, len(epochs) < self.config.max_epochs,
            self.method, self.device_batch_size, time.perf_counter() - began,
        )  # fmt: skip

    def _trained_state(self) -> dict[str, Tensor]:
        trained = {id(parameter) for parameter in self.parameters}
        return {name: value for name, value in self.model.named_parameters() if id(value) in trained}

    def _evaluate(self, epoch: int, head: Head) -> Evaluation:
        stream = self.phase1.validation_contexts, self.validation_tokens
        validation = evaluate(self.model, *stream, head)
        if self.config.cache_weight:
            validation = with_cache(validation, self.model, *stream, self.config)
        if not math.isfinite(validation.mean_nats):
            raise NotFiniteError(f"Phase 2, epoch {epoch}: validation loss is {validation.mean_nats}")
        return validation

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over all training targets; (mean nats, accuracy)."""
        device = self.train_tokens.device
        nats = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        num_targets = len(self.train_tokens) - 1
        bar = progress_bar(total=num_targets, desc=f"  epoch {epoch}", unit="token", unit_scale=True, leave=False)
        positions = self._positions(epoch, num_targets)
        if self.config.unseen_sample is not None:
            self.head = epochs_head(
                self.model.head_weight.detach(), self.model.output_bias, self.method, self.train_tokens,
                self.config.unseen_sample, self.seed, epoch,
            )  # fmt: skip
        for batch in context_batches(self.phase1.train_contexts, self.train_tokens, positions):
            step_nats, step_correct = self._step(batch)
            nats += step_nats
            correct += step_correct
            bar.update(len(batch))
        bar.close()
        mean_nats = float(nats) / num_targets
        if not math.isfinite(mean_nats):
            raise NotFiniteError(
                f"Phase 2, epoch {epoch}: training loss is {mean_nats}. Training stops here; nothing was saved. "
                "A smaller learning rate is the usual remedy."
            )
        return mean_nats, int(correct) / num_targets

    def _positions(self, epoch: int, num_targets: int) -> Iterator[Tensor]:
        """Positions of each effective batch, shuffled anew every epoch by seed and epoch alone."""
        if self.config.shuffle:
            order = torch.randperm(num_targets, generator=derived_generator("shuffle", self.seed, epoch))
        else:
            order = torch.arange(num_targets)
        yield from order.split(self.config.effective_batch_size)

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step over an effective batch, in as many parts as fit; (summed nats, number correct)."""
        outcome: list[tuple[Tensor, Tensor]] = []

        def attempt(part_size: int) -> None:
            outcome.clear()
            self.optimizer.zero_grad(set_to_none=True)
            for part in batch.split(part_size):
                outcome.append(self._accumulate(part, len(batch)))

        first_try = min(self.device_batch_size, len(batch))
        went_through = find_executable(attempt, first_try)
        if went_through < first_try:
            self.device_batch_size = went_through
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        nats, correct = zip(*outcome, strict=True)
        return torch.stack(nats).sum(), torch.stack(correct).sum()

    def _accumulate(self, part: Batch, effective: int) -> tuple[Tensor, Tensor]:
        hidden = self.model.hidden(part.contexts, part.tokens, self.config.dropout)
        loss = self.head.loss(hidden, part.targets)
        (loss.mean_nats * (len(part) / effective)).backward()  # type: ignore[no-untyped-call]
        return loss.mean_nats.detach().double() * len(part), loss.num_correct


def _epoch_record(epoch: int, train_loss: float, train_accuracy: float, validation: Evaluation) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        train_perplexity=perplexity(train_loss),
        train_accuracy=train_accuracy,
        validation_loss=validation.mean_nats,
        validation_perplexity=perplexity(validation.mean_nats),
        validation_accuracy=validation.accuracy,
    )
