"""Phase 2: the TokenBlock learns to predict the next token from frozen contexts (docs/method.md, section 5)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from newllm_core.config.hyperparameters import Phase2Config
from newllm_core.config.schema import ConfigError
from newllm_core.contexts.store import Batch, context_batches
from newllm_core.data.order import epoch_batches
from newllm_core.gpu_memory import DeviceBatch, device_batch_size
from newllm_core.head.cross_entropy import Head, choose_head
from newllm_core.head.kneser_ney import count_ngrams
from newllm_core.head.sampled_softmax import SampledHead, epochs_head
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.losses import refuse_not_finite
from newllm_core.metrics.prediction import perplexity
from newllm_core.model import NewLLM
from newllm_core.model.dropout import RowsOf
from newllm_core.runs.checkpoint import CheckpointPlace, with_read_data
from newllm_core.runs.progress import Seconds
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training.captured import CapturedStep, DeviceRate, NotRecordedError, device_options
from newllm_core.training.evaluation import Evaluation, evaluate, evaluation_head
from newllm_core.training.loop import TrainingLoop
from newllm_core.training.phase1 import Phase1Result


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Losses in nats per token, accuracies 0 … 1, perplexity is `exp(loss)`.

    Training figures are means over the epoch, while the weights moved; ``validation_…`` is of the text that chooses.
    With rounded products training and validation
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
        best_epoch: the one with the lowest loss on the text that chooses.
        validation: of that epoch's weights on the validation text, with exact products: these figures are compared
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


def set_counts(model: NewLLM, train_tokens: Tensor, config: Phase2Config) -> None:
    """Give the model what is counted in ``train_tokens`` `[N]`, where the config asks for it: the head the unigram as
    its bias `[V]`, evaluation the n-grams.

    Raises ConfigError where the head that would have a bias is trained itself.
    """
    model.ngrams = count_ngrams(train_tokens, len(model.embedding), config.ngram_weight, config.ngram_order)
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
    selection_tokens: Tensor | None = None,
) -> Phase2Result:
    """Train ``model.token_block`` (and embedding or head where they are not frozen) in place.

    Args:
        phase1: contexts of the frozen ContextBlock.
        train_tokens: `[N]`, validation_tokens: `[M]`, on the model's device; at least two tokens each.
        selection_tokens: `[S]`, what the epoch is chosen on, with ``phase1.selection_contexts``; None: on validation.
        seed: of the shuffling and of dropout.
        checkpoints: where they are written and gone on from, with the same result to the last bit; None: none. The
            caller deletes the last ones.

    Raises NotFiniteError when a loss is not finite, RunError for a checkpoint that is not this run's.
    """
    trainer = _Trainer(model, phase1, train_tokens, validation_tokens, config, seed, checkpoints, selection_tokens)
    trainer.run()
    return trainer.result()


class _Trainer(TrainingLoop[EpochRecord]):
    name, row_kind = "Phase 2", EpochRecord

    def __init__(
        self, model: NewLLM, phase1: Phase1Result, train_tokens: Tensor, validation_tokens: Tensor,
        config: Phase2Config, seed: int, checkpoints: CheckpointPlace | None,
        selection_tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model, self.phase1, self.config, self.seed = model, phase1, config, seed
        self.train_tokens = train_tokens
        # Contexts and tokens: what is judged once, and what chooses.
        self.judges = phase1.validation_contexts, validation_tokens
        self.chooses = self.judges
        if selection_tokens is not None and phase1.selection_contexts is not None:
            self.chooses = phase1.selection_contexts, selection_tokens
        self.num_targets = len(train_tokens) - 1
        device, effective = train_tokens.device, config.effective_batch_size
        set_counts(model, train_tokens, config)
        if config.unseen_sample is not None:
            _demand_frozen_head(model, "unseen_sample")
        self.method = choose_head(config.head, device)
        read = {
            "context_block": list(model.context_block.state_dict().values()),
            "tokens": [train_tokens, self.chooses[1]],
            "embedding": [model.embedding],
        }
        fits = device_batch_size(device, effective, self.method, model.config, len(model.embedding))
        super().__init__(
            device, config.max_epochs, checkpoints and with_read_data(checkpoints, device, read, head=self.method),
            patience=config.patience, steps_per_pass=math.ceil(self.num_targets / effective),
            device_batch=DeviceBatch(device, min(config.device_batch_size or fits, effective)),
        )  # fmt: skip
        self.head: Head | SampledHead = Head(model.output_weight(), self.method)
        self.parameters = nn.ParameterList(model.phase2_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, weight_decay=config.weight_decay, **device_options(device)
        )
        on_device = train_tokens.is_cuda and phase1.train_contexts.is_cuda
        self.rate = DeviceRate(self.optimizer, device) if on_device else None
        self.captured: CapturedStep | None = None
        self.schedule = (
            torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.steps_per_pass * config.max_epochs)
            if config.schedule == "cosine" else None
        )  # fmt: skip
        self.parts = {"model": self.parameters, "optimizer": self.optimizer}
        if self.schedule is not None:
            self.parts["schedule"] = self.schedule
        if config.dropout:
            torch.manual_seed(derived_generator("phase 2 dropout", seed).initial_seed())

    def steps(self, number: int) -> Iterator[None]:
        if (
            self.rate is not None
            and self.world.is_alone
            and (self.captured is None or self.config.unseen_sample is not None)
        ):
            # A sampled head is another one every epoch, so the step is recorded anew.
            self.captured = CapturedStep(self._updated)
        if self.config.unseen_sample is not None:
            self.head = epochs_head(
                self.model.head_weight.detach(), self.model.output_bias, self.method, self.train_tokens,
                self.config.unseen_sample, self.seed, number,
            )  # fmt: skip
        for batch in context_batches(self.phase1.train_contexts, self.train_tokens, self._positions(number)):
            nats, correct = self._step(batch)
            self.within.add(training_loss=nats, correct=correct)
            yield

    def judged(self, number: int) -> tuple[EpochRecord, float]:
        validation = self._evaluate(Head(self.model.output_weight().detach(), self.method), self.chooses)
        train_loss, train_accuracy = self.epoch_means()
        row = EpochRecord(
            epoch=number,
            train_loss=train_loss,
            train_perplexity=perplexity(train_loss),
            train_accuracy=train_accuracy,
            validation_loss=validation.mean_nats,
            validation_perplexity=perplexity(validation.mean_nats),
            validation_accuracy=validation.accuracy,
        )
        return row, -validation.mean_nats

    def epoch_means(self) -> tuple[float, float]:
        """Nats a token and accuracy, over the steps of the epoch that has just been trained."""
        sums = self.within.sums
        return float(sums["training_loss"]) / self.num_targets, int(sums["correct"]) / self.num_targets

    def shown(self) -> dict[str, str]:
        last, best = self.rows[-1], self.rows[self.best.number - 1]
        return {
            "PPL val": f"{last.validation_perplexity:.1f}",
            "best": f"{best.validation_perplexity:.1f}",
            "accuracy val": f"{last.validation_accuracy:.1%}",
        }

    def result(self) -> Phase2Result:
        """With the best weights in the model, judged once more by exact products."""
        self.parameters.load_state_dict(self.best.weights)
        exact = self._evaluate(evaluation_head(self.model, self.method))
        return Phase2Result(
            self.rows, self.best.number, exact, self.stopped_early, self.method, self.device_batch.size,
            self.watch.total().wall, self.watch.earlier,
        )  # fmt: skip

    def _evaluate(self, head: Head, text: tuple[Tensor, Tensor] | None = None) -> Evaluation:
        """On contexts and tokens of ``text``; None: of what is judged."""
        validation = evaluate(self.model, *(text or self.judges), head, self.config)
        refuse_not_finite({"validation loss": validation.mean_nats})
        return validation

    def _positions(self, epoch: int) -> Iterator[Tensor]:
        """Of this rank in each effective batch that is still to be trained on, by seed and epoch alone."""
        batches = epoch_batches(
            self.num_targets, self.config.effective_batch_size, self.seed, epoch, shuffle=self.config.shuffle,
            segment=self.config.shuffle_segment, first=self.within.steps,
        )  # fmt: skip
        return (whole[self.world.part(slice(0, len(whole)))] for whole in batches)

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step over an effective batch, in as many parts as fit; (summed nats, number correct)."""
        given = batch.contexts, batch.tokens, batch.targets
        if self.rate is not None:
            self.rate.update()
        outcome = self._recorded(*given) or self._updated(*given)
        if self.schedule is not None:
            self.schedule.step()
        return outcome

    def _recorded(self, contexts: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """``_updated`` as a CUDA graph, for whole batches that fit at once; None where it is not to be used."""
        whole = len(tokens) == self.config.effective_batch_size <= self.device_batch.size
        if self.captured is None or not (whole and self.device_batch.records):
            return None
        try:
            nats, correct = self.captured(contexts, tokens, targets)
        except NotRecordedError:
            self.captured, self.device_batch.records = None, False
            return None
        return nats, correct

    def _updated(self, contexts: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The device's share of a step."""
        batch, rows = Batch(contexts, tokens, targets), self._rows(len(tokens))

        def attempt(size: int) -> list[tuple[Tensor, Tensor]]:
            self.optimizer.zero_grad(set_to_none=True)
            return [self._accumulate(part, rows) for part in batch.split(max(size, 1))]

        nats, correct = zip(*self.device_batch.fit(len(batch), attempt), strict=True)
        self.world.add_up_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        if self.rate is None:
            self.optimizer.step()
        else:
            self.rate.step()
        return self.world.total(torch.stack(nats).sum()), self.world.total(torch.stack(correct).sum())

    def _rows(self, count: int) -> RowsOf:
        """Which rows of the effective batch these ``count`` are: this rank's part."""
        if self.world.is_alone:
            return RowsOf(0, count)
        effective = self.config.effective_batch_size
        whole = min(effective, self.num_targets - self.within.steps * effective)
        return RowsOf(self.world.part(slice(0, whole)).start, whole)

    def _accumulate(self, part: Batch, rows: RowsOf) -> tuple[Tensor, Tensor]:
        drawn = None if self.world.is_alone else rows
        hidden = self.model.hidden(part.contexts, part.tokens, self.config.dropout, drawn)
        if not len(part):  # of a last batch of fewer tokens than ranks
            return hidden.new_zeros((), dtype=torch.float64), part.tokens.new_zeros(())
        loss = self.head.loss(hidden, part.targets)
        (loss.mean_nats * (len(part) / rows.count)).backward()  # type: ignore[no-untyped-call]
        return loss.mean_nats.detach().double() * len(part), loss.num_correct
