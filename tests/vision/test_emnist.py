"""EMNIST letters in both layouts in which they are given: drawn by hand here, they come out upright, labels 0 … 25.

The original files hold each image with rows and columns exchanged, and labels 1 … 26.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from test_image_files import photograph
from test_vision_data import idx_bytes

from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import OneTestReading, load_image_data, read_test_images
from newllm_core.vision.data.hub import HUB_EMNIST_LETTERS, HubDataset, read_hub_split
from newllm_core.vision.data.registry import LETTERS

SIDE = 28
# Strokes as (top, bottom, left, right); no two of these are alike when rows and columns change places.
STROKES = {
    "E": [(4, 24, 6, 9), (4, 7, 6, 20), (13, 16, 6, 16), (21, 24, 6, 20)],
    "F": [(4, 24, 6, 9), (4, 7, 6, 20), (13, 16, 6, 16)],
    "J": [(4, 24, 16, 19), (21, 24, 7, 19), (17, 24, 7, 10)],
    "L": [(4, 24, 6, 9), (21, 24, 6, 20)],
    "Z": [(4, 7, 6, 22), (21, 24, 6, 22), (7, 14, 16, 20), (14, 21, 8, 12)],
}


def drawn(letter: str) -> np.ndarray:
    image = np.zeros((SIDE, SIDE), np.uint8)
    for top, bottom, left, right in STROKES[letter]:
        image[top:bottom, left:right] = 255
    return image


def blank_but(letters: dict[int, str], count: int) -> np.ndarray:
    """Images `[count, 28, 28]`, of which some are drawn; the others a grey step, so that none is constant."""
    images = np.full((count, SIDE, SIDE), 7, np.uint8)
    images[:, :3] = 200
    for place, letter in letters.items():
        images[place] = drawn(letter)
    return images


def write_original_files(folder: Path, letters: dict[int, str]) -> None:
    """As the original archive unpacks: gzip files in a folder `gzip`, images transposed, labels from 1."""
    folder.mkdir(parents=True)
    for split, count in (("train", 104), ("test", 52)):
        stored = blank_but(letters, count).transpose(0, 2, 1)
        labels = np.arange(count) % 26 + 1
        for kind, values in (("images-idx3", stored), ("labels-idx1", labels)):
            content = idx_bytes(np.ascontiguousarray(values))
            (folder / f"emnist-letters-{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize("inside", ["", "gzip"])
def test_original_files_load_upright_with_labels_from_zero(inside: str, tmp_path: Path) -> None:
    letters = {LETTERS.index(letter): letter for letter in STROKES}
    write_original_files(tmp_path / "emnist" / inside, letters)
    config = VisionDataConfig(dataset="emnist-letters-idx", path=str(tmp_path / "emnist"))
    test = read_test_images(config, OneTestReading())
    assert test.labels.tolist() == [index % 26 for index in range(52)]
    for place, letter in letters.items():
        assert np.array_equal(test.images[place, 0].numpy(), drawn(letter))
        assert LETTERS[int(test.labels[place])] == letter
    data = load_image_data(config)
    assert data.shape == (1, SIDE, SIDE) and data.classes == LETTERS and not data.mirrorable
    assert sorted({*data.train.labels.tolist(), *data.selection.labels.tolist()}) == list(range(26))


def test_tables_of_the_hub_load_upright_with_labels_from_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    letters = dict(enumerate(STROKES))
    stored = blank_but(letters, 26).transpose(0, 2, 1)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(LETTERS))})
    labels = [LETTERS.index(letter) for letter in letters.values()] + [0] * (26 - len(letters))
    rows = {"image": [{"bytes": photograph(np.ascontiguousarray(image)), "path": None} for image in stored]}
    table = Dataset.from_dict({**rows, "label": labels}, features)
    folder = tmp_path / "letters"
    for split in ("train", "test"):
        (folder / "emnist-letters").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "emnist-letters" / f"{split}-00000-of-00001.parquet")
    files = "\n".join(f"  - split: {split}\n    path: emnist-letters/{split}-*" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: emnist-letters\n  data_files:\n{files}\n---\n")
    local = HubDataset(str(folder), HUB_EMNIST_LETTERS.configuration, transposed=True)
    for part in (
        read_hub_split(local, "test", LETTERS, None),  # through `datasets`
        read_hub_split(HUB_EMNIST_LETTERS, "test", LETTERS, folder),  # from downloaded files
    ):
        assert torch.equal(part.labels, torch.tensor(labels))
        for place, letter in letters.items():
            assert np.array_equal(part.images[place, 0].numpy(), drawn(letter))
