"""Training batches, changed at random on the device they are on: the baseline and the rescue pack.

Source: docs/method.md, section 12.4.

Every draw is made on the CPU from seed, step and the name of the part, so one seed and step give one batch on every
device, and switching a part on or off leaves the draws of the others as they were: variants are compared on the same
crops. No part loops over images. Order: crop, flip, rotation, RandAugment, channel shuffle, normalisation, Cutout, then
CutMix or Mixup.

Flip, rotation, shuffle, Cutout and RandAugment's operations are kornia's. Its RandomCrop loops over images, its
RandAugment draws one pair of operations for a whole batch, and its CutMix and Mixup cannot exclude each other image by
image (nor does its Mixup know the Beta distribution).
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import kornia.augmentation as kornia_augmentation
import torch
import torch.nn.functional as F

from newllm_core.config.schema import ConfigError
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.config import AugmentationConfig
from newllm_core.vision.data.rand_augment import rand_augment
from newllm_core.vision.data.records import ImageData, unit_float

logger = logging.getLogger("newllm")

# Words of class names that a mirror image may make wrong.
SIDES = {
    "left",
    "right",
    "clockwise",
    "counterclockwise",
    "anticlockwise",
    "links",
    "rechts",
    "gauche",
    "droite",
    "左",
    "右",
}
Part = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class AugmentedBatch:
    """``images``: float32 `[n, channels, h, w]`, normalised; ``targets``: class probabilities `[n, classes]`."""

    images: torch.Tensor
    targets: torch.Tensor


class Augmentation:
    """The augmentation of one run: ``augmentation(images, labels, step)``.

    Raises ConfigError when the configuration does not fit the images.
    """

    def __init__(self, config: AugmentationConfig, data: ImageData, seed: int) -> None:
        channels, height, width = data.shape
        _check_fit(config, channels, min(height, width))
        if config.flip_probability and data.mirrorable:
            _warn_of_sides(data.classes)
        self._config, self._data, self._seed = config, data, seed
        self._parts = dict(_parts(config, data))
        self._cutout = _cutout(config.cutout_size, height, width) if config.cutout_size else None

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> AugmentedBatch:
        """uint8 images `[n, channels, h, w]` and labels `[n]` of training step ``step``, from 0, on one device."""
        if self._config.crop_padding:  # of bytes: a quarter of what is moved later
            with drawing(self._seed, step, "crop"):
                images = random_crop(images, self._config.crop_padding)
        changed = unit_float(images)
        for name, part in self._parts.items():
            with drawing(self._seed, step, name):
                changed = part(changed)
        changed = self._data.normalisation.apply(changed)
        if self._cutout is not None:
            with drawing(self._seed, step, "cutout"):
                changed = self._cutout(changed)
        targets = smoothed_targets(labels, len(self._data.classes), self._config.label_smoothing)
        if self._config.cutmix_probability or self._config.mixup_probability:
            with drawing(self._seed, step, "mixing"):
                changed, targets = mixed(changed, targets, self._config)
        return AugmentedBatch(changed, targets)


@contextmanager
def drawing(seed: int, step: int, part: str) -> Iterator[None]:
    """Inside, torch's CPU generator gives this part's draws; outside, it goes on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        # The default generator, because kornia takes no other; torch.manual_seed would reseed CUDA too.
        torch.default_generator.manual_seed(derived_generator("augmentation", seed, step, part).initial_seed())
        yield


def _check_fit(config: AugmentationConfig, channels: int, side: int) -> None:
    if config.channel_shuffle_probability and channels != 3:
        raise ConfigError(f"channel_shuffle_probability needs images of 3 channels, given {channels}; expected 0")
    if config.cutout_size > side:
        raise ConfigError(f"cutout_size: expected at most the image's side, {side}, given {config.cutout_size}")


