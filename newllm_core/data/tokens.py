"""Tokens: the training stream with its boundaries, and its cache on disk.

The largest sample count asked for so far is tokenised once; smaller counts are prefixes of the same stream.
Source: docs/method.md, section 3.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import Corpus, open_corpus
from newllm_core.data.errors import DataError
from newllm_core.data.samples import conversations_needed, load_samples, select_samples
from newllm_core.data.shards import write_by_shards
from newllm_core.data.validation import HeldOutText, held_out_text
from newllm_core.data.vocabulary import Vocabulary, gpt2_vocabulary, load_vocabulary
from newllm_core.data.word_vocabulary import word_vocabulary
from newllm_core.runs.files import RunError, map_tensors, sha256_tensors

ENCODE_BATCH = 256  # conversations encoded in parallel at once, fewer where they are long:
ENCODE_CHARACTERS = 2_000_000  # up to 200 bytes of memory for each
logger = logging.getLogger("newllm")


@dataclass(frozen=True)
class TokenStream:
    """Conversations as one stream of token ids, without separators.

    ``tokens`` int64 [num_tokens], ids in 0 … V - 1; ``boundaries`` int64 [num_samples + 1], the offset of each sample's
    first token, the last one equal to num_tokens; ``sample_indices``, the corpus index of each sample; ``origin``, the
    corpus, source and tokenizer; ``vocabulary``, whose ids they are. Raises DataError when tokens and boundaries do not
    fit each other.
    """

    tokens: Tensor
    boundaries: Tensor
    sample_indices: tuple[int, ...]
    origin: dict[str, str]
    vocabulary: Vocabulary = field(default_factory=gpt2_vocabulary)

    def __post_init__(self) -> None:
        check_stream(self.tokens, self.boundaries, self.vocabulary.size)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_samples(self) -> int:
        return len(self.boundaries) - 1

    @property
    def provenance(self) -> dict[str, Any]:
        """Corpus, source, tokenizer, first and last sample, counts, SHA-256 of the ids as little-endian int64."""
        return {
            **self.origin,
            "first_sample": self.sample_indices[0],
            "last_sample": self.sample_indices[-1],
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            "tokens_sha256": sha256_tensors(self.tokens),
        }

    def prefix(self, num_samples: int) -> "TokenStream":
        """The stream's first samples. Raises DataError when it has fewer."""
        if not 1 <= num_samples <= self.num_samples:
            raise DataError(f"expected a prefix of 1 to {self.num_samples} samples, given {num_samples}")
        if num_samples == self.num_samples:
            return self
        boundaries = self.boundaries[: num_samples + 1]
        tokens, indices = self.tokens[: boundaries[-1]], self.sample_indices[:num_samples]
        return TokenStream(tokens, boundaries, indices, self.origin, self.vocabulary)


def check_stream(tokens: Tensor, boundaries: Tensor, vocab_size: int) -> None:
    """Tokens `[N]`, boundaries `[num_samples + 1]`. Raises DataError unless both are int64, ids in the vocabulary,
    boundaries ascending from 0 to N."""
    shapes_fit = all(t.dtype == torch.int64 and t.dim() == 1 for t in (tokens, boundaries))
    if not shapes_fit or len(boundaries) < 2 or len(tokens) == 0:
        raise DataError(
            "expected int64 tokens [num_tokens > 0] and boundaries [num_samples + 1 > 1], "
            f"given {tokens.dtype} {list(tokens.shape)} and {boundaries.dtype} {list(boundaries.shape)}"
        )
    if boundaries[0] != 0 or boundaries[-1] != len(tokens) or (boundaries.diff() < 0).any():
        raise DataError(f"expected boundaries that ascend from 0 to {len(tokens)}, given {boundaries.tolist()!s:.80}")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError(f"expected token ids in 0 … {vocab_size - 1}, given {int(tokens.min())} … {int(tokens.max())}")


@dataclass(frozen=True)
class TokenStatistics:
    """Counts; ``unseen_validation_share`` in 0 … 1: validation tokens whose type never occurs in training."""

    num_tokens: int
    distinct_tokens: int
    validation_tokens: int
    distinct_validation_tokens: int
    unseen_validation_share: float
    tokens_per_sample: list[int]  # [num_samples], training


@dataclass(frozen=True)
class TokenData:
    """What a run trains on, what chooses its weights, and what it is judged on.

    ``selection``: ``validation`` itself where ``DataConfig.selection_range`` is None.
    """

    train: TokenStream
    validation: TokenStream
    selection: TokenStream
    statistics: TokenStatistics


def token_statistics(train: TokenStream, validation: TokenStream) -> TokenStatistics:
    seen = torch.bincount(train.tokens, minlength=train.vocabulary.size) > 0
    num_unseen = int((~seen[validation.tokens]).sum())
    return TokenStatistics(
        num_tokens=train.num_tokens,
        distinct_tokens=int(seen.sum()),
        validation_tokens=validation.num_tokens,
        distinct_validation_tokens=len(validation.tokens.unique()),
        unseen_validation_share=num_unseen / validation.num_tokens,
        tokens_per_sample=train.boundaries.diff().tolist(),
    )


