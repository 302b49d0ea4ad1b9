"""What two CPU cores cannot do: NKAT at full size, and the language models on all of the corpus.

Each study stops where it is when its time is over, and keeps what it has. Nothing is chosen here: configurations are
the committed ones, and a test set is read once, at the end.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu_checks import GPU
from benchmarks.gpu_inputs import IMAGES, LANGUAGE, LanguageInputs, best_settings, read_language, restore_images
from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.experiment.measure import per_conversation_sums
from newllm_core.metrics.prediction import NATS_PER_BIT, perplexity
from newllm_core.model import NewLLM
from newllm_core.runs.reproducibility import derived_generator, seed_everything
from newllm_core.training.captured import CapturedStep, DeviceRate, device_options
from newllm_core.training.phase1 import train_phase1
from newllm_core.training.phase2 import train_phase2
from newllm_core.vision.config import VisionDataConfig, VisionModelConfig, VisionTrainConfig, augmentation_pack
from newllm_core.vision.data.augmentation import Augmentation
from newllm_core.vision.data.records import ImageData, LabelledImages, normalised
from newllm_core.vision.data.splits import OneTestReading, load_image_data, read_test_images
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.optimisation import ema_decay_at, learning_rate_factor, parameter_groups

Keep = Callable[[str, Any], None]
Study = Callable[[Path, float, Keep], None]  # inputs, when to stop (time.perf_counter), where results go
_SEED, _THREADS = 42, 2
# Conversations, largest first: it is what the CPU cannot do.
_SIZES = (2560, 1280, 640, 320, 160, 80)
_AUGMENTED_BATCHES = 8  # that are drawn at once: RandAugment's launches cost the same for more images


def best(folder: Path, deadline: float, keep: Keep) -> None:
    """The better model on ever less of the corpus, while there is time."""
    _sizes("best", _best_nats, folder, deadline, keep)


def gru(folder: Path, deadline: float, keep: Keep) -> None:
    """The GRU with the same cache."""
    _sizes("gru-cache", _gru_nats, folder, deadline, keep)


def _sizes(
    name: str, nats_of: Callable[[LanguageInputs, Tensor, Tensor], tuple[Tensor, dict[str, Any]]],
    folder: Path, deadline: float, keep: Keep,
) -> None:  # fmt: skip
    inputs = read_language(folder / LANGUAGE)
    took = 0.0
    for conversations in _SIZES:
        # Half the text takes half the time: no size is begun that would not end.
        if time.perf_counter() + took / 2 > deadline:
            return
        began = time.perf_counter()
        seed_everything(_SEED, _THREADS)
        train = inputs.train[: int(inputs.train_boundaries[conversations])].to(GPU)
        nats, details = nats_of(inputs, train, inputs.validation.to(GPU))
        took = time.perf_counter() - began
        keep(f"{name}, {conversations} conversations", {**_row(inputs, train, nats, took), **details})


def _row(inputs: LanguageInputs, train: Tensor, nats: Tensor, seconds: float) -> dict[str, Any]:
    """Judged as the committed rows are: token by token, and by conversation for paired intervals."""
    total = float(nats.double().sum())
    return {
        "train_tokens": len(train), "validation_targets": len(nats), "seed": _SEED, "seconds": seconds,
        "validation_perplexity": perplexity(total / len(nats)),
        "bits_per_byte": total / NATS_PER_BIT / int(inputs.byte_lengths[inputs.validation[1:]].sum()),
        "validation_conversations": per_conversation_sums(nats.cpu(), inputs.validation_boundaries),
    }  # fmt: skip


def _best_nats(inputs: LanguageInputs, train: Tensor, validation: Tensor) -> tuple[Tensor, dict[str, Any]]:
    settings = best_settings()
    model = NewLLM(settings.model, inputs.embeddings, _SEED).to(GPU)
    torch.manual_seed(derived_generator("phase 1 of contenders", _SEED).initial_seed())
    began = time.perf_counter()
    phase1 = train_phase1(model, train, validation, settings.phase1, _SEED)
    phase1_seconds = time.perf_counter() - began
    phase2 = train_phase2(model, phase1, train, validation, settings.phase2, _SEED)
    assert phase1.history is not None  # it has just been trained
    details = {
        "phase1_seconds": phase1_seconds, "iterations_kept": phase1.history.best_iteration,
        "best_epoch": phase2.best_epoch, "epochs": [epoch.validation_perplexity for epoch in phase2.epochs],
    }  # fmt: skip
    return phase2.validation.nats, details


def _gru_nats(inputs: LanguageInputs, train: Tensor, validation: Tensor) -> tuple[Tensor, dict[str, Any]]:
    # Imported here: the networks' list names minGRU too, whose library the other studies do without.
    from newllm_core.baselines.judge import judge_network
    from newllm_core.baselines.registry import baseline_config
    from newllm_core.baselines.train import train_network

    model = NewLLM(ModelConfig(), inputs.embeddings, _SEED).to(GPU)
    config = baseline_config("gru-cache")
    trained = train_network(model, train, validation, config, _SEED)
    nats = judge_network(trained.network, model, train, validation, config).nats
    return nats, {"best_epoch": trained.best_epoch, "epochs": [e.validation_perplexity for e in trained.epochs]}


def nkat(folder: Path, deadline: float, keep: Keep) -> None:
    """CIFAR-10 (JPEG) with the `nkat_colab` profile: width 384, depth 7, 40 epochs, rescue pack; bfloat16 autocast."""
    with tempfile.TemporaryDirectory() as unpacked:
        archive = Path(unpacked) / "cifar10_jpeg.zip"
        restore_images(folder / IMAGES, archive)
        data = VisionDataConfig(dataset="cifar10-jpeg", path=str(archive))
        images = load_image_data(data)
        training = _NkatTraining(images, VisionModelConfig(), VisionTrainConfig())
        training.run(deadline, keep)
        test = read_test_images(data, OneTestReading())
    correct = training.correct(training.average, test)
    keep("test", {"accuracy": correct / len(test), "correct": correct, "images": len(test)})


class _NkatTraining:
    """The project's model, augmentation, schedule and average, a step recorded as a CUDA graph.

    Unlike `vision.training`: products in bfloat16, images augmented for eight batches at once (CutMix and Mixup find
    their partners there), and the average of the last epoch is judged, not of the best one.
    """

    def __init__(self, images: ImageData, shape: VisionModelConfig, config: VisionTrainConfig) -> None:
        self.images, self.config = images, config
        self.train_images, self.train_labels = images.train.images.to(GPU), images.train.labels.to(GPU)
        self.augmentation = Augmentation(augmentation_pack("rescue"), images, _SEED)
        torch.manual_seed(derived_generator("nkat study", _SEED).initial_seed())
        self.model = NkatModel(shape, _SEED).to(GPU)
        self.average = NkatModel(shape, _SEED).to(GPU).eval().requires_grad_(False)
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, **device_options(GPU))
        self.rate = DeviceRate(self.optimizer, GPU)
        self.decay = torch.zeros((), device=GPU)
        self.losses = torch.zeros((), dtype=torch.float64, device=GPU)
        self.step = CapturedStep(self._step)
        self.steps_per_epoch = len(images.train) // config.batch_size

    def run(self, deadline: float, keep: Keep) -> None:
        """Epochs until the end or the deadline; figures after each."""
        epochs = []
        for epoch in range(1, self.config.epochs + 1):
            if time.perf_counter() > deadline:
                break
            began = time.perf_counter()
            self.losses.zero_()
            self._epoch(epoch)
            correct = self.correct(self.average, self.images.selection)
            figures = {
                "epoch": epoch, "train_loss": float(self.losses) / self.steps_per_epoch,
                "selection_accuracy": correct / len(self.images.selection), "seconds": time.perf_counter() - began,
            }  # fmt: skip
            if not math.isfinite(figures["train_loss"]):
                raise RuntimeError(f"NKAT, epoch {epoch}: the training loss is {figures['train_loss']}")
            epochs.append(figures)
            keep("epochs", epochs)
            print(figures, flush=True)
        keep("configuration", {
            "model": dataclasses.asdict(self.model.config), "train": dataclasses.asdict(self.config),
            "augmentation": "rescue, eight batches at once", "products": "bfloat16 autocast", "seed": _SEED,
            "parameters": self.model.parameter_counts()["total"], "epochs_of": [len(epochs), self.config.epochs],
        })  # fmt: skip

    def _epoch(self, epoch: int) -> None:
        self.model.train()
        order = torch.randperm(len(self.train_labels), generator=derived_generator("vision order", _SEED, epoch))
        size, done = self.config.batch_size, (epoch - 1) * self.steps_per_epoch
        whole = order[: self.steps_per_epoch * size].to(GPU)
        for part in whole.split(_AUGMENTED_BATCHES * size):
            batch = self.augmentation(self.train_images[part], self.train_labels[part], done)
            for images, targets in zip(batch.images.split(size), batch.targets.split(size), strict=True):
                self._before(done)
                self.step(images, targets)
                done += 1

    def _before(self, step: int) -> None:
        """The host's share: this step's learning rate and decay."""
        total, warmup = (count * self.steps_per_epoch for count in (self.config.epochs, self.config.warmup_epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(step, total, warmup)
        self.rate.update()
        assert self.config.ema_decay is not None  # the profile has one
        self.decay.fill_(ema_decay_at(step, self.config.ema_decay))

    def _step(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.rate.step()
        self._follow()
        self.losses += loss.detach()
        return (loss.detach(),)

    @torch.no_grad()
    def _follow(self) -> None:
        """The average of weights and running statistics: `a <- d a + (1 - d) w`."""
        for kept, new in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.mul_(self.decay).add_(new * (1 - self.decay))
            else:
                kept.copy_(new)

    @torch.no_grad()
    def correct(self, model: NkatModel, images: LabelledImages) -> int:
        """How many are classified rightly, in float32."""
        right = torch.zeros((), dtype=torch.int64, device=GPU)
        for part, labels in zip(images.images.split(1000), images.labels.split(1000), strict=True):
            right += (model(normalised(part.to(GPU), self.images.normalisation)).argmax(1) == labels.to(GPU)).sum()
        return int(right)


STUDIES: dict[str, Study] = {"best": best, "gru": gru, "nkat": nkat}
