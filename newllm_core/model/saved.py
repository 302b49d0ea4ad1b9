"""A model in a folder of its own: weights, configuration and tokenizer, readable without the text it learnt from.

`model.safetensors` holds every tensor, the output's bias and counted n-grams among them, and each matrix once; the
embedding matrix may be left out where it can be read again from its source. `config.json` holds the `ModelConfig`, the
continuous cache, the weight of the n-grams, where
the embeddings came from, and the hashes of the other files; `tokenizer.json` the tokenizer, where there is one. Loading
is strict: a tensor or a field that is missing or unknown is an error.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.config.schema import ConfigError, from_mapping
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.head.kneser_ney import CountedNGrams, KneserNey
from newllm_core.runs.files import RunError, read_json, save_tensors, sha256_file, write_json, write_text
from newllm_core.runs.key_kinds import Key, wrong_keys

WEIGHTS_NAME, CONFIG_NAME, TOKENIZER_NAME, CARD_NAME = "model.safetensors", "config.json", "tokenizer.json", "README.md"
FORMAT = 3
EMBEDDING = "embedding"  # the tensor's name
_KEYS = {
    "format": Key("count", "number of this description"),
    "model_type": Key("text", "what tells it from other models' configurations"),
    **{f"model.{spec.name}": Key("any", "of ModelConfig") for spec in dataclasses.fields(ModelConfig)},
    "vocab_size": Key("count", "V"),
    "continuous_cache": Key("object", "of the text that is read", missing="none"),
    **{f"continuous_cache.{name}": Key("positive", "of it") for name in ("weight", "scale", "num_cached")},
    "continuous_cache.horizon": Key("positive", "how long a token counts", "tokens", missing="always the same"),
    "ngram_weight": Key("positive", "of the counted n-grams", missing="none"),
    "embedding_stored": Key("truth", f"whether {WEIGHTS_NAME} holds the embedding matrix"),
    "embedding_source": Key("object", "where the matrix came from", missing="not known"),
    "embedding_source.name": Key("text", "as in DataConfig.embeddings"),
    "embedding_source.source_sha256": Key("hash", "of the file it was read from", missing="random numbers"),
    "embedding_source.vocab_size": Key("count", "V"),
    "embedding_source.embed_dim": Key("count", "E"),
    "embedding_source.matrix_sha256": Key("hash", "of the matrix, float32"),
    "weights_sha256": Key("hash", f"of {WEIGHTS_NAME}"),
    "tokenizer_sha256": Key("hash", f"of {TOKENIZER_NAME}", missing="saved without a tokenizer"),
}
_MODEL_TYPE, _NGRAMS = "newllm", "ngrams."  # the latter's tensors' names begin so


@dataclass(frozen=True)
class SavedModel:
    """What stands in a model's folder. ``tensors`` lacks the embedding where ``embedding_stored`` is False."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    continuous_cache: ContinuousCache | None
    ngrams: CountedNGrams | None
    embedding_source: Mapping[str, Any] | None
    vocab_size: int
    embedding_stored: bool = True


def write_model(folder: Path, saved: SavedModel) -> None:
    """What ``read_model`` gives back."""
    counted = {} if saved.ngrams is None else saved.ngrams.counts.tensors()
    counted = {f"{_NGRAMS}{name}": tensor for name, tensor in counted.items()}
    save_tensors(folder / WEIGHTS_NAME, {**saved.tensors, **counted})
    if saved.tokenizer is not None:
        write_text(folder / TOKENIZER_NAME, saved.tokenizer.to_str())
    described = {
        "format": FORMAT,
        "model_type": _MODEL_TYPE,
        "model": dataclasses.asdict(saved.config),
        "vocab_size": saved.vocab_size,
        "continuous_cache": None if saved.continuous_cache is None else dataclasses.asdict(saved.continuous_cache),
        "ngram_weight": None if saved.ngrams is None else saved.ngrams.weight,
        "embedding_stored": saved.embedding_stored,
        "embedding_source": saved.embedding_source,
        "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
        "tokenizer_sha256": None if saved.tokenizer is None else sha256_file(folder / TOKENIZER_NAME),
    }
    write_json(folder / CONFIG_NAME, described)  # last: a folder without it is no model


def read_model(folder: Path) -> SavedModel:
    """Raises RunError when there is none, or a file was altered since."""
    described = _described(folder)
    _require_hash(folder / WEIGHTS_NAME, described["weights_sha256"])
    tokenizer_sha256, cache = described["tokenizer_sha256"], described["continuous_cache"]
    if tokenizer_sha256 is not None:
        _require_hash(folder / TOKENIZER_NAME, tokenizer_sha256)
    tensors = load_file(folder / WEIGHTS_NAME)
    counted = {name.removeprefix(_NGRAMS): tensors.pop(name) for name in list(tensors) if name.startswith(_NGRAMS)}
    return SavedModel(
        config=_model_config(folder, described["model"]),
        tensors=tensors,
        tokenizer=None if tokenizer_sha256 is None else Tokenizer.from_file(str(folder / TOKENIZER_NAME)),
        continuous_cache=None if cache is None else ContinuousCache(**cache),
        ngrams=_ngrams(folder, described, counted),
        embedding_source=described["embedding_source"],
        vocab_size=described["vocab_size"],
        embedding_stored=described["embedding_stored"],
    )


def _ngrams(folder: Path, described: Mapping[str, Any], counted: Mapping[str, Tensor]) -> CountedNGrams | None:
    weight = described["ngram_weight"]
    if (weight is None) != (not counted):
        raise RunError(
            f"{folder}: expected counted n-grams and a weight of theirs, or neither; given {len(counted)} tensors and "
            f"ngram_weight={weight}"
        )
    if weight is None:
        return None
    try:
        return CountedNGrams(weight, KneserNey.from_tensors(described["vocab_size"], counted))
    except (KeyError, ValueError) as error:
        raise RunError(f"{folder / WEIGHTS_NAME}: not the tensors of counted n-grams: {error}") from error


def _described(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise RunError(f"{folder}: expected a saved model ({CONFIG_NAME} and {WEIGHTS_NAME}), found no {CONFIG_NAME}")
    described: dict[str, Any] = read_json(path)
    wrong = wrong_keys(described, _KEYS)
    if wrong or described["format"] != FORMAT:
        raise RunError("\n  ".join([f"{path}: not a model's configuration of format {FORMAT}:", *wrong]))
    return described


def _model_config(folder: Path, stored: dict[str, Any]) -> ModelConfig:
    try:
        return from_mapping(ModelConfig, stored)
    except ConfigError as error:
        raise RunError(f"{folder / CONFIG_NAME}: {error}") from error


def _require_hash(path: Path, expected: str) -> None:
    if not path.is_file() or sha256_file(path) != expected:
        raise RunError(f"{path}: the file is missing or is not the one that {CONFIG_NAME} names; save the model again")
