"""What `benchmarks/gpu.py` reads where there is no network: text, embeddings and images, packed small.

    python -m benchmarks.gpu_inputs FOLDER

writes `language.xz` (the embedded corpus's tokens, Whisper's embeddings, bytes a token; below 40 MB) and `images.xz`
(CIFAR-10 as the JPEG files that they are; 18 MB). Reading them takes PyTorch, safetensors and this repository.
"""

import argparse
import io
import json
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig, Settings
from newllm_core.config.profiles import load_profile
from newllm_core.data.ctranslate2_file import read_float16_rows
from newllm_core.data.embeddings import WHISPER_VARIABLE, scaled_to_gpt2
from newllm_core.data.packages import WHISPER_TINY_EN, locate
from newllm_core.data.tokens import load_token_streams
from newllm_core.data.vocabulary import VOCAB_SIZE, token_byte_lengths
from newllm_core.runs.files import DATA_DIR, PROJECT_ROOT
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data.registry import locate_source

LANGUAGE, IMAGES = "language.xz", "images.xz"
NUM_CONVERSATIONS = 2560  # the largest size of the scaling study


@dataclass(frozen=True)
class LanguageInputs:
    """Token ids int64, conversation boundaries `[samples + 1]`; ``embeddings`` float32 `[V, E]`, scaled as the project
    scales them; ``byte_lengths`` int64 `[V]`."""

    train: Tensor
    train_boundaries: Tensor
    validation: Tensor
    validation_boundaries: Tensor
    embeddings: Tensor
    byte_lengths: Tensor


def write_language(path: Path, num_conversations: int = NUM_CONVERSATIONS) -> None:
    """All that the language line's benchmarks and study read, as xz of safetensors."""
    streams = load_token_streams(DataConfig(num_samples=num_conversations), DATA_DIR)
    rows = torch.from_numpy(read_float16_rows(locate(WHISPER_TINY_EN), WHISPER_VARIABLE, VOCAB_SIZE).copy())
    low, high = _byte_planes(rows)
    tensors = {
        "train": streams.train.tokens.to(torch.int32), "train_boundaries": streams.train.boundaries,
        "validation": streams.validation.tokens.to(torch.int32),
        "validation_boundaries": streams.validation.boundaries,
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
        embeddings=scaled_to_gpt2(rows.numpy()),
        byte_lengths=stored["byte_lengths"],
    )  # fmt: skip


def best_settings() -> Settings:
    """The better model's configuration, from its profile."""
    return Settings.from_parameters(load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "best.yaml"))


def write_images(path: Path) -> None:
    """The files of CIFAR-10's zip one after another in one xz stream: the tables of all are the same, and two thirds of
    each."""
    _, archive = locate_source(VisionDataConfig(dataset="cifar10-jpeg"))
    assert archive is not None  # this source has places
    with zipfile.ZipFile(archive) as files:
        contents = {name: files.read(name) for name in files.namelist() if not name.endswith("/")}
    header = json.dumps({name: len(content) for name, content in contents.items()}).encode()
    path.write_bytes(_packed(len(header).to_bytes(8, "little") + header + b"".join(contents.values())))


def restore_images(path: Path, archive: Path) -> None:
    """The zip again, its files uncompressed, for the project's own reader."""
    stream = io.BytesIO(lzma.decompress(path.read_bytes()))
    lengths = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    with zipfile.ZipFile(archive, "w") as files:
        for name, length in lengths.items():
            files.writestr(name, stream.read(length))


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
