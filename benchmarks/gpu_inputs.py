"""What `benchmarks/gpu.py` reads where there is no network: text, embeddings and images, packed small.

    python -m benchmarks.gpu_inputs FOLDER

writes `language.xz` (the embedded corpus's tokens, Whisper's embeddings, bytes a token; below 40 MB) and `images.xz`
(CIFAR-10 as the JPEG files that they are; 18 MB). There it takes PyTorch, safetensors, Pillow and this repository to
read them.
"""

import argparse
import io
import json
import lzma
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from newllm_core.config.language import DataConfig
from newllm_core.data.ctranslate2_file import read_float16_rows
from newllm_core.data.embeddings import WHISPER_VARIABLE, scaled_to_gpt2
from newllm_core.data.packages import WHISPER_TINY_EN, locate
from newllm_core.data.tokens import VOCAB_SIZE, load_token_streams, token_byte_lengths
from newllm_core.runs.files import DATA_DIR
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data.image_folder import decode_image
from newllm_core.vision.data.registry import CIFAR10, locate_source

LANGUAGE, IMAGES = "language.xz", "images.xz"
# Whole corpus: whatever is neither selected nor judged on.
NUM_CONVERSATIONS = 2560
SELECTION = (980, 1000)  # conversations; the validation text is 1000 … 1019
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class LanguageInputs:
    """Token ids int64, conversation boundaries `[samples + 1]`; ``embeddings`` float32 `[V, E]`, scaled as the project
    scales them; ``byte_lengths`` int64 `[V]`."""

    train: Tensor
    train_boundaries: Tensor
    validation: Tensor
    validation_boundaries: Tensor
    selection: Tensor
    embeddings: Tensor
    byte_lengths: Tensor


def write_language(path: Path, num_conversations: int = NUM_CONVERSATIONS) -> None:
    """All that the language line's benchmarks and study read, as xz of safetensors."""
    judged = load_token_streams(DataConfig(num_samples=num_conversations, train_range=None), DATA_DIR)
    chosen = load_token_streams(DataConfig(num_samples=1, validation_range=SELECTION), DATA_DIR)
    rows = torch.from_numpy(read_float16_rows(locate(WHISPER_TINY_EN), WHISPER_VARIABLE, VOCAB_SIZE).copy())
    low, high = _byte_planes(rows)
    tensors = {
        "train": judged.train.tokens.to(torch.int32), "train_boundaries": judged.train.boundaries,
        "train_samples": torch.tensor(judged.train.sample_indices),
        "validation": judged.validation.tokens.to(torch.int32),
        "validation_boundaries": judged.validation.boundaries,
        "selection": chosen.validation.tokens.to(torch.int32),
        "embeddings_low": low, "embeddings_high": high, "byte_lengths": token_byte_lengths(),
    }  # fmt: skip
    path.write_bytes(_packed(save(tensors)))


def _byte_planes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bytes of float16 apart: signs and exponents are alike and pack well beside each other."""
    pairs = rows.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))
    return pairs[..., 0].contiguous(), pairs[..., 1].contiguous()


def _packed(content: bytes) -> bytes:
    return lzma.compress(content, preset=6)


def read_language(path: Path) -> LanguageInputs:
    """Raises FileNotFoundError, and LZMAError for a file that is not whole."""
    stored = load(lzma.decompress(path.read_bytes()))
    planes = torch.stack([stored["embeddings_low"], stored["embeddings_high"]], dim=-1)
    rows = planes.flatten(-2).view(torch.float16)
    return LanguageInputs(
        train=stored["train"].long(), train_boundaries=stored["train_boundaries"],
        validation=stored["validation"].long(), validation_boundaries=stored["validation_boundaries"],
        selection=stored["selection"].long(), embeddings=scaled_to_gpt2(rows.numpy()),
        byte_lengths=stored["byte_lengths"],
    )  # fmt: skip


def write_images(path: Path) -> None:
    """CIFAR-10's JPEG files one after another in one xz stream: their tables, two thirds of each, are all the same."""
    _, archive = locate_source(VisionDataConfig(dataset="cifar10-jpeg"))
    assert archive is not None  # this source has places
    with zipfile.ZipFile(archive) as files:
        contents = {split: [list(_files_of(files, split, name)) for name in CIFAR10] for split in _SPLITS}
    index = {split: [[len(file) for file in group] for group in groups] for split, groups in contents.items()}
    header = json.dumps(index).encode()
    body = b"".join(file for groups in contents.values() for group in groups for file in group)
    path.write_bytes(_packed(len(header).to_bytes(8, "little") + header + body))


def _files_of(files: zipfile.ZipFile, split: str, name: str) -> Iterator[bytes]:
    members = sorted(member for member in files.namelist() if member.startswith(f"{split}/{name}/"))
    return (files.read(member) for member in members if not member.endswith("/"))


def read_images(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 `[n, 3, 32, 32]` and labels `[n]`, in the order in which the project reads the zip. Raises DataError for a
    damaged image."""
    stream = io.BytesIO(lzma.decompress(path.read_bytes()))
    index = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    images, labels = [], []
    for stored in _SPLITS:
        for label, lengths in enumerate(index[stored]):
            for length in lengths:
                content = stream.read(length)
                if stored == split:
                    images.append(decode_image(content, 3, f"{path.name}, {stored}"))
                    labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in ((LANGUAGE, write_language), (IMAGES, write_images)):
        write(folder / name)
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
