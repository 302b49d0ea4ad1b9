"""Images as files: a folder, or a zip of one, with `train/<class>/` and `test/<class>/`.

A zip is read in place, never unpacked. The file and member of an image that cannot be decoded are named. One image at a
time is held as it was stored.
"""

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from newllm_core.data.errors import DataError
from newllm_core.runs.files import sha256_file
from newllm_core.vision.data.image_file import DAMAGE, decode_image, open_image, stack_images, unequal_size
from newllm_core.vision.data.records import LabelledImages

SPLITS = ("train", "test")
LAYOUT = "train/<class>/<image> and test/<class>/<image>"
_LAYOUT_DEPTH = 3
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_ENCODED_BYTES = 64 << 20  # of an image as a file
LEFT_BY_FILE_MANAGERS = ("Thumbs.db", "desktop.ini")  # beside what begins with a dot


@dataclass(frozen=True)
class ImageTree:
    """The files of a folder or zip: relative names with `/`, sorted, and a function that opens one of them."""

    origin: str
    names: tuple[str, ...]
    open: Callable[[str], IO[bytes]]


Form = Callable[
    [torch.Tensor], torch.Tensor
]  # changes images, uint8 `[n, channels, h, w]`, as `convert.converted` does


@contextmanager
def open_tree(path: Path) -> Iterator[ImageTree]:
    """The files below ``path``, hidden ones left out. Raises DataError when it is neither a folder nor a zip."""
    if path.is_dir():
        yield ImageTree(str(path), _visible(_files_below(path)), lambda name: (path / name).open("rb"))
        return
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError(f"{path}: expected a folder or a zip file, found something else ({error})") from error
    with archive:
        # Not is_dir, which cannot be asked of a name without a character.
        files = [member.filename for member in archive.infolist() if not member.filename.endswith("/")]
        members = {name.removeprefix("./"): name for name in files}
        if len(members) < len(files):
            (twice, _), *_ = Counter(name.removeprefix("./") for name in files).most_common()
            raise DataError(f"{path}: expected every name once, found {twice} more than once")
        yield ImageTree(str(path), _visible(iter(members)), lambda name: archive.open(members[name]))


def _files_below(path: Path) -> Iterator[str]:
    """Relative names with `/`. Links to folders are followed, no deeper than the layout asks, lest one leads back."""
    for folder, subfolders, files in os.walk(path, followlinks=True):
        parts = Path(folder).relative_to(path).parts
        if len(parts) >= _LAYOUT_DEPTH:
            subfolders.clear()
        for name in files:
            full = "/".join((*parts, name))
            if any("\ud800" <= character <= "\udfff" for character in full):
                raise DataError(f"{path}: the name {full!a} is not UTF-8; rename the file or folder")
            yield full


def _visible(names: Iterator[str]) -> tuple[str, ...]:
    """Sorted, without what file managers leave behind (.DS_Store, __MACOSX/)."""
    hidden = (".", "__MACOSX", *LEFT_BY_FILE_MANAGERS)
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
        raise DataError(
            f"{tree.origin}: expected {LAYOUT}; nothing is in {split}/, found {found}. Give the folder, or zip, "
            "that holds train/ and test/ themselves"
        )
    return by_class


def read_image_split(
    path: Path, split: str, classes: Sequence[str], channels: int = 3, form: Form = lambda images: images
) -> LabelledImages:
    """One split ("train" or "test") of a folder or zip: uint8 `[n, channels, h, w]`, by class, then by name.

    Args:
        classes: give the labels' order.
        form: what is made of an image as soon as it is decoded, so that photographs are not held at their own size.

    Raises DataError for another layout, other classes, images of unequal size, and a damaged image (named).
    """
    digest = hashlib.sha256()
    with open_tree(path) as tree:
        labelled = _labelled_names(tree, split, classes)
        images = stack_images(_decoded(tree, [name for name, _ in labelled], channels, form, digest))
    source = sha256_file(path) if path.is_file() else digest.hexdigest()
    return LabelledImages(images, torch.tensor([label for _, label in labelled]), {path.name: source})


def check_image_split(path: Path, split: str, classes: Sequence[str], size: tuple[int, int] | None) -> None:
    """Whether a split can be read later: its class folders, and the header of each image, of which no pixel is decoded.

    ``size``, height and width, is what all must have; None: any. Raises DataError as ``read_image_split``.
    """
    with open_tree(path) as tree:
        for name, _ in _labelled_names(tree, split, classes):
            origin = f"{path}, {name}"
            with _opened_member(tree, name) as stream, open_image(stream, origin) as image:
                if size is not None and sorted(size) != sorted((image.height, image.width)):  # it may be turned
                    raise DataError(unequal_size(origin, size, (image.height, image.width)))


def _labelled_names(tree: ImageTree, split: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Names and labels, by class. Raises DataError unless each class has a folder with images, and nothing else has."""
    by_class = _names_by_class(tree, split)
    if set(by_class) != set(classes):
        expected, found = (", ".join(sorted(names)) for names in (classes, by_class))
        raise DataError(f"{tree.origin}, {split}/: expected the class folders {expected}, with images; found {found}")
    return [(name, label) for label, folder in enumerate(classes) for name in by_class[folder]]


def _decoded(
    tree: ImageTree, names: Sequence[str], channels: int, form: Form, digest: "hashlib._Hash"
) -> Iterator[tuple[str, np.ndarray]]:
    """Place and image, one at a time; ``digest`` is told names and bytes."""
    for name in names:
        origin = f"{tree.origin}, {name}"
        content = _read_member(tree, name)
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        pixels = torch.from_numpy(decode_image(content, channels, origin))
        yield origin, form(pixels.unsqueeze(0)).squeeze(0).numpy()


@contextmanager
def _opened_member(tree: ImageTree, name: str) -> Iterator[IO[bytes]]:
    try:
        with tree.open(name) as stream:
            yield stream
    except DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{tree.origin}, {name}: the file is damaged and cannot be read ({error})") from error


def _read_member(tree: ImageTree, name: str) -> bytes:
    with _opened_member(tree, name) as stream:
        content = stream.read(MAX_ENCODED_BYTES + 1)
    if len(content) > MAX_ENCODED_BYTES:
        raise DataError(f"{tree.origin}, {name}: expected at most {MAX_ENCODED_BYTES >> 20} MiB, found more")
    return content
