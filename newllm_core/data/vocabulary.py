"""Which text becomes which token: GPT-2's vocabulary, or that of the model whose embeddings are read."""

import functools
import json
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.errors import DataError
from newllm_core.data.hub_model import HUB, HubModel
from newllm_core.data.packages import GPT2_ENCODER, GPT2_MERGES, locate
from newllm_core.runs.files import content_sha256, sha256_bytes

VOCAB_SIZE = 50257  # GPT-2
SELF_CHECK = ("Hello world", [15496, 995])  # GPT-2's ids; an empty or foreign vocabulary gives others
TOKENIZER_SHA256 = sha256_bytes((GPT2_ENCODER.sha256 + GPT2_MERGES.sha256).encode())


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, the number V of its ids 0 … V - 1 (a few may stand for nothing), and what identifies it."""

    tokenizer: Tokenizer
    size: int
    sha256: str


def load_vocabulary(config: DataConfig) -> Vocabulary:
    """The one that the embeddings have. Raises DataError where it is missing or altered."""
    if config.embeddings.startswith(HUB):
        return _hub_vocabulary(HubModel.named(config.embeddings))
    return Vocabulary(load_tokenizer(), VOCAB_SIZE, TOKENIZER_SHA256)


@functools.cache
def gpt2_vocabulary() -> Vocabulary:
    return load_vocabulary(DataConfig())


def load_tokenizer() -> Tokenizer:
    """GPT-2's byte-level BPE.

    One source for every corpus: `openai-community/gpt2` holds the same vocabulary and merges, and reading them from the
    installed package needs no network and cannot differ from run to run. Every call gives the same object, which
    nobody is to change. Raises DataError when the package is missing or altered, or the tokenizer fails its self-check.
    """
    return _tokenizer_of(str(locate(GPT2_ENCODER)), str(locate(GPT2_MERGES)))


@functools.cache  # reading them takes a quarter of a second, and a run asks four times
def _tokenizer_of(encoder: str, merges: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(encoder, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    check_tokenizer(tokenizer)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises DataError when it is not GPT-2's: transformers 5 has been seen to build an empty one without a word."""
    text, expected = SELF_CHECK
    found = tokenizer.encode(text).ids
    if found != expected or tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise DataError(
            f"the tokenizer is not GPT-2's: expected {VOCAB_SIZE} types and {text!r} -> {expected}, "
            f"found {tokenizer.get_vocab_size()} types and {found}"
        )


def vocabulary_sha256(config: DataConfig) -> str:
    """Of ``load_vocabulary``, without building the tokenizer. Raises DataError as it does."""
    if config.embeddings.startswith(HUB):
        return content_sha256(HubModel.named(config.embeddings).tokenizer_file())
    for file in (GPT2_ENCODER, GPT2_MERGES):
        locate(file)  # raises unless its content is the pinned one
    return TOKENIZER_SHA256


def _hub_vocabulary(model: HubModel) -> Vocabulary:
    path = model.tokenizer_file()
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{model}: {path.name} cannot be read ({error})") from error
    # A file saved for a model with short windows cuts every text at their length, without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not tokenizer.encode(SELF_CHECK[0], add_special_tokens=False).ids:
        raise DataError(f"{model}: its tokenizer makes no token of {SELF_CHECK[0]!r}")
    return Vocabulary(tokenizer, max(tokenizer.get_vocab().values()) + 1, content_sha256(path))


def token_byte_lengths(vocabulary: Vocabulary | None = None) -> Tensor:
    """Bytes of text that each token id stands for, int64 `[V]`; None: of GPT-2's.

    A byte-level vocabulary writes every byte as one character; others write a blank as `▁` and a byte that is no
    character as `<0x0A>`. Special tokens, which are markup, stand for no text. Nobody is to change what is returned.
    """
    vocabulary = vocabulary or gpt2_vocabulary()
    if vocabulary.sha256 not in _BYTE_LENGTHS:
        _BYTE_LENGTHS[vocabulary.sha256] = _byte_lengths(vocabulary)
    return _BYTE_LENGTHS[vocabulary.sha256]


_BYTE_LENGTHS: dict[str, Tensor] = {}  # by vocabulary: every run of a sweep asks, and it takes a quarter of a second


def _byte_lengths(vocabulary: Vocabulary) -> Tensor:
    described = json.loads(vocabulary.tokenizer.to_str())
    special = {token["id"] for token in described["added_tokens"] if token["special"]}
    byte_level = "ByteLevel" in json.dumps(described["decoder"])
    lengths = [0] * vocabulary.size
    if described["model"]["type"] == "WordLevel":
        return _word_lengths(vocabulary, described["model"]["unk_token"])
    for token, number in vocabulary.tokenizer.get_vocab().items():
        is_markup = number in special or token == "<|endoftext|>"
        lengths[number] = 0 if is_markup else len(token) if byte_level else _text_bytes(token)
    return torch.tensor(lengths)


def _word_lengths(vocabulary: Vocabulary, rare: str) -> Tensor:
    """A word and the blank after it; which word the symbol for the rare ones stands for is not known."""
    lengths = torch.zeros(vocabulary.size, dtype=torch.int64)
    for word, number in vocabulary.tokenizer.get_vocab().items():
        lengths[number] = 0 if word == rare else len(word.encode()) + 1
    return lengths


def _text_bytes(token: str) -> int:
    if len(token) == len("<0x0A>") and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("▁", " ").encode())
