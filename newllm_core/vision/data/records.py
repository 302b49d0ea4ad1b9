"""What every image source gives: images and labels in memory, where they came from, and how they are normalised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from newllm_core.data.errors import DataError

CHUNK_IMAGES = 2000  # images handled at once where a copy in a larger type is needed


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    ``images``: uint8 `[n, channels, height, width]`, 1 channel (grey) or 3 (RGB). ``labels``: int64 `[n]`, from 0.
    ``sources``: SHA-256 of what was read, by name (a file's name without its folder).
    """

    images: torch.Tensor
    labels: torch.Tensor
    sources: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor) -> "LabelledImages":
        """The images at ``indices``, int64 `[k]`, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices], self.sources)


@dataclass(frozen=True)
class Normalisation:
    """Mean and population standard deviation of each channel, in units of full intensity (0 … 1)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, unit_images: torch.Tensor) -> torch.Tensor:
        """Float images `[n, channels, h, w]` in 0 … 1, to mean 0 and standard deviation 1 per channel."""
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(values, device=unit_images.device).view(shape) for values in (self.mean, self.std))
        return (unit_images - mean) / std


@dataclass(frozen=True)
class ImageData:
    """A data set without its test images.

    ``train`` and ``selection`` have no image in common; ``selection`` is for every choice (epoch, trial, variant).
    ``normalisation`` comes from ``train`` alone. ``mirrorable``: a mirrored image keeps its class. ``provenance``:
    plain values for a run's record. ``read``: SHA-256 of the data set (`registry.images_read`) when it was loaded.
    """

    train: LabelledImages
    selection: LabelledImages
    classes: tuple[str, ...]
    provenance: dict[str, Any]
    normalisation: Normalisation
    mirrorable: bool
    read: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def unit_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images `[n, channels, h, w]` to float32 in 0 … 1."""
    return images.to(torch.float32) / 255


def normalised(images: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """uint8 images `[n, channels, h, w]` as a model reads them: float32, without augmentation."""
    return normalisation.apply(unit_float(images))


def channel_statistics(images: torch.Tensor) -> Normalisation:
    """Mean and standard deviation per channel of uint8 images `[n, channels, h, w]`, from exact counts.

    Raises DataError for a channel in which every pixel has the same value.
    """
    counts = torch.stack([_value_counts(images[:, channel]) for channel in range(images.shape[1])])
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    if not bool((std > 0).all()):
        constant = int(torch.nonzero(std <= 0)[0])
        raise DataError(f"channel {constant}: every pixel of the training images has the same value; nothing to learn")
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


def _value_counts(plane: torch.Tensor) -> torch.Tensor:
    """How often each value 0 … 255 occurs in a uint8 tensor: int64 `[256]`."""
    return torch.stack([torch.bincount(part.flatten(), minlength=256) for part in plane.split(CHUNK_IMAGES)]).sum(0)


def zero_based_labels(labels: torch.Tensor, num_classes: int, first_label: int, origin: str) -> torch.Tensor:
    """Labels ``first_label`` … ``first_label + num_classes - 1`` as int64 `[n]` from 0.

    Raises DataError that names ``origin`` and the first label outside this range, by its position from 1.
    """
    shifted = labels.to(torch.int64) - first_label
    wrong = torch.nonzero((shifted < 0) | (shifted >= num_classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{origin}: expected labels {first_label} to {first_label + num_classes - 1}, found {int(labels[first])} "
            f"at image {first + 1} ({len(wrong)} of {len(labels)} labels are out of range)"
        )
    return shifted


def require_class_names(found: Sequence[str], expected: Sequence[str], origin: str) -> None:
    """Raises DataError unless both name the same classes in the same order; case and punctuation do not count."""
    plain = [["".join(filter(str.isalnum, name.lower())) for name in names] for names in (found, expected)]
    if plain[0] != plain[1]:
        raise DataError(f"{origin}: expected the classes {', '.join(expected)}, found {', '.join(found)}")
