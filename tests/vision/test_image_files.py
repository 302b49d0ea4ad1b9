"""Images as people have them: turned, of many sizes, far too large, or not what they claim to be."""

import gzip
import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from newllm_core.data.errors import DataError
from newllm_core.vision.data.convert import converted
from newllm_core.vision.data.idx import MAX_VALUES, read_idx
from newllm_core.vision.data.image_file import MAX_PIXELS, decode_image
from newllm_core.vision.data.image_folder import MAX_ENCODED_BYTES, check_image_split, class_names, read_image_split

ORIENTATION = 0x0112  # EXIF tag


def photograph(pixels: np.ndarray, orientation: int | None = None, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_that_claims(width: int, height: int) -> bytes:
    """A file of a few bytes; it breaks off where the pixels begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 99) + b"IDAT"


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- turned

# What a camera stores of an upright scene, by the orientation that it writes (EXIF 2.3, section 4.6.4).
STORED = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.transpose(1, 0, 2),
    6: lambda scene: np.rot90(scene),
    7: lambda scene: scene.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda scene: np.rot90(scene, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_photograph_is_turned_as_its_orientation_flag_says(orientation: int) -> None:
    scene = noise(6, 9)
    stored = np.ascontiguousarray(STORED[orientation](scene))
    assert np.array_equal(decode_image(photograph(stored, orientation), 3, "here"), scene.transpose(2, 0, 1))


def test_photograph_without_a_flag_or_with_an_unknown_one_is_left_as_it_is() -> None:
    scene = noise(6, 9)
    for orientation in (None, 0, 99):
        assert np.array_equal(decode_image(photograph(scene, orientation), 3, "here"), scene.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@given(changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_damaged_header_gives_an_image_or_an_error_with_its_name(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(photograph(noise(8, 8), 6, kind))
    for place, value in changes:
        content[place % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata
        try:
            pixels = decode_image(bytes(content), 3, "the image")
        except DataError as error:
            assert str(error).startswith("the image: ")
        else:
            assert pixels.dtype == np.uint8 and pixels.shape[0] == 3


# --- too large


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (15_000, 14_000), (10_000, 10_000), (8_001, 8_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_of_too_many_pixels_is_refused_before_they_are_there(width: int, height: int) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="here: expected an image of at most 64 million pixels"):
        decode_image(png_that_claims(width, height), 3, "here")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert width * height > MAX_PIXELS


def deep_png() -> bytes:
    """Two by two pixels of 16 bits a colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + np.arange(6, dtype=">u2").tobytes() for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_images_that_would_lose_depth_or_transparency_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).quantize(8).save(buffer, "PNG", transparency=0)
    for content, kind in ((deep_png(), "of 16 bits a colour"), (buffer.getvalue(), "with a colour marked transparent")):
        with pytest.raises(DataError, match=f"here: expected a grey or RGB image of 8 bits, found one {kind}"):
            decode_image(content, 3, "here")
    opaque = io.BytesIO()
    Image.fromarray(noise(8, 8)).quantize(8).save(opaque, "PNG", transparency=b"\xff" * 8)
    assert decode_image(opaque.getvalue(), 3, "here").shape == (3, 8, 8)


def test_zip_with_names_from_its_own_folder_is_read_and_one_with_a_name_twice_is_refused(
    tmp_path: Path,
) -> None:
    contents = {f"./{split}/cat/{number}.png": photograph(noise(8, 8, number)) for split in ("train", "test")
                for number in range(2)}  # fmt: skip
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    found = read_image_split(tmp_path / "own.zip", "train", class_names(tmp_path / "own.zip"))
    np.testing.assert_array_equal(found.images[1].permute(1, 2, 0).numpy(), noise(8, 8, 1))
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as archive:
        archive.writestr("train/cat/1.png", photograph(noise(8, 8, 2)))
    with pytest.raises(DataError, match=r"own.zip: expected every name once, found train/cat/1.png more than once"):
        class_names(tmp_path / "own.zip")


def test_member_that_unpacks_to_far_more_than_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("train/cat/0.png", "w") as member:
        for _ in range(MAX_ENCODED_BYTES // (1 << 20) + 1):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"images.zip, train/cat/0.png: expected at most 64 MiB, found more"):
        read_image_split(path, "train", ["cat"])


def test_compressed_idx_file_is_read_no_further_than_its_header_announces(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 1]) + struct.pack(">I", 100)
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(header + bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"labels.gz: expected 100 values for the shape \(100,\), found more"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_idx_header_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">III", 60_000, 2_000, 2_000))
    with pytest.raises(DataError, match=f"at most {MAX_VALUES:,} values, the header announces 240,000,000,000"):
        read_idx(path)