def load_token_streams(config: DataConfig, data_dir: Path) -> TokenData:
    """Training tokens and those held out, from the files below ``data_dir`` or, where these are missing, built anew.

    The corpus is parsed only when a text that is held out or some of the training tokens are not there.
    Raises DataError for a corpus that cannot be used, and for ranges that it does not have.
    """
    corpus = open_corpus(config)
    samples = functools.cache(lambda: load_samples(config, corpus))
    if config.tokenizer == "gpt2":
        vocabulary = load_vocabulary(config)
    else:
        vocabulary = word_vocabulary(config, corpus, data_dir, lambda: samples().train)
    tokenizer = vocabulary.tokenizer
    origin = {"corpus": corpus.key, "source": corpus.source, "tokenizer_sha256": vocabulary.sha256}

    def held_out(use: str, bounds: tuple[int, int]) -> TokenStream:
        text = held_out_text(use, bounds, corpus, data_dir, lambda: getattr(samples(), use))
        return TokenStream(*encode_held_out(tokenizer, text), tuple(range(*bounds)), origin, vocabulary)

    validation = held_out("validation", config.validation_range)
    selection = validation if config.selection_range is None else held_out("selection", config.selection_range)

    path = token_cache_path(config, corpus, vocabulary.sha256, data_dir)
    cached = _read_cache(path, vocabulary.size)
    if cached is None or len(cached[1]) <= config.num_samples:
        cached = _extended(path, samples().train, vocabulary)
    boundaries = cached[1][: config.num_samples + 1]
    indices = select_samples(config, conversations_needed(config))
    train = TokenStream(cached[0][: boundaries[-1]], boundaries, tuple(indices), origin, vocabulary)
    return TokenData(train, validation, selection, token_statistics(train, validation))


def token_cache_path(config: DataConfig, corpus: Corpus, vocabulary_sha256: str, data_dir: Path) -> Path:
    """The name changes with whatever decides which text becomes which token, and not with the number of samples."""
    parts = [corpus.source, vocabulary_sha256, config.train_range, *config.held_out]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return data_dir / corpus.key / f"tokens-{digest[:8]}.safetensors"


def _read_cache(path: Path, vocab_size: int, *, say: bool = True) -> tuple[Tensor, Tensor] | None:
    """Tokens and boundaries; None when there is no cache, or none that can be trusted, which is said."""
    if not path.exists():
        return None
    try:
        tensors = map_tensors(path)
        tokens, boundaries = tensors["tokens"], tensors["boundaries"]
        check_stream(tokens, boundaries, vocab_size)
    except (RunError, SafetensorError, KeyError, DataError) as error:
        if say:
            logger.warning("token cache %s cannot be used (%s): tokenising anew", path, error)
        return None
    return tokens, boundaries


def _extended(path: Path, texts: Sequence[str], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Tokens and boundaries of all ``texts``, or more; only those beyond the cached ones are encoded."""
    cached = _read_cache(path, vocabulary.size, say=False)
    while cached is None or len(cached[1]) <= len(texts):  # again where another process has written a shorter one
        first = 0 if cached is None else len(cached[1]) - 1
        write_by_shards(path, cached, texts[first:], lambda some: encode_conversations(vocabulary.tokenizer, some))
        cached = _read_cache(path, vocabulary.size)
        if cached is None:
            raise DataError(f"{path}: expected tokens of {len(texts)} conversations, found none in them")
    return cached


def encode_held_out(tokenizer: Tokenizer, text: HeldOutText) -> tuple[Tensor, Tensor]:
    """Encode the joined text as one: int64 tokens [num_tokens] and boundaries [num_conversations + 1].

    The blank line between two conversations belongs to the earlier one.
    """
    encoding = tokenizer.encode(text.text, add_special_tokens=False)
    starts = torch.tensor([first for first, _ in encoding.offsets], dtype=torch.int64)
    boundaries = torch.searchsorted(starts, torch.tensor([*text.conversation_starts, len(text.text)]))
    return torch.tensor(encoding.ids, dtype=torch.int64), boundaries


def encode_conversations(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode each text by itself: int64 tokens [num_tokens] and boundaries [len(texts) + 1]."""
    pieces, lengths = [], [0]
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            pieces.append(torch.tensor(encoding.ids, dtype=torch.int64))
            lengths.append(len(encoding.ids))
    return torch.cat(pieces), torch.tensor(lengths, dtype=torch.int64).cumsum(0)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """``texts`` in order, as many at once as the limits allow, at least one."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == ENCODE_BATCH or characters + len(text) > ENCODE_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
