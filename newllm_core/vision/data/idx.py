"""IDX files, plain or compressed with gzip: MNIST, Fashion-MNIST, EMNIST.

Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer, then the
values, the last dimension fastest. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from newllm_core.data.errors import DataError
from newllm_core.runs.files import sha256_bytes
from newllm_core.vision.data.records import LabelledImages, zero_based_labels

UNSIGNED_BYTE = 0x08  # the one type code that images and labels use
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxNames:
    """How a data set names its files; ``split`` -> prefix, "-images-idx3-ubyte" and "-labels-idx1-ubyte" follow."""

    train: str
    test: str
    first_label: int = 0
    transposed: bool = False  # EMNIST stores each image with rows and columns exchanged


MNIST_NAMES = IdxNames("train", "t10k")
EMNIST_LETTERS_NAMES = IdxNames("emnist-letters-train", "emnist-letters-test", first_label=1, transposed=True)


def parse_idx(content: bytes, origin: str) -> np.ndarray:
    """The array in an IDX file's bytes, uncompressed; uint8. Raises DataError that names ``origin``."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{origin}: expected an IDX file of unsigned bytes (it starts with 00 00 08), found {content[:4].hex(' ')}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{origin}: expected {content[3]} dimensions, the file ends before them")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=content[3], offset=4))
    expected, found = math.prod(shape), len(content) - start
    if expected != found:
        raise DataError(f"{origin}: expected {expected} values for the shape {shape}, found {found}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx(path: Path) -> tuple[np.ndarray, str]:
    """The array of an IDX file and the SHA-256 of the file as it lies on disk. Raises DataError."""
    stored = path.read_bytes()
    try:
        content = gzip.decompress(stored) if stored.startswith(GZIP_MAGIC) else stored
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged ({error}); get it again") from error
    return parse_idx(content, str(path)), sha256_bytes(stored)


def read_idx_split(folder: Path, split: str, names: IdxNames, num_classes: int) -> LabelledImages:
    """One split ("train" or "test") of a folder of IDX files, as grey images. Raises DataError."""
    image_path, label_path = idx_files(folder, split, names)
    images, image_hash = read_idx(image_path)
    labels, label_hash = read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{folder}: expected images [n, rows, columns] and as many labels [n], n at least 1, found "
            f"{list(images.shape)} in {image_path.name} and {list(labels.shape)} in {label_path.name}"
        )
    # Copies: torch warns of memory that cannot be written to.
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)
    if names.transposed:
        pixels = pixels.transpose(2, 3).contiguous()
    checked = zero_based_labels(torch.from_numpy(labels.copy()), num_classes, names.first_label, str(label_path))
    return LabelledImages(pixels, checked, {image_path.name: image_hash, label_path.name: label_hash})


def idx_files(folder: Path, split: str, names: IdxNames) -> tuple[Path, Path]:
    """Images and labels of one split. Raises DataError where one is missing."""
    prefix = names.train if split == "train" else names.test
    return _existing(folder, f"{prefix}-images-idx3-ubyte"), _existing(folder, f"{prefix}-labels-idx1-ubyte")


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: expected the file {name} or {name}.gz, found neither")
