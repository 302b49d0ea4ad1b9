"""The vision line on a CUDA device: augmentation and a training step against the CPU. Needs kornia."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_checks import GPU, Check
from newllm_core.vision.config import VisionDataConfig, augmentation_pack, model_preset
from newllm_core.vision.data.augmentation import Augmentation, AugmentedBatch
from newllm_core.vision.data.splits import load_image_data
from newllm_core.vision.model.nkat import NkatModel

_BATCH = 128
# Images may differ where an operation has a step: posterising, equalising, the edge of a rotated image.
_SHARE_OF_PIXELS = 0.01


def vision_checks() -> Iterator[Check]:
    """Both devices draw the same augmentation, and a step gives the same loss and gradient."""
    data = load_image_data(VisionDataConfig(dataset="colour"))
    augmentation = Augmentation(augmentation_pack("rescue"), data, 42)
    images, labels = data.train.images[:_BATCH], data.train.labels[:_BATCH]
    here = augmentation(images, labels, 3)
    there = augmentation(images.to(GPU), labels.to(GPU), 3)
    apart = (there.images.cpu() - here.images).abs() > 1e-3
    yield Check(
        "augmentation: pixels that differ by more than 0.001", float(apart.float().mean()), _SHARE_OF_PIXELS, "share"
    )
    yield Check("augmentation: targets", float((there.targets.cpu() - here.targets).abs().max()), 1e-5, "probability")
    shape = model_preset(
        image_size=data.shape[1], num_classes=len(data.classes), attention_dropout=0.0, embedding_dropout=0.0,
        head_dropout=0.0, top_k=None, top_p=1.0,
    )  # fmt: skip
    model = NkatModel(shape, 42)
    losses, gradients = zip(*[_step(copy.deepcopy(model).to(d), here) for d in (torch.device("cpu"), GPU)], strict=True)
    yield Check("NKAT step: loss", float((losses[1].cpu() - losses[0]).abs()), 1e-4, "nats")
    distance = (gradients[1].cpu() - gradients[0]).norm() / gradients[0].norm()
    yield Check("NKAT step: gradient", float(distance), 1e-3, "relative")


def _step(model: NkatModel, batch: AugmentedBatch) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    loss = functional.cross_entropy(model(batch.images.to(device)), batch.targets.to(device))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)
