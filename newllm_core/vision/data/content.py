"""What a run on images reads, by its content: half of what says whether two runs are the same."""

from collections.abc import Sequence
from pathlib import Path

from newllm_core.data.packages import locate
from newllm_core.runs.files import content_sha256, sha256_bytes
from newllm_core.vision.data.hub import HubDataset, parquet_files
from newllm_core.vision.data.idx import IdxNames, idx_files
from newllm_core.vision.data.image_folder import SPLITS, open_tree
from newllm_core.vision.data.mnist5k import MNIST_5K


def folder_content(path: Path) -> str:
    """Of the training and test images of a zip or a folder. Raises DataError where there are none."""
    if path.is_file():
        return content_sha256(path)
    with open_tree(path) as tree:
        return _files_content(path, [path / name for name in tree.names if name.split("/")[0] in SPLITS])


def idx_content(path: Path, names: IdxNames) -> str:
    """Of the four IDX files. Raises DataError where one is missing."""
    return _files_content(path, [file for split in SPLITS for file in idx_files(path, split, names)])


def hub_content(path: Path | None, dataset: HubDataset) -> str:
    """Of the Parquet files; of a download its name, since the Hub gives no other without a network."""
    if path is None:
        return dataset.repository
    return _files_content(path, [file for split in SPLITS for file in parquet_files(path, split)])


def mnist_5k_content() -> str:
    """Raises DataError when the package is missing, has another version, or its file was altered."""
    locate(MNIST_5K)
    return MNIST_5K.sha256


def _files_content(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 of the files' names below ``folder``, sorted, and of what they hold."""
    lines = [f"{file.relative_to(folder).as_posix()}\0{content_sha256(file)}\n" for file in files]
    return sha256_bytes("".join(sorted(lines)).encode())
