"""Which images are trained on, which are held out for every choice, and the one way to the test images.

Source: docs/method.md, section 12.4: 10 % of the training images, at most 5,000, are held out for selection; the
test set is used once.
"""

import torch

from newllm_core.data.errors import DataError
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data.convert import converted
from newllm_core.vision.data.records import ImageData, LabelledImages, channel_statistics
from newllm_core.vision.data.registry import IMAGE_SOURCES, check_test_set, images_read, read_split


class OneTestReading:
    """A run's right to read its test set: good for one reading. ``readings`` goes into the run's record."""

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self) -> None:
        self.readings = 0
        self._spent_on = ""

    def spend(self, dataset: str) -> None:
        """Raises DataError when it was spent before."""
        if self.readings:
            raise DataError(
                f"{dataset}: this run has read its test set already ({self._spent_on}); a test set that is looked at "
                "twice selects. Use the selection images for every choice"
            )
        self.readings, self._spent_on = 1, dataset


def load_image_data(config: VisionDataConfig) -> ImageData:
    """Training and selection images of a data set; of its test images, only that they are there is looked at.

    Raises DataError when it is missing, damaged or too small for the split asked for.
    """
    read = images_read(config)
    everything, classes = read_split(config, "train")
    height, width = everything.images.shape[2:]
    check_test_set(config, classes, (height, width))
    train_indices, selection_indices = split_indices(everything.labels, config)
    train, selection = (_prepared(everything, indices, config) for indices in (train_indices, selection_indices))
    normalisation = channel_statistics(train.images)
    source = IMAGE_SOURCES[config.dataset]
    mirrorable = source.mirrorable if config.mirrorable is None else config.mirrorable
    provenance = {
        "dataset": config.dataset,
        "title": source.title,
        "sources": dict(everything.sources),
        "stored_training_images": len(everything),
        "train_images": len(train),
        "selection_images": len(selection),
        "train_images_per_class": torch.bincount(train.labels, minlength=len(classes)).tolist(),
        "image_shape": list(train.images.shape[1:]),
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "mirrorable": mirrorable,
    }
    return ImageData(train, selection, classes, provenance, normalisation, mirrorable, read)


def read_test_images(config: VisionDataConfig, reading: OneTestReading) -> LabelledImages:
    """The test images, in the form of the training images. The only function that reads them.

    Raises DataError at the second call with the same ``reading``, whatever the data set.
    """
    reading.spend(config.dataset)
    stored, _ = read_split(config, "test")
    return LabelledImages(converted(stored.images, config.colour, config.image_size), stored.labels, stored.sources)


def split_indices(labels: torch.Tensor, config: VisionDataConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the training and the selection images, int64, without an image in common.

    Both have each class in its share of ``labels``, `[n]`. They depend on ``split_seed`` alone; fewer training images
    are a prefix of more, and the selection images stay the same. Raises DataError for too few images.
    """
    order = stratified_order(labels, derived_generator("selection split", config.split_seed))
    num_selection = min(round(config.holdout_share * len(labels)), config.holdout_max)
    available = len(labels) - num_selection
    wanted = available if config.num_train_images is None else config.num_train_images
    if num_selection < 1 or wanted > available:
        raise DataError(
            f"{config.dataset}: {len(labels)} images give {num_selection} for selection (expected at least 1) and "
            f"{available} for training, of which {wanted} are asked for"
        )
    return order[num_selection : num_selection + wanted], order[:num_selection]


def stratified_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random order of the positions 0 … n - 1, of which every prefix holds each class in its share.

    Each class is shuffled and spread evenly over the order: with classes of equal size, a prefix is within one image of
    its share. ``labels`` `[n]`, result int64 `[n]`.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    # Classes of equal size meet at the same places: there the shuffle decides, not the label.
    return shuffled[torch.argsort(place[shuffled], stable=True)]


def _prepared(images: LabelledImages, indices: torch.Tensor, config: VisionDataConfig) -> LabelledImages:
    chosen = images.subset(indices)
    return LabelledImages(converted(chosen.images, config.colour, config.image_size), chosen.labels, chosen.sources)
