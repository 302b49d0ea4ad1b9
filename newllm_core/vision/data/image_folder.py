"""Images as files: a folder, or a zip of one, with `train/<class>/` and `test/<class>/`.

A zip is read in place, never unpacked. Images are decoded with Pillow; the file and member of one that cannot be
decoded are named.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from newllm_core.data.errors import DataError
from newllm_core.runs.files import sha256_file
from newllm_core.vision.data.records import LabelledImages

SPLITS = ("train", "test")
LAYOUT = "train/<class>/<image> and test/<class>/<image>"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_FORMATS = ("JPEG", "PNG")  # Pillow's decoders; its many others are never tried on a file
IMAGE_MODES = ("1", "L", "P", "RGB")  # Pillow's names; anything else would lose alpha, depth or colour space
# What Pillow and zipfile raise for bytes that are not what they claim to be.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageTree:
    """The files of a folder or zip: relative names with `/`, sorted, and a function that reads one of them."""

    origin: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def decode_image(content: bytes, channels: int, origin: str) -> np.ndarray:
    """Encoded bytes to uint8 `[channels, height, width]`; 1 channel is grey, 3 is RGB.

    Raises DataError that names ``origin`` for bytes that are no image, a damaged one, or one with other pixels.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        image.load()
    except DAMAGE as error:
        raise DataError(f"{origin}: the image is damaged or no image at all ({error})") from error
    if image.mode not in IMAGE_MODES:
        raise DataError(f"{origin}: expected a grey or RGB image, found one of Pillow's mode {image.mode!r}")
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


@contextmanager
def open_tree(path: Path) -> Iterator[ImageTree]:
    """The files below ``path``, hidden ones left out. Raises DataError when it is neither a folder nor a zip."""
    if path.is_dir():
        files = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        yield ImageTree(str(path), _visible(files), lambda name: (path / name).read_bytes())
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a folder or a zip file, found something else ({error})") from error
    with archive:
        files = (member.filename for member in archive.infolist() if not member.is_dir())
        yield ImageTree(str(path), _visible(files), archive.read)


def _visible(names: Iterator[str]) -> tuple[str, ...]:
    """Sorted, without what file managers leave behind (.DS_Store, __MACOSX/)."""
    hidden = (".", "__MACOSX")
    return tuple(sorted(name for name in names if not any(part.startswith(hidden) for part in name.split("/"))))


def class_names(path: Path) -> tuple[str, ...]:
    """The class folders of the training split, sorted. Raises DataError."""
    with open_tree(path) as tree:
        return tuple(sorted(_names_by_class(tree, "train")))


def _names_by_class(tree: ImageTree, split: str) -> dict[str, list[str]]:
    """Class -> its files in ``split``, sorted."""
    by_class: dict[str, list[str]] = {}
    for name in tree.names:
        parts = name.split("/")
        if parts[0] != split:
            continue
        if len(parts) != 3 or not name.lower().endswith(IMAGE_SUFFIXES):
            raise DataError(
                f"{tree.origin}: expected {LAYOUT}, images ending in {', '.join(IMAGE_SUFFIXES)}; found {name}"
            )
        by_class.setdefault(parts[1], []).append(name)
    if not by_class:
        found = sorted({name.split("/")[0] for name in tree.names})[:5]
        raise DataError(f"{tree.origin}: expected {LAYOUT}; nothing is in {split}/, found {found}")
    return by_class


def read_image_split(path: Path, split: str, classes: Sequence[str], channels: int = 3) -> LabelledImages:
    """One split ("train" or "test") of a folder or zip: uint8 `[n, channels, h, w]`, by class, then by name.

    ``classes`` gives the labels' order. Raises DataError for another layout, other classes, images of unequal size, and
    a damaged image (named).
    """
    with open_tree(path) as tree:
        by_class = _names_by_class(tree, split)
        if set(by_class) != set(classes):
            expected, found = (", ".join(sorted(names)) for names in (classes, by_class))
            raise DataError(f"{path}, {split}/: expected the class folders {expected}; found {found}")
        ordered = [(name, label) for label, folder in enumerate(classes) for name in by_class[folder]]
        content = [_read_member(tree, name) for name, _ in ordered]
    images = stack_images(
        (decode_image(data, channels, f"{path}, {name}") for data, (name, _) in zip(content, ordered)),
        (f"{path}, {name}" for name, _ in ordered),
    )
    labels = torch.tensor([label for _, label in ordered])
    return LabelledImages(images, labels, {path.name: _content_hash(path, [name for name, _ in ordered], content)})


def _read_member(tree: ImageTree, name: str) -> bytes:
    try:
        return tree.read(name)
    except DAMAGE as error:
        raise DataError(f"{tree.origin}, {name}: the file is damaged and cannot be read ({error})") from error


def stack_images(images: Iterator[np.ndarray], origins: Iterator[str]) -> torch.Tensor:
    """Images `[channels, h, w]` to uint8 `[n, channels, h, w]`. Raises DataError that names one of another size."""
    collected: list[np.ndarray] = []
    for image, origin in zip(images, origins):
        if collected and image.shape != collected[0].shape:
            sizes = [f"{shape[2]}x{shape[1]}" for shape in (collected[0].shape, image.shape)]
            raise DataError(f"{origin}: expected {sizes[0]} pixels, as the images before, found {sizes[1]}")
        collected.append(image)
    return torch.from_numpy(np.stack(collected))


def _content_hash(path: Path, names: list[str], content: list[bytes]) -> str:
    """SHA-256 of the zip; for a folder, of the names and bytes of the files that were read."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for name, data in zip(names, content):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
