"""Phase 2: the TokenBlock learns to predict the next token from frozen contexts (spec section 5)."""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.language import Phase2Config
from newllm_core.config.schema import ConfigError
from newllm_core.contexts.store import Batch, context_batches
from newllm_core.errors import NotFiniteError
from newllm_core.gpu_memory import device_batch_size, find_executable, is_out_of_memory
from newllm_core.head.cross_entropy import Head, choose_head
from newllm_core.head.sampled_softmax import SampledHead, epochs_head
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.metrics.prediction import perplexity
from newllm_core.model import NewLLM
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
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training.captured import CapturedStep, DeviceRate, device_options
from newllm_core.training.evaluation import Evaluation, evaluate, evaluation_head
from newllm_core.training.phase1 import Phase1Result

logger = logging.getLogger("newllm")


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
        earlier: what both had taken before an interruption.
    """

    epochs: list[EpochRecord]
    best_epoch: int
    validation: Evaluation
    stopped_early: bool
    head_method: str
    device_batch_size: int
    seconds: float
    earlier: Seconds

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
    checkpoints: CheckpointPlace | None = None,
) -> Phase2Result:
    """Train ``model.token_block`` (and embedding or head where they are not frozen) in place.

    Args:
        phase1: contexts of the frozen ContextBlock.
        train_tokens: `[N]`, validation_tokens: `[M]`, on the model's device; at least two tokens each.
        seed: of the shuffling and of dropout.
        checkpoints: one is written after every epoch and gone on from, with the same result to the last bit; None:
            none. The caller deletes the last one.

    Raises NotFiniteError when a loss is not finite, RunError for a checkpoint that is not this run's.
    """
    trainer = _Trainer(model, phase1, train_tokens, validation_tokens, config, seed, checkpoints)
    trainer.resume()
    return trainer.train()


class _Trainer:
    def __init__(
        self, model: NewLLM, phase1: Phase1Result, train_tokens: Tensor, validation_tokens: Tensor,
        config: Phase2Config, seed: int, checkpoints: CheckpointPlace | None,
    ) -> None:  # fmt: skip
        self.model, self.phase1, self.config, self.seed = model, phase1, config, seed
        self.train_tokens, self.validation_tokens = train_tokens, validation_tokens
        set_output_bias(model, train_tokens, config)
        if config.unseen_sample is not None:
            _demand_frozen_head(model, "unseen_sample")
        self.method = choose_head(config.head, train_tokens.device)
        self.head: Head | SampledHead = Head(model.output_weight(), self.method)
        self.parameters = model.phase2_parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, weight_decay=config.weight_decay,
            **device_options(train_tokens.device),
        )  # fmt: skip
        steps = math.ceil((len(train_tokens) - 1) / config.effective_batch_size) * config.max_epochs
        self.schedule = (
            torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps) if config.schedule == "cosine" else None
        )
        fits = device_batch_size(
            train_tokens.device, config.effective_batch_size, self.method, model.config, len(model.embedding)
        )
        self.device_batch_size = min(config.device_batch_size or fits, config.effective_batch_size)
        read = {
            "context_block": list(model.context_block.state_dict().values()),
            "tokens": [train_tokens, validation_tokens],
            "embedding": [model.embedding],
        }
        self.checkpoints = checkpoints and with_circumstances(checkpoints, train_tokens.device, read, head=self.method)
        self.epochs: list[EpochRecord] = []
        self.best_epoch, self.best_weights = 0, dict[str, Tensor]()
        self.watch = Stopwatch()
        on_device = train_tokens.is_cuda and phase1.train_contexts.is_cuda
        self.rate = DeviceRate(self.optimizer, train_tokens.device) if on_device else None
        self.captured: CapturedStep | None = None
        if config.dropout:
            torch.manual_seed(derived_generator("phase 2 dropout", seed).initial_seed())

    def train(self) -> Phase2Result:
        done, total = len(self.epochs), self.config.max_epochs
        with progress_bar(total=total, initial=done, desc="Phase 2", unit="epoch") as bar:
            for epoch in range(done + 1, total + 1):
                if len(self.epochs) - self.best_epoch >= self.config.patience:
                    break
                self._epoch(epoch)
                bar.update()
                last, best = self.epochs[-1], self.epochs[self.best_epoch - 1]
                bar.set_postfix(
                    {"PPL val": f"{last.validation_perplexity:.1f}", "best": f"{best.validation_perplexity:.1f}",
                     "accuracy val": f"{last.validation_accuracy:.1%}"}
                )  # fmt: skip
        self.model.load_state_dict(self.best_weights, strict=False)
        exact = self._evaluate(self.best_epoch, evaluation_head(self.model, self.method))
        return Phase2Result(
            self.epochs, self.best_epoch, exact, len(self.epochs) < total,
            self.method, self.device_batch_size, self.watch.total().wall, self.watch.earlier,
        )  # fmt: skip

    def _epoch(self, epoch: int) -> None:
        """Train, judge, keep the weights if no epoch before was as good, and write the checkpoint."""
        train_loss, train_accuracy = self._train_epoch(epoch)
        validation = self._evaluate(epoch, Head(self.model.output_weight().detach(), self.method))
        best = self.epochs[self.best_epoch - 1].validation_loss if self.epochs else math.inf
        self.epochs.append(_epoch_record(epoch, train_loss, train_accuracy, validation))
        if validation.mean_nats < best:
            self.best_epoch = epoch
            self.best_weights = {name: value.detach().clone() for name, value in self._trained_state().items()}
        if self.checkpoints is not None:
            save_checkpoint(self.checkpoints.folder, self._checkpoint(self.checkpoints))

    def _checkpoint(self, place: CheckpointPlace) -> Checkpoint:
        model = {name: value.detach() for name, value in self._trained_state().items()}
        states = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "best_epoch": self.best_epoch,
            "device_batch_size": self.device_batch_size,
            "seconds": self.watch.state(),
            **generator_states(self.train_tokens.device),
        }
        tensors = joined({"model": model, "best": self.best_weights})
        return Checkpoint(place.configs, [asdict(epoch) for epoch in self.epochs], tensors, states)

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        device = self.train_tokens.device
        found = load_checkpoint(self.checkpoints, device)
        if found is None:
            return
        parts = parted(found.tensors, ("model", "best"))
        self.model.load_state_dict(parts["model"], strict=False)
        self.best_epoch, self.best_weights = found.states["best_epoch"], parts["best"]
        self.epochs = [EpochRecord(**epoch) for epoch in found.epochs]
        self.optimizer.load_state_dict(found.states["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(found.states["schedule"])
        self.device_batch_size = found.states["device_batch_size"]
        self.watch.resume(found.states["seconds"])
        restore_generators(found.states, device)

    def _trained_state(self) -> dict[str, Tensor]:
        trained = {id(parameter) for parameter in self.parameters}
        return {name: value for name, value in self.model.named_parameters() if id(value) in trained}

    def _evaluate(self, epoch: int, head: Head) -> Evaluation:
        validation = evaluate(self.model, self.phase1.validation_contexts, self.validation_tokens, head, self.config)
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
        # A sampled head is another one every epoch, so the step is recorded anew.
        self.captured = None if self.rate is None else CapturedStep(self._whole_step)
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
                f"Phase 2, epoch {epoch}: training loss is {mean_nats}. Training stops here; a smaller learning "
                "rate is the usual remedy."
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
        if self.rate is not None:
            self.rate.update()
        recorded = self._recorded_step(batch)
        if recorded is not None:
            return recorded
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
        self._update()
        self._advance()
        nats, correct = zip(*outcome, strict=True)
        return torch.stack(nats).sum(), torch.stack(correct).sum()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        if self.rate is None:
            self.optimizer.step()
        else:
            self.rate.step()

    def _advance(self) -> None:
        if self.schedule is not None:
            self.schedule.step()

    def _recorded_step(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The same as a CUDA graph, where a whole effective batch fits at once; None where it is not to be used."""
        whole = len(batch) == self.config.effective_batch_size <= self.device_batch_size
        if self.captured is None or not whole:
            return None
        try:
            nats, correct = self.captured(batch.contexts, batch.tokens, batch.targets)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # No weight has moved yet: what ran out came before the update. The usual way tries smaller parts.
            self.captured = None
            return None
        self._advance()
        return nats, correct

    def _whole_step(self, contexts: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self._accumulate(Batch(contexts, tokens, targets), len(tokens))
        self._update()
        return outcome

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
