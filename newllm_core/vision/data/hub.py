"""Image data sets of the Hugging Face Hub, as Parquet tables of encoded images: by name, or from downloaded files.

The names are those that `datasets` loads without running code of the repository. A folder given as ``path`` is read in
place of the Hub; it holds the repository's Parquet files, `train-….parquet` and `test-….parquet`, at any depth.
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newllm_core.data.errors import DataError
from newllm_core.runs.files import sha256_file
from newllm_core.vision.data.image_file import decode_image, stack_images
from newllm_core.vision.data.records import LabelledImages, require_class_names, zero_based_labels


@dataclass(frozen=True)
class HubDataset:
    """A repository of the Hub with the splits "train" and "test"."""

    repository: str
    configuration: str
    image_column: str = "image"
    label_column: str = "label"
    channels: int = 1
    transposed: bool = False  # EMNIST stores each image with rows and columns exchanged


HUB_MNIST = HubDataset("ylecun/mnist", "mnist")
HUB_FASHION_MNIST = HubDataset("zalando-datasets/fashion_mnist", "fashion_mnist")
# Labels 0 to 25 here: the shift by one of the original files is already done in this repository.
HUB_EMNIST_LETTERS = HubDataset("tanganke/emnist_letters", "emnist-letters", transposed=True)
HUB_CIFAR10 = HubDataset("uoft-cs/cifar10", "plain_text", image_column="img", channels=3)


def read_hub_split(dataset: HubDataset, split: str, classes: tuple[str, ...], path: Path | None) -> LabelledImages:
    """One split ("train" or "test"): uint8 `[n, channels, h, w]` in the table's order.

    Raises DataError when the Hub cannot be reached, the files are missing, the table has other columns or classes, or
    an image is damaged (its row, from 1, is named).
    """
    if path is None:
        origin, files = f"{dataset.repository}:{split}", []
        table = _download(dataset, split)
    else:
        origin, files = f"{path}, {split}", parquet_files(path, split)
        table = _read_parquet(files)
    encoded, labels = _columns(table, dataset, origin)
    require_class_names(_class_names(table.schema, dataset) or classes, classes, origin)
    sources = {file.name: sha256_file(file) for file in files} or {origin: _table_hash(encoded, labels)}
    return LabelledImages(
        _decode(encoded, dataset, origin),
        zero_based_labels(torch.tensor(labels), len(classes), 0, origin),
        sources,
    )


def _decode(encoded: list[bytes], dataset: HubDataset, origin: str) -> torch.Tensor:
    """uint8 `[n, channels, h, w]`."""
    rows = ((f"{origin}, row {row}", content) for row, content in enumerate(encoded, start=1))
    images = stack_images((row, decode_image(content, dataset.channels, row)) for row, content in rows)
    return images.transpose(2, 3).contiguous() if dataset.transposed else images


def _download(dataset: HubDataset, split: str) -> Any:
    """The split as an Arrow table; `datasets` downloads it once and keeps it."""
    from datasets import load_dataset  # takes a second, and most data sets do not need it

    try:
        rows = load_dataset(dataset.repository, dataset.configuration, split=split)
    except OSError as error:
        raise DataError(
            f"{dataset.repository} cannot be reached ({error}). It needs a network; mnist-5k and colour do not, nor "
            "does path=…, a folder with the repository's Parquet files."
        ) from error
    return rows.with_format("arrow")[:]


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Of one split, sorted. Raises DataError where there are none."""
    files = sorted(folder.rglob(f"{split}*.parquet"))
    if not files:
        raise DataError(f"{folder}: expected Parquet files named {split}*.parquet, found none")
    return files


def _read_parquet(files: list[Path]) -> Any:
    arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    tables = [_from_file(file, parquet.read_table) for file in files]
    try:
        return arrow.concat_tables(tables)
    except ValueError as error:
        raise DataError(f"{files[0].parent}: the Parquet files have different columns ({error})") from error


def _from_file(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a Parquet file, found something else ({error})") from error


def check_hub_split(dataset: HubDataset, split: str, classes: tuple[str, ...], path: Path | None) -> None:
    """Whether a split of downloaded files has the columns and classes that are read later; no row is looked at.

    Raises DataError. What the Hub serves, without a ``path``, is as it was published.
    """
    parquet = importlib.import_module("pyarrow.parquet")
    for file in parquet_files(path, split) if path is not None else ():
        schema = _from_file(file, parquet.read_schema)
        _require_columns(schema.names, dataset, str(file))
        require_class_names(_class_names(schema, dataset) or classes, classes, str(file))


def _require_columns(found: Sequence[str], dataset: HubDataset, origin: str) -> None:
    columns = [dataset.image_column, dataset.label_column]
    if not set(columns) <= set(found):
        raise DataError(f"{origin}: expected the columns {columns}, found {list(found)}")


def _columns(table: Any, dataset: HubDataset, origin: str) -> tuple[list[bytes], list[int]]:
    """Encoded images and labels of every row. Raises DataError that names the first row without them, from 1."""
    _require_columns(table.column_names, dataset, origin)
    columns = [dataset.image_column, dataset.label_column]
    images: list[bytes] = []
    labels: list[int] = []
    for value, label in zip(*(table.column(name).to_pylist() for name in columns)):
        content = value.get("bytes") if isinstance(value, dict) else None
        if not isinstance(content, bytes) or not isinstance(label, int):
            row = len(labels) + 1
            raise DataError(f"{origin}, row {row}: expected an encoded image and a whole number as its label")
        images.append(content)
        labels.append(label)
    if not labels:
        raise DataError(f"{origin}: the table is empty")
    return images, labels


def _table_hash(images: list[bytes], labels: list[int]) -> str:
    """SHA-256 of the labels and the encoded images: a downloaded table has no one file to hash."""
    digest = hashlib.sha256(np.asarray(labels, dtype="<i8").tobytes())
    for content in images:
        digest.update(content)
    return digest.hexdigest()


def _class_names(schema: Any, dataset: HubDataset) -> list[str] | None:
    """The names the table itself gives its labels; None when it gives none."""
    from datasets import Features

    feature = Features.from_arrow_schema(schema)[dataset.label_column]
    return getattr(feature, "names", None)