def _warn_of_sides(classes: Sequence[str]) -> None:
    """Of classes that a mirror image may swap."""
    # Words, and single characters for languages that write none apart.
    sided = [name for name in classes if SIDES & {*re.findall(r"[^\W\d_]+", name.lower()), *name}]
    if sided:
        logger.warning(
            "training images are mirrored, and the classes %s sound as if a mirror image belonged to another class; "
            "mirrorable=False of the data leaves them as they are", ", ".join(sided),
        )  # fmt: skip


def _parts(config: AugmentationConfig, data: ImageData) -> Iterator[tuple[str, Part]]:
    """What changes cropped images in 0 … 1, in order; parts that are off are left out."""
    if config.flip_probability and data.mirrorable:
        yield "flip", kornia_augmentation.RandomHorizontalFlip(p=config.flip_probability)
    if config.rotation_degrees:
        yield "rotation", kornia_augmentation.RandomRotation(config.rotation_degrees, p=1.0)
    if config.randaugment_operations:
        operations, magnitude = config.randaugment_operations, config.randaugment_magnitude
        yield "randaugment", lambda images: rand_augment(images, operations, magnitude)
    if config.channel_shuffle_probability:
        yield "channel shuffle", kornia_augmentation.RandomChannelShuffle(p=config.channel_shuffle_probability)


def random_crop(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Pad with black, then cut each image `[channels, h, w]` of `[n, …]` out at a place of its own."""
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count, 1)).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, [padding] * 4)
    each = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Indexing around the channels puts them last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _cutout(size: int, height: int, width: int) -> Part:
    """A square of the mean colour, `size` pixels a side and wholly inside the image, in every image."""
    share = size * size / (height * width)
    return kornia_augmentation.RandomErasing(scale=(share, share), ratio=(1.0, 1.0), value=0.0, p=1.0)


def smoothed_targets(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Class probabilities `[n, classes]`: 1 - smoothing on the label, and smoothing shared by all classes."""
    return F.one_hot(labels, num_classes).to(torch.float32) * (1 - smoothing) + smoothing / num_classes


def mixed(images: torch.Tensor, targets: torch.Tensor, config: AugmentationConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image with another of the batch by CutMix, or by Mixup, or leave it; targets by the share that stays.

    Images `[n, channels, h, w]`, targets `[n, classes]`; both come back in their shape.
    CutMix: Yun et al. 2019, arXiv:1905.04899; Mixup: Zhang et al. 2018, arXiv:1710.09412.
    """
    count, _, height, width = images.shape
    partner = torch.randperm(count).to(images.device)
    draw = torch.rand(count, 1, 1, 1)
    cut = draw < config.cutmix_probability
    blend = ~cut & (draw < config.cutmix_probability + config.mixup_probability)
    stays = _shares((count, 1, 1, 1), config.mixup_alpha)
    outside = 1 - random_boxes(1 - _shares((count,), config.cutmix_alpha), height, width)
    keep = torch.where(cut, outside, torch.where(blend, stays, torch.ones(()))).to(images.device)
    share = keep.mean(dim=(1, 2, 3)).unsqueeze(1)
    return images * keep + images[partner] * (1 - keep), targets * share + targets[partner] * (1 - share)


def _shares(shape: tuple[int, ...], alpha: float) -> torch.Tensor:
    return torch.distributions.Beta(alpha, alpha).sample(shape)


def random_boxes(areas: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """1 inside a box, 0 outside, `[n, 1, height, width]`; ``areas`` `[n]` are shares of the image.

    A box has the image's proportions and its centre anywhere in the image; what reaches over the edge is cut off.
    """
    sides = areas.sqrt()
    rows, columns = (_box_extent(sides, length) for length in (height, width))
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1).to(torch.float32)


def _box_extent(sides: torch.Tensor, length: int) -> torch.Tensor:
    """Which of ``length`` positions a box covers: bool `[n, length]`; ``sides`` `[n]` are shares of the length."""
    centres = torch.randint(length, sides.shape)
    extents = (sides * length).to(torch.int64)
    starts = (centres - extents // 2).unsqueeze(1)
    positions = torch.arange(length)
    return (positions >= starts) & (positions < starts + extents.unsqueeze(1))
