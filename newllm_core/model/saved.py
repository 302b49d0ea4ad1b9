"""A model in a folder of its own: weights, configuration and tokenizer, readable without the text it learnt from.

`model.safetensors` holds every tensor, the embedding matrix and the output's bias among them; `config.json` the
`ModelConfig`, the vocabulary's size and the hashes of both other files; `tokenizer.json` the tokenizer, where one was
given. Loading is strict: a tensor or a field that is missing or unknown is an error.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.config.schema import ConfigError, from_mapping
from newllm_core.runs.files import RunError, load_tensors, read_json, save_tensors, sha256_file, write_json, write_text
from newllm_core.runs.key_kinds import Key, wrong_keys

WEIGHTS_NAME, CONFIG_NAME, TOKENIZER_NAME = "model.safetensors", "config.json", "tokenizer.json"
FORMAT = 1
_KEYS = {
    "format": Key("count", "number of this description"),
    **{f"model.{spec.name}": Key("any", "of ModelConfig") for spec in dataclasses.fields(ModelConfig)},
    "vocab_size": Key("count", "V"),
    "weights_sha256": Key("hash", f"of {WEIGHTS_NAME}"),
    "tokenizer_sha256": Key("hash", f"of {TOKENIZER_NAME}", missing="saved without a tokenizer"),
}


def write_model(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], tokenizer: Tokenizer | None) -> None:
    """What ``read_model`` gives back. ``tensors`` holds at least `embedding [V, E]`."""
    save_tensors(folder / WEIGHTS_NAME, tensors)
    if tokenizer is not None:
        write_text(folder / TOKENIZER_NAME, tokenizer.to_str())
    described = {
        "format": FORMAT,
        "model": dataclasses.asdict(config),
        "vocab_size": len(tensors["embedding"]),
        "weights_sha256": sha256_file(folder / WEIGHTS_NAME),
        "tokenizer_sha256": None if tokenizer is None else sha256_file(folder / TOKENIZER_NAME),
    }
    write_json(folder / CONFIG_NAME, described)  # last: a folder without it is no model


def read_model(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and tensors by name. Raises RunError when there are none, or a file was altered since."""
    described = _described(folder)
    _require_hash(folder / WEIGHTS_NAME, described["weights_sha256"])
    tensors = load_tensors(folder / WEIGHTS_NAME)
    if "embedding" not in tensors or len(tensors["embedding"]) != described["vocab_size"]:
        raise RunError(f"{folder / WEIGHTS_NAME}: expected an embedding of {described['vocab_size']} rows, found none")
    return _model_config(folder, described["model"]), tensors


def load_model_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that was saved beside the model. Raises RunError when there is none, or it was altered since."""
    expected = _described(folder)["tokenizer_sha256"]
    if expected is None:
        raise RunError(f"{folder}: the model was saved without a tokenizer")
    _require_hash(folder / TOKENIZER_NAME, expected)
    return Tokenizer.from_file(str(folder / TOKENIZER_NAME))


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
