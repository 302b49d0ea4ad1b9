"""IDX files, plain or compressed with gzip: MNIST, Fashion-MNIST, EMNIST.

Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer, then the
values, the last dimension fastest. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch

from newllm_core.data.errors import DataError
from newllm_core.runs.files import sha256_file
from newllm_core.vision.data.records import LabelledImages, zero_based_labels

UNSIGNED_BYTE = 0x08  # the one type code that images and labels use
GZIP_MAGIC = b"\x1f\x8b"
MAX_VALUES = 1 << 30  # the largest set in use, EMNIST by class, has 547 million; a small file can unpack to anything


@dataclass(frozen=True)
class IdxNames:
    """How a data set names its files; ``split`` -> prefix, "-images-idx3-ubyte" and "-labels-idx1-ubyte" follow."""

    train: str
    test: str
    first_label: int = 0
    transposed: bool = False  # EMNIST stores each image with rows and columns exchanged


MNIST_NAMES = IdxNames("train", "t10k")
EMNIST_LETTERS_NAMES = IdxNames("emnist-letters-train", "emnist-letters-test", first_label=1, transposed=True)


def parse_idx(stream: BinaryIO, origin: str) -> np.ndarray:
    """The array of an IDX file, uncompressed; uint8. No more is read than its header announces.

    Raises DataError that names ``origin``.
    """
    shape = read_shape(stream, origin)
    expected = math.prod(shape)
    if expected > MAX_VALUES:
        raise DataError(f"{origin}: expected at most {MAX_VALUES:,} values, the header announces {expected:,}")
    values = stream.read(expected + 1)
    if len(values) != expected:
        found = len(values) if len(values) < expected else "more"
        raise DataError(f"{origin}: expected {expected} values for the shape {shape}, found {found}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_shape(stream: BinaryIO, origin: str) -> tuple[int, ...]:
    """What an IDX file's header announces. Raises DataError that names ``origin``."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{origin}: expected an IDX file of unsigned bytes (it starts with 00 00 08), found {start.hex(' ')}"
        )
    header = stream.read(4 * start[3])
    if len(header) < 4 * start[3]:
        raise DataError(f"{origin}: expected {start[3]} dimensions, the file ends before them")
    return tuple(int(size) for size in np.frombuffer(header, ">u4"))


def read_idx(path: Path) -> tuple[np.ndarray, str]:
    """The array of an IDX file and the SHA-256 of the file as it lies on disk. Raises DataError."""
    return _from_file(path, parse_idx), sha256_file(path)


Parsed = TypeVar("Parsed")


def _from_file(path: Path, parse: Callable[[BinaryIO, str], Parsed]) -> Parsed:
    try:
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
            return parse(stream, str(path))  # type: ignore[arg-type]  # a GzipFile is no BinaryIO to mypy
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged ({error}); get it again") from error


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def read_idx_split(folder: Path, split: str, names: IdxNames, num_classes: int) -> LabelledImages:
    """One split ("train" or "test") of a folder of IDX files, as grey images. Raises DataError."""
    image_path, label_path = idx_files(folder, split, names)
    images, image_hash = read_idx(image_path)
    labels, label_hash = read_idx(label_path)
    _check_shapes(image_path, images.shape, label_path, labels.shape)
    # Copies: torch warns of memory that cannot be written to.
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)
    if names.transposed:
        pixels = pixels.transpose(2, 3).contiguous()
    checked = zero_based_labels(torch.from_numpy(labels.copy()), num_classes, names.first_label, str(label_path))
    return LabelledImages(pixels, checked, {image_path.name: image_hash, label_path.name: label_hash})


def check_idx_split(folder: Path, split: str, names: IdxNames, size: tuple[int, int]) -> None:
    """Whether a split's files are there and announce images of ``size`` (rows, columns) and as many labels.

    Nothing beyond their headers is read. Raises DataError.
    """
    image_path, label_path = idx_files(folder, split, names)
    images, labels = (_from_file(path, read_shape) for path in (image_path, label_path))
    _check_shapes(image_path, images, label_path, labels)
    found = images[:0:-1] if names.transposed else images[1:]
    if found != size:
        raise DataError(f"{image_path}: expected images of {size}, rows and columns, as for training, found {found}")


def _check_shapes(image_path: Path, images: tuple[int, ...], label_path: Path, labels: tuple[int, ...]) -> None:
    if len(images) != 3 or len(labels) != 1 or images[0] != labels[0] or labels[0] == 0:
        raise DataError(
            f"{image_path.parent}: expected images [n, rows, columns] and as many labels [n], n at least 1, found "
            f"{list(images)} in {image_path.name} and {list(labels)} in {label_path.name}"
        )


def idx_files(folder: Path, split: str, names: IdxNames) -> tuple[Path, Path]:
    """Images and labels of one split. Raises DataError where one is missing."""
    prefix = names.train if split == "train" else names.test
    return _existing(folder, f"{prefix}-images-idx3-ubyte"), _existing(folder, f"{prefix}-labels-idx1-ubyte")


def _existing(folder: Path, name: str) -> Path:
    # EMNIST's own archive unpacks to a folder of that name.
    for path in (folder / name, folder / f"{name}.gz", folder / "gzip" / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: expected the file {name} or {name}.gz, found neither")