# --- of many sizes

SIZES = [(30, 20), (16, 16), (9, 40), (200, 100)]


def write_photographs(folder: Path) -> Path:
    contents = {f"train/cat/{n}.png": photograph(noise(*size, seed=n)) for n, size in enumerate(SIZES)}
    return write_folder(folder, contents)


@pytest.mark.parametrize("colour", ["stored", "grey"])
def test_images_of_many_sizes_are_brought_to_one_where_that_is_asked_for(colour: str, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path)
    images = read_image_split(folder, "train", ["cat"], form=lambda part: converted(part, colour, 16)).images
    for image, (number, size) in zip(images, enumerate(SIZES)):
        alone = torch.from_numpy(noise(*size, seed=number)).permute(2, 0, 1).unsqueeze(0)
        assert torch.equal(image, converted(alone, colour, 16)[0])
    with pytest.raises(DataError, match="train/cat/1.png: expected 20x30 pixels, .*; image_size of the data"):
        read_image_split(folder, "train", ["cat"])


@pytest.mark.parametrize(("colour", "side"), [("stored", None), ("grey", None), ("stored", 12), ("grey", 28)])
def test_images_changed_one_at_a_time_are_those_changed_together(colour: str, side: int | None, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {f"train/cat/{n}.png": photograph(noise(16, 16, seed=n)) for n in range(20)})
    together = converted(read_image_split(folder, "train", ["cat"]).images, colour, side)
    one_by_one = read_image_split(folder, "train", ["cat"], form=lambda part: converted(part, colour, side)).images
    assert torch.equal(one_by_one, together)


# --- looked at before training


def test_what_is_wrong_with_a_split_is_seen_without_decoding_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {f"test/{name}/0.png": photograph(noise(8, 8)) for name in ("cat", "dog")})
    check_image_split(folder, "test", ["cat", "dog"], (8, 8))
    with pytest.raises(DataError, match="test/: expected the class folders cat, dog, owl, with images; found cat, dog"):
        check_image_split(folder, "test", ["cat", "dog", "owl"], None)
    with pytest.raises(DataError, match="test/cat/0.png: expected 9x9 pixels, .* found 8x8"):
        check_image_split(folder, "test", ["cat", "dog"], (9, 9))
    write_folder(folder, {"test/dog/1.png": b"no image"})
    with pytest.raises(DataError, match="test/dog/1.png: the image is damaged or no image at all"):
        check_image_split(folder, "test", ["cat", "dog"], None)


def test_files_that_file_managers_leave_are_no_images(tmp_path: Path) -> None:
    contents = {f"train/cat/{name}": b"left behind" for name in ("Thumbs.db", "desktop.ini", ".DS_Store")}
    folder = write_folder(tmp_path, {**contents, "train/cat/0.png": photograph(noise(8, 8))})
    assert len(read_image_split(folder, "train", ["cat"])) == 1


def test_linked_folders_are_followed_and_one_that_leads_back_does_no_harm(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_folder(there, {f"cats/{n}.png": photograph(noise(8, 8, seed=n)) for n in range(3)})
    (here / "train").mkdir(parents=True)
    (here / "train" / "cat").symlink_to(there / "cats")
    (here / "back").symlink_to(here)
    assert len(read_image_split(here, "train", ["cat"])) == 3
    (there / "cats" / "deeper").symlink_to(there / "cats")
    with pytest.raises(DataError, match="expected train/<class>/<image> .*; found train/cat/deeper/0.png"):
        read_image_split(here, "train", ["cat"])


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with open(bytes(tmp_path / "train" / "cat") + b"/caf\xe9.png", "wb") as file:
        file.write(photograph(noise(8, 8)))
    with pytest.raises(DataError, match=r"the name 'train/cat/caf\\udce9.png' is not UTF-8") as caught:
        read_image_split(tmp_path, "train", ["cat"])
    assert str(caught.value).encode("utf-8")


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([1, -1]),
)
@settings(deadline=None, max_examples=150)
def test_damaged_zip_gives_images_or_an_error_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, stored: bool, changes: list[tuple[int, int]], side: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            archive.writestr(f"train/cat/{number}.png", photograph(noise(4, 4, seed=number)))
    content = bytearray(path.read_bytes())
    for place, value in changes:  # from the start, where members are, or from the end, where the directory is
        content[side * place % len(content)] = value
    path.write_bytes(content)
    try:
        images = read_image_split(path, "train", ["cat"]).images
        check_image_split(path, "train", ["cat"], None)
    except DataError as error:
        assert "any.zip" in str(error)
    else:
        assert images.shape[1:] == (3, 4, 4)
