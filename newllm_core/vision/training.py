"""Training of one model on one data set (nkat.md section 4).

AdamW with and without decay, a warm-up and cosine per step, clipped gradients, an average of the weights that is what
gets evaluated. The epoch whose weights are kept is chosen on the selection images; test images never come here.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.errors import NotFiniteError
from newllm_core.runs.checkpoint import (
    Checkpoint,
    CheckpointPlace,
    generator_states,
    joined,
    load_checkpoint,
    parted,
    restore_generators,
    save_checkpoint,
)
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.data import ImageData, LabelledImages, Normalisation, normalised
from newllm_core.vision.data.augmentation import Augmentation
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.optimisation import exponential_average, parameter_groups, warmup_cosine
from newllm_core.vision.settings import VisionSettings, configuration_record

# Images. On a CPU larger batches leave its cache: 500 at once take 1.4 times as long as 128.
_EVALUATION_BATCH = {"cpu": 128, "cuda": 1000}
# Steps between two looks at the loss: each look makes a GPU wait.
_LOOK_STEPS = 50


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
    yield
    model.train(was_training)


def train_vision(
    images: ImageData,
    settings: VisionSettings,
    device: torch.device,
    checkpoint_dir: Path,
    *,
    report: Callable[[EpochFigures], None] = lambda figures: None,
    show_progress: bool = True,
) -> TrainingResult:
    """Train a new model, or go on from the checkpoint in ``checkpoint_dir``: the result is the same to the last bit.

    Seeds are the caller's (`runs.seed_everything`). A last batch that is not full is left out; the order is another
    every epoch.

    Args:
        report: called with every epoch, after its checkpoint is written and including those before an interruption;
            what it raises ends the training, which can go on later.

    Raises NotFiniteError when a loss is not finite, RunError for a checkpoint that is not this run's.
    """
    trainer = _Trainer(images, settings, device, checkpoint_dir)
    trainer.resume()
    for figures in trainer.epochs:
        report(figures)
    return trainer.train(report, show_progress)


class _Trainer:
    def __init__(self, images: ImageData, settings: VisionSettings, device: torch.device, folder: Path) -> None:
        self.images, self.settings, self.config, self.folder = images, settings, settings.train, folder
        self.device = device
        self.train_images, self.train_labels = (part.to(device) for part in (images.train.images, images.train.labels))
        self.batch_size = min(self.config.batch_size, len(images.train))
        self.steps_per_epoch = len(images.train) // self.batch_size
        self.model = NkatModel(settings.model, settings.run.seed).to(device)
        decay = self.config.ema_decay
        self.average = None if decay is None else exponential_average(self.model, decay)
        groups = parameter_groups(self.model, self.config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)
        self.schedule = warmup_cosine(self.optimizer, self.steps_per_epoch, self.config)
        self.augmentation = Augmentation(settings.augmentation, images, settings.run.seed)
        self.epochs: list[EpochFigures] = []
        self.best_epoch, self.best_weights = 0, dict[str, Tensor]()

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def train(self, report: Callable[[EpochFigures], None], show_progress: bool) -> TrainingResult:
        done, total = len(self.epochs), self.config.epochs
        with progress_bar(total=total, initial=done, desc="training", unit="epoch", disable=not show_progress) as bar:
            for epoch in range(done + 1, total + 1):
                figures = self._epoch(epoch, show_progress)
                self._append(figures)
                save_checkpoint(self.folder, self._checkpoint())
                report(figures)
                bar.update()
                bar.set_postfix(
                    {"loss": f"{figures.train_loss:.3f}", "selection": f"{figures.selection_accuracy:.1%}",
                     "best": f"{self.epochs[self.best_epoch - 1].selection_accuracy:.1%}"}
                )  # fmt: skip
        self.model.load_state_dict(self.best_weights)
        return TrainingResult(self.model.eval(), self.epochs, self.best_epoch, self.steps_per_epoch)

    def _append(self, figures: EpochFigures) -> None:
        """Keep the figures, and the weights if no epoch before was as good."""
        self.epochs.append(figures)
        best = self.epochs[self.best_epoch - 1].selection_accuracy if self.best_epoch else -1.0
        if figures.selection_accuracy > best:
            self.best_epoch = figures.epoch
            self.best_weights = {name: value.clone() for name, value in self.evaluated.state_dict().items()}

    def _epoch(self, epoch: int, show_progress: bool) -> EpochFigures:
        began = time.perf_counter()
        loss, accuracy, norm, learning_rate = self._train_epoch(epoch, show_progress)
        chosen = self._selection(self.evaluated, epoch)
        last = self.average is not None and epoch == self.config.epochs
        own = self._selection(self.model, epoch) if last else None
        return EpochFigures(
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            selection_loss=chosen.loss,
            selection_accuracy=chosen.accuracy,
            own_selection_loss=None if own is None else own.loss,
            own_selection_accuracy=None if own is None else own.accuracy,
            gradient_norm=norm,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - began,
        )

    def _selection(self, model: nn.Module, epoch: int) -> Evaluation:
        figures = evaluate(model, self.images.selection, self.images.normalisation)
        if not math.isfinite(figures.loss):
            raise NotFiniteError(f"epoch {epoch}: the selection loss is {figures.loss}")
        return figures

    def _train_epoch(self, epoch: int, show_progress: bool) -> tuple[float, float, float, float]:
        """One pass over the training images; means of loss, accuracy and gradient norm, and the last learning rate."""
        self.model.train()
        order = torch.randperm(
            len(self.train_labels), generator=derived_generator("vision order", self.settings.run.seed, epoch)
        )
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        steps = range(self.steps_per_epoch)
        for step in progress_bar(steps, desc=f"  epoch {epoch}", unit="step", leave=False, disable=not show_progress):
            learning_rate = self.schedule.get_last_lr()[0]
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size].to(self.device)
            sums += self._step(chosen, (epoch - 1) * self.steps_per_epoch + step)
            if step % _LOOK_STEPS == 0 or step == self.steps_per_epoch - 1:
                self._require_finite(float(sums[0]), epoch)
        loss, accuracy, norm = (sums / self.steps_per_epoch).tolist()
        return loss, accuracy, norm, float(learning_rate)

    def _step(self, chosen: Tensor, step: int) -> Tensor:
        """One optimizer step; loss, accuracy and gradient norm as a float64 tensor `[3]`."""
        batch = self.augmentation(self.train_images[chosen], self.train_labels[chosen], step)
        logits = self.model(batch.images)
        loss = functional.cross_entropy(logits, batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        right = (logits.argmax(dim=1) == batch.targets.argmax(dim=1)).double().mean()
        return torch.stack([loss.detach().double(), right, norm.double()])

    def _require_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"epoch {epoch}: the training loss is {loss}. Training stops here; the last checkpoint is of epoch "
                f"{len(self.epochs)}. A smaller learning rate is the usual remedy."
            )

    def _configs(self) -> dict[str, Any]:
        circumstances = {"sources": self.images.provenance["sources"], "device": self.device.type}
        return configuration_record(self.settings) | {"read": circumstances}

    def _checkpoint(self) -> Checkpoint:
        average = {} if self.average is None else self.average.state_dict()
        tensors = joined({"model": self.model.state_dict(), "average": average, "best": self.best_weights})
        states = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best_epoch": self.best_epoch,
            **generator_states(self.device),
        }
        return Checkpoint(self._configs(), [asdict(figures) for figures in self.epochs], tensors, states)

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        found = load_checkpoint(CheckpointPlace(self.folder, self._configs()), self.device)
        if found is None:
            return
        self.epochs = [EpochFigures(**figures) for figures in found.epochs]
        parts = parted(found.tensors, ("model", "average", "best"))
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        self.best_epoch, self.best_weights = found.states["best_epoch"], parts["best"]
        self.optimizer.load_state_dict(found.states["optimizer"])
        self.schedule.load_state_dict(found.states["schedule"])
        restore_generators(found.states, self.device)
