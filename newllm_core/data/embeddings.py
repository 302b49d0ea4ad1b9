"""The frozen token embeddings: one matrix [V, E], from one of five sources. docs/method.md, section 3.

A new source is a branch of ``load_embeddings`` and a name in ``DataConfig.embeddings``.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.ctranslate2_file import read_float16_rows
from newllm_core.data.errors import DataError
from newllm_core.data.hub_model import HUB, HubModel
from newllm_core.data.network import network_errors
from newllm_core.data.packages import WHISPER_TINY_EN, locate
from newllm_core.data.ppmi import WINDOW, TypeVectors, ppmi_svd
from newllm_core.data.vocabulary import VOCAB_SIZE, load_vocabulary
from newllm_core.runs.files import RunError, content_sha256, load_tensors, save_tensors, sha256_bytes, sha256_tensors
from newllm_core.runs.reproducibility import derived_generator

GPT2_STD = 0.144  # standard deviation of GPT-2's own wte
WHISPER_VARIABLE = "decoder/embeddings/weight"
WHISPER_DIM = 384
GPT2_REPOSITORY = ("openai-community/gpt2", "model.safetensors")
GPT2_NAMES = ("wte.weight", "transformer.wte.weight")  # the second one in files saved from the model with its head
GPT2_DIM = 768
UNSEEN_SHARE = 0.1  # ppmi-svd: spread of a row without counts, relative to the others
logger = logging.getLogger("newllm")


@dataclass(frozen=True)
class EmbeddingMatrix:
    """``matrix`` float32 [V, E], row = token id; ``source_sha256`` of what it was read or computed from.

    ``source_sha256`` is None for random numbers, which have no source but the seed.
    """

    matrix: Tensor
    name: str
    source_sha256: str | None

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source_sha256": self.source_sha256,
            "vocab_size": self.matrix.shape[0],
            "embed_dim": self.matrix.shape[1],
            "matrix_sha256": sha256_tensors(self.matrix),
        }


def load_embeddings(
    config: DataConfig, embed_dim: int, seed: int, train_tokens: Tensor | None, data_dir: Path,
    vocab_size: int = VOCAB_SIZE,
) -> EmbeddingMatrix:  # fmt: skip
    """The configured matrix, [V, embed_dim]; V is that of a model on the Hub, of GPT-2's ids for other published ones,
    and ``vocab_size`` for those that are computed.

    ``seed`` and ``train_tokens`` int64 [num_tokens] matter to the sources that are computed, ``data_dir`` keeps what
    takes long to compute. Raises DataError when the source is missing or altered, or has another width.
    """
    if config.embeddings == "whisper-tiny.en":
        return whisper_embeddings(embed_dim)
    if config.embeddings == "gpt2":
        return gpt2_embeddings(embed_dim)
    if config.embeddings.startswith(HUB):
        return hub_embeddings(config, embed_dim, data_dir)
    if config.embeddings == "ppmi-svd":
        return ppmi_embeddings(embed_dim, seed, train_tokens, data_dir, vocab_size)
    matrix = GPT2_STD * torch.randn(vocab_size, embed_dim, generator=derived_generator("random embeddings", seed))
    return EmbeddingMatrix(matrix, "random", None)


def is_published(name: str) -> bool:
    """Whether anybody can read the embeddings ``name`` again, without the run that used them."""
    return name in ("whisper-tiny.en", "gpt2") or name.startswith(HUB)


def hub_embeddings(config: DataConfig, embed_dim: int, data_dir: Path) -> EmbeddingMatrix:
    """Of any model on the Hub, on the ids of its own tokenizer, scaled like Whisper's. Raises DataError."""
    model, num_rows = HubModel.named(config.embeddings), load_vocabulary(config).size
    matrix = model.embedding_matrix(data_dir)
    _check_width(config.embeddings, matrix.shape[1], embed_dim)
    if len(matrix) < num_rows:
        raise DataError(
            f"{model}: expected a row for each of {num_rows} ids of its tokenizer, found {len(matrix)} rows"
        )
    scaled = scaled_to_gpt2(matrix[:num_rows].numpy())  # without the rows that pad it
    return EmbeddingMatrix(scaled, config.embeddings, sha256_tensors(matrix))


def whisper_embeddings(embed_dim: int) -> EmbeddingMatrix:
    """Whisper tiny.en's token matrix, which is on GPT-2's ids and was trained tied to its output head.

    Scaled to GPT-2's standard deviation: at its own 0.023 the tied logits are so flat that Phase 2 needs about ten
    times the steps (validation perplexity after one epoch 5,161 against 1,051 at 57 k tokens).
    """
    _check_width("whisper-tiny.en", WHISPER_DIM, embed_dim)
    # The rows beyond GPT-2's vocabulary are Whisper's own control tokens.
    rows = read_float16_rows(locate(WHISPER_TINY_EN), WHISPER_VARIABLE, VOCAB_SIZE)
    return EmbeddingMatrix(scaled_to_gpt2(rows), "whisper-tiny.en", WHISPER_TINY_EN.sha256)


