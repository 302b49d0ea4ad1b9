"""What would end a vision run after training is seen before it: the test set, names of parameters, mirrored classes."""

import gzip
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_image_files import noise, photograph, write_folder
from test_vision_data import write_idx_folder, write_tables

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.data.errors import DataError
from newllm_core.runs.files import RunError
from newllm_core.vision import __main__ as command
from newllm_core.vision import experiment
from newllm_core.vision.__main__ import main
from newllm_core.vision.config import AugmentationConfig, VisionDataConfig, VisionModelConfig, VisionTrainConfig
from newllm_core.vision.data import load_image_data
from newllm_core.vision.data.augmentation import Augmentation
from newllm_core.vision.data.registry import CIFAR10
from newllm_core.vision.experiment import Record, run_vision
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.settings import VisionSettings, for_data_set

BASE = VisionSettings(
    model=VisionModelConfig(width=16, depth=1, heads=2, patch=4, stem="off", colour_norm="off"),
    train=VisionTrainConfig(epochs=1, warmup_epochs=0, batch_size=8),
    run=RunConfig(num_threads=1, device="cpu"),
)


def own_images(folder: Path, classes: tuple[str, ...] = ("left", "right")) -> VisionDataConfig:
    """Ten training and two test photographs a class, of many sizes."""
    contents = {
        f"{split}/{name}/{n}.png": photograph(noise(16 + n, 20 - n, seed=n))
        for split, count in (("train", 10), ("test", 2))
        for name in classes
        for n in range(count)
    }
    return VisionDataConfig(dataset="image-folder", path=str(write_folder(folder, contents)), image_size=16)


@pytest.fixture
def never_trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(experiment, "train_vision", refuse)
    yield


# --- the test set


@pytest.mark.usefixtures("never_trained")
def test_class_folder_that_is_missing_in_the_test_set_is_seen_before_training(tmp_path: Path) -> None:
    data = own_images(tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "test" / "right")
    (tmp_path / "images" / "test" / "right").mkdir()  # empty is missing too
    with pytest.raises(DataError, match="test/: expected the class folders left, right, with images; found left"):
        run_vision(for_data_set(BASE, data), tmp_path / "run", show_progress=False)


@pytest.mark.usefixtures("never_trained")
def test_test_images_that_cannot_be_read_are_seen_before_training(tmp_path: Path) -> None:
    data = own_images(tmp_path / "images")
    write_folder(tmp_path / "images", {"test/left/9.png": b"no image"})
    with pytest.raises(DataError, match="test/left/9.png: the image is damaged or no image at all"):
        run_vision(for_data_set(BASE, data), tmp_path / "run", show_progress=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_test_set_of_another_size_or_count_is_seen_from_its_headers(suffix: str, tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ("train", "t10k"), 0, 10, suffix)
    config = VisionDataConfig(dataset="mnist-idx", path=str(tmp_path))
    assert len(load_image_data(config).train) == 180
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    whole = gzip.decompress(path.read_bytes()) if suffix else path.read_bytes()
    for change, message in (
        ({3: 9}, r"t10k-images.*expected images of \(12, 10\), rows and columns, as for training, found \(12, 9\)"),
        ({1: 99}, r"expected images .* as many labels .* found \[99, 12, 10\] in t10k-images.* and \[100\] in"),
    ):
        changed = bytearray(whole)
        for dimension, size in change.items():
            changed[4 * dimension : 4 * dimension + 4] = size.to_bytes(4, "big")
        path.write_bytes(gzip.compress(bytes(changed)) if suffix else bytes(changed))
        with pytest.raises(DataError, match=message):
            load_image_data(config)


def test_tables_of_a_test_set_with_other_classes_or_columns_are_seen_from_their_schema(tmp_path: Path) -> None:
    write_tables(tmp_path / "plain_text", "img", CIFAR10, [index % 10 for index in range(40)])
    config = VisionDataConfig(dataset="cifar10", path=str(tmp_path))
    assert len(load_image_data(config).train) == 36
    test = next(tmp_path.rglob("test-*.parquet"))
    write_tables(tmp_path / "swapped", "img", (*CIFAR10[1:], CIFAR10[0]), list(range(10)))
    shutil.copy(next((tmp_path / "swapped").glob("test-*")), test)
    shutil.rmtree(tmp_path / "swapped")
    with pytest.raises(DataError, match="test-00000.*: expected the classes airplane, .*, found automobile, bird"):
        load_image_data(config)
    write_tables(tmp_path / "columns", "image", CIFAR10, list(range(10)))
    shutil.copy(next((tmp_path / "columns").glob("test-*")), test)
    shutil.rmtree(tmp_path / "columns")
    with pytest.raises(DataError, match=r"test-00000.*: expected the columns \['img', 'label'\], found"):
        load_image_data(config)


def test_disk_without_room_for_the_checkpoints_is_seen_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RunError, match=r"needs about 0\.\d+ MB of disk .* 0\.\d+ MB are free\. Make room"):
        run_vision(for_data_set(BASE, own_images(tmp_path / "images")), tmp_path / "run", show_progress=False)


