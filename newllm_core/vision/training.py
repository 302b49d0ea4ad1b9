"""Training of one model on one data set (docs/method.md, section 12.4).

AdamW with and without decay, a warm-up and cosine per step, clipped gradients, an average of the weights that is what
gets evaluated. The epoch whose weights are kept is chosen on the selection images; test images never come here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.gpu_memory import DeviceBatch
from newllm_core.losses import refuse_not_finite
from newllm_core.runs.checkpoint import CheckpointPlace, with_read_data
from newllm_core.runs.disk import refuse_full_disk
from newllm_core.runs.products import rounded_products
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training.loop import TrainingLoop
from newllm_core.vision.data import ImageData, LabelledImages, Normalisation, normalised
from newllm_core.vision.data.augmentation import Augmentation
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.optimisation import exponential_average, parameter_groups, warmup_cosine
from newllm_core.vision.settings import VisionSettings

# Images. On a CPU larger batches leave its cache: 500 at once take 1.4 times as long as 128.
_EVALUATION_BATCH = {"cpu": 128, "cuda": 1000}


@dataclass(frozen=True)
class EpochFigures:
    """One epoch. Losses are cross-entropies in nats an image, accuracies 0 … 1.

    Attributes:
        train_loss, train_accuracy: means over the epoch's augmented images while the weights moved, against their soft
            targets; an arg-max is right where it is the largest target.
        selection_loss, selection_accuracy: of the averaged weights, or of the model's own without an average.
        own_selection_loss, own_selection_accuracy: of the model's own weights beside the average's, in the last epoch;
            None in the others, and without an average.
        gradient_norm: mean over the steps, before clipping.
        learning_rate: of the last step.
        seconds: of training and evaluation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    selection_loss: float
    selection_accuracy: float
    own_selection_loss: float | None
    own_selection_accuracy: float | None
    gradient_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats an image, and how many of ``num_images`` the arg-max was right for."""

    loss: float
    num_correct: int
    num_images: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images


@dataclass(frozen=True)
class TrainingResult:
    """``model`` has the evaluated weights of ``best_epoch`` (counted from 1) and is in evaluation mode."""

    model: NkatModel
    epochs: list[EpochFigures]
    best_epoch: int
    steps_per_epoch: int

    @property
    def best(self) -> EpochFigures:
        return self.epochs[self.best_epoch - 1]


@torch.no_grad()
def evaluate(model: nn.Module, images: LabelledImages, normalisation: Normalisation) -> Evaluation:
    """In evaluation mode, without augmentation; ``model`` is in the mode it was in afterwards."""
    device = next(model.parameters()).device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    size = _EVALUATION_BATCH[device.type]
    with _evaluation_mode(model):
        for part, part_labels in zip(images.images.split(size), images.labels.split(size)):
            labels = part_labels.to(device)
            logits = model(normalised(part.to(device), normalisation))
            nats += functional.cross_entropy(logits, labels, reduction="none").double().sum()
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(nats) / len(images), int(correct), len(images))


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def train_vision(
    images: ImageData,
    settings: VisionSettings,
    device: torch.device,
    checkpoints: CheckpointPlace | None = None,
    *,
    report: Callable[[EpochFigures], None] = lambda figures: None,
    show_progress: bool = True,
) -> TrainingResult:
    """Train a new model.

    Seeds are the caller's (`runs.seed_everything`). A last batch that is not full is left out; the order is another
    every epoch.

    Args:
        checkpoints: where they are written and gone on from, with the same result to the last bit; None: none. The
            caller deletes the last ones.
        report: called with every epoch, including those before an interruption; what it raises ends the training,
            which can go on later from its last checkpoint.

    Raises NotFiniteError when a loss is not finite, RunError for a checkpoint that is not this run's.
    """
    trainer = _Trainer(images, settings, device, checkpoints, report, show_progress)
    trainer.run()
    trainer.model.load_state_dict(trainer.best.weights)
    return TrainingResult(trainer.model.eval(), trainer.rows, trainer.best.number, trainer.steps_per_pass)


class _Trainer(TrainingLoop[EpochFigures]):
    name, row_kind = "NKAT", EpochFigures

    def __init__(
        self, images: ImageData, settings: VisionSettings, device: torch.device, checkpoints: CheckpointPlace | None,
        report: Callable[[EpochFigures], None], show_progress: bool,
    ) -> None:  # fmt: skip
        self.images, self.settings, self.config = images, settings, settings.train
        self.batch_size = min(self.config.batch_size, len(images.train))
        sources = images.provenance["sources"]
        super().__init__(
            device, self.config.epochs, checkpoints and with_read_data(checkpoints, device, {}, sources=sources),
            steps_per_pass=len(images.train) // self.batch_size, show_progress=show_progress, report=report,
        )  # fmt: skip
        self.train_images, self.train_labels = (part.to(device) for part in (images.train.images, images.train.labels))
        self.model = NkatModel(settings.model, settings.run.seed).to(device)
        if checkpoints is not None:
            # Weights, Adam's two moments, the average that is evaluated, and the best: float32.
            refuse_full_disk(checkpoints.folder, 4 * 5 * sum(weight.numel() for weight in self.model.parameters()))
        decay = self.config.ema_decay
        self.average = None if decay is None else exponential_average(self.model, decay)
        groups = parameter_groups(self.model, self.config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)
        self.schedule = warmup_cosine(self.optimizer, self.steps_per_pass, self.config)
        self.device_batch = DeviceBatch(device, self.batch_size, self.model.buffers())
        self.rounded = rounded_products(self.config.products, device)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.average is not None:
            self.parts["average"] = self.average
        self.augmentation = Augmentation(settings.augmentation, images, settings.run.seed)

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def steps(self, number: int) -> Iterator[None]:
        self.model.train()
        order = torch.randperm(
            len(self.train_labels), generator=derived_generator("vision order", self.settings.run.seed, number)
        )
        for step in range(self.within.steps, self.steps_per_pass):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size].to(self.device)
            self.within.add(**self._step(chosen, (number - 1) * self.steps_per_pass + step))
            yield

    def judged(self, number: int) -> tuple[EpochFigures, float]:
        means = {name: float(value) / self.steps_per_pass for name, value in self.within.sums.items()}
        chosen = self._selection(self.evaluated)
        last = self.average is not None and number == self.num_passes
        own = self._selection(self.model) if last else None
        row = EpochFigures(
            epoch=number,
            train_loss=means["training_loss"],
            train_accuracy=means["training_accuracy"],
            selection_loss=chosen.loss,
            selection_accuracy=chosen.accuracy,
            own_selection_loss=None if own is None else own.loss,
            own_selection_accuracy=None if own is None else own.accuracy,
            gradient_norm=means["gradient_norm"],
            learning_rate=self._learning_rate(number * self.steps_per_pass - 1),
            seconds=self.pass_seconds(),
        )
        return row, chosen.accuracy

    def kept(self) -> Mapping[str, Tensor]:
        weights: dict[str, Tensor] = self.evaluated.state_dict()
        return weights

    def shown(self) -> dict[str, str]:
        last, best = self.rows[-1], self.rows[self.best.number - 1]
        return {
            "loss": f"{last.train_loss:.3f}",
            "selection": f"{last.selection_accuracy:.1%}",
            "best": f"{best.selection_accuracy:.1%}",
        }

    def _learning_rate(self, step: int) -> float:
        return float(self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](step))

    def _selection(self, model: nn.Module) -> Evaluation:
        figures = evaluate(model, self.images.selection, self.images.normalisation)
        refuse_not_finite({"selection loss": figures.loss})
        return figures

    def _step(self, chosen: Tensor, step: int) -> dict[str, Tensor]:
        """One optimizer step over the images ``chosen`` `[n]`, in as many parts as fit."""
        batch = self.augmentation(self.train_images[chosen], self.train_labels[chosen], step)

        def attempt(size: int) -> list[Tensor]:
            self.optimizer.zero_grad(set_to_none=True)
            parts = zip(batch.images.split(size), batch.targets.split(size), strict=True)
            return [self._accumulate(*part, len(chosen)) for part in parts]

        loss, accuracy = torch.stack(self.device_batch.fit(len(chosen), attempt)).sum(dim=0)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {"training_loss": loss, "training_accuracy": accuracy, "gradient_norm": norm}

    def _accumulate(self, images: Tensor, targets: Tensor, effective: int) -> Tensor:
        """Gradients of a part of a batch; its shares of the batch's mean loss and accuracy, `[2]` in float64."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.rounded):
            logits = self.model(images).float()
        share = len(images) / effective
        loss = functional.cross_entropy(logits, targets) * share
        loss.backward()  # type: ignore[no-untyped-call]
        right = (logits.argmax(dim=1) == targets.argmax(dim=1)).double().mean() * share
        return torch.stack([loss.detach().double(), right])