def scaled_to_gpt2(rows: NDArray[Any]) -> Tensor:
    """float32 `[V, E]`, with the standard deviation of all entries equal to GPT-2's."""
    # Measured in numpy: torch's sum depends on the number of threads, and would change every entry with it.
    factor = GPT2_STD / rows.std(dtype=np.float64)
    return torch.from_numpy(rows.astype(np.float32) * np.float32(factor))


def gpt2_embeddings(embed_dim: int) -> EmbeddingMatrix:
    """GPT-2's `wte` as it is, from the Hugging Face Hub or its local cache."""
    _check_width("gpt2", GPT2_DIM, embed_dim)
    path = gpt2_file()
    return EmbeddingMatrix(read_gpt2_wte(path), "gpt2", content_sha256(path))


def gpt2_file() -> Path:
    """Of the Hub's local cache, where it is downloaded to if it is not there. Raises DataError without a network."""
    from huggingface_hub import hf_hub_download  # imported here: it is slow, and only this source needs it

    try:
        return Path(hf_hub_download(*GPT2_REPOSITORY))
    except network_errors() as error:
        raise DataError(
            f'embeddings="gpt2": {"/".join(GPT2_REPOSITORY)} cannot be reached ({error}). It needs a network; '
            'embeddings="whisper-tiny.en" does not.'
        ) from error


def read_gpt2_wte(path: Path) -> Tensor:
    """`wte` alone, float32 [50257, 768], from a GPT-2 safetensors file; nothing else of the file is read.

    Raises DataError when the file cannot be read, has no such tensor, or it has another shape.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in GPT2_NAMES if name in tensors.keys()]  # noqa: SIM118 (not a mapping)
            if not names:
                raise DataError(f"{path}: expected a tensor {' or '.join(GPT2_NAMES)}, found neither")
            matrix = tensors.get_tensor(names[0]).float()
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: expected a safetensors file ({error})") from error
    if matrix.shape != (VOCAB_SIZE, GPT2_DIM):
        raise DataError(f"{path}: expected {names[0]} [{VOCAB_SIZE}, {GPT2_DIM}], found {list(matrix.shape)}")
    return matrix


def ppmi_embeddings(
    embed_dim: int, seed: int, train_tokens: Tensor | None, data_dir: Path, vocab_size: int = VOCAB_SIZE
) -> EmbeddingMatrix:
    """PPMI-SVD vectors `[vocab_size, embed_dim]` of the training tokens `[N]`.

    The rows of the types that occur have GPT-2's standard deviation.

    Raises DataError without training tokens, or with too few distinct types for the width.
    """
    if train_tokens is None:
        raise DataError('embeddings="ppmi-svd" is computed from the training tokens, given none')
    tokens = train_tokens.numpy().astype("<i8")
    source = sha256_bytes(tokens.tobytes())
    key = sha256_bytes(f"{source} {embed_dim} {WINDOW}".encode())[:8]
    path = data_dir / "embeddings" / f"ppmi-svd-{key}.safetensors"
    seen = _cached_vectors(path, lambda: ppmi_svd(tokens, embed_dim))
    # A zero row would stay zero in embed_norm's LayerNorm, the same for every unseen type.
    noise = torch.randn(vocab_size, embed_dim, generator=derived_generator("unseen types", seed))
    matrix = UNSEEN_SHARE * GPT2_STD * noise
    matrix[torch.from_numpy(seen.types)] = scaled_to_gpt2(seen.vectors)
    return EmbeddingMatrix(matrix, "ppmi-svd", source)


def _cached_vectors(path: Path, compute: Callable[[], TypeVectors]) -> TypeVectors:
    """The decomposition takes 8 s at 57 k tokens and 384 columns, 40 s at 600 k (one core)."""
    if path.exists():
        try:
            tensors = load_tensors(path)
            return TypeVectors(tensors["types"].numpy(), tensors["vectors"].numpy())
        except (RunError, SafetensorError, KeyError) as error:
            logger.warning("embeddings %s cannot be used (%s): computing them anew", path, error)
    vectors = compute()
    save_tensors(path, {"types": torch.from_numpy(vectors.types), "vectors": torch.from_numpy(vectors.vectors)})
    return vectors


def _check_width(name: str, width: int, embed_dim: int) -> None:
    if embed_dim != width:
        raise DataError(f'embeddings="{name}" has {width} columns, the configuration asks for embed_dim={embed_dim}')