# --- names of parameters


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 1
    return capsys.readouterr().out


def test_unknown_parameter_is_named_before_the_data_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "run", "image-folder", "-p", "path", str(tmp_path / "absent"), "-p", "image_size", "16")
    assert "unknown parameter 'image_size'. Did you mean 'data_image_size' or 'model_image_size'?" in said


def test_command_says_what_is_wrong_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, {"train/cat/0.png": photograph(noise(8, 8))})
    said = refusal(capsys, "run", "image-folder", "-p", "path", str(tmp_path))
    assert "image-folder: expected image_size of the data (parameter data_image_size)" in said
    said = refusal(capsys, "run", "image-folder", "-p", "path", str(tmp_path / "no"), "-p", "data_image_size", "16")
    assert "no: there is no such file or folder. To get it: give path=" in said


# --- mirrored images


def is_mirrored(data: VisionDataConfig) -> bool:
    images = load_image_data(data)
    augmentation = Augmentation(AugmentationConfig(crop_padding=0, flip_probability=1.0), images, seed=0)
    batch = augmentation(images.train.images, images.train.labels, step=0).images
    flipped = images.normalisation.apply(images.train.images.flip(3) / 255)
    return bool(np.allclose(batch, flipped, atol=1e-5))


def test_record_says_whether_images_could_be_mirrored(tmp_path: Path) -> None:
    settings = for_data_set(BASE, own_images(tmp_path / "images"))
    record = run_vision(settings, tmp_path / "run", show_progress=False)
    assert record["data"]["mirrorable"] is False and record["config"]["augmentation"]["flip_probability"] > 0


def test_data_of_a_search_by_command_are_split_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plans: list[SearchPlan] = []

    def keep(plan: SearchPlan, folder: Path, workers: int) -> Record:
        plans.append(plan)
        return {"counts": {}, "best": []}

    monkeypatch.setattr(command, "run_search", keep)
    words = "search colour mnist-5k --model quick --space quick -p num_train_images 48 -p split_seed 3"
    assert main([*words.split(), "--folder", str(tmp_path)]) == 0
    assert [(data.dataset, data.num_train_images, data.split_seed) for data in plans[0].data_sets] == [
        ("colour", 48, 3), ("mnist-5k", None, 3),
    ]  # fmt: skip


def test_own_images_are_mirrored_only_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = own_images(tmp_path, ("cat", "dog"))
    asked = VisionDataConfig(dataset="image-folder", path=str(tmp_path), image_size=16, mirrorable=True)
    with caplog.at_level(logging.WARNING, "newllm"):
        assert not is_mirrored(data) and is_mirrored(asked)
    assert not caplog.text
    assert is_mirrored(VisionDataConfig(dataset="colour", image_size=16))
    assert not is_mirrored(VisionDataConfig(dataset="colour", image_size=16, mirrorable=False))


@pytest.mark.parametrize("classes", [("arrow_left", "arrow_right"), ("Turn-Left", "straight"), ("左折", "右折")])
def test_mirroring_of_classes_that_have_a_side_is_warned_of(
    classes: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_images(tmp_path, classes)
    for mirrorable in (None, True):
        caplog.clear()
        data = VisionDataConfig(dataset="image-folder", path=str(tmp_path), image_size=16, mirrorable=mirrorable)
        with caplog.at_level(logging.WARNING, "newllm"):
            Augmentation(AugmentationConfig(crop_padding=0), load_image_data(data), seed=0)
        assert (f"the classes {min(classes)}" in caplog.text) == bool(mirrorable)


def test_classes_that_only_contain_such_a_word_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_images(tmp_path, ("brightness", "leftover"))
    data = VisionDataConfig(dataset="image-folder", path=str(tmp_path), image_size=16, mirrorable=True)
    with caplog.at_level(logging.WARNING, "newllm"):
        Augmentation(AugmentationConfig(), load_image_data(data), seed=0)
    assert not caplog.text
