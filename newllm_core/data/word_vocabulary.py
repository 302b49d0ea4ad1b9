"""A vocabulary of words: those that a text has more than three times, all others one symbol.

As Bengio et al. (2003) had it for the Brown corpus. Words are what stands between blanks. Counted are the training
conversations (`tokenizer="words"`) or the whole corpus (`"words-of-corpus"`, which knows from the judged text which of
its words are rare: as in 2003, where 16,383 types are too many for the training text alone).
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import Corpus
from newllm_core.data.vocabulary import Vocabulary
from newllm_core.runs.files import RunError, read_json, sha256_bytes, write_json

RARE = "<rare>"  # id 0
LEAST_COUNT = 4
logger = logging.getLogger("newllm")


def word_vocabulary(
    config: DataConfig, corpus: Corpus, data_dir: Path, read_training: Callable[[], Iterable[str]]
) -> Vocabulary:
    """Of ``config.tokenizer``, from its file below ``data_dir`` or, where that is missing or damaged, built anew.

    ``read_training`` gives the training conversations, and is called only where they are to be counted.
    """
    path = word_vocabulary_path(config, corpus, data_dir)
    words = _kept(path)
    if words is None:
        whole = config.tokenizer == "words-of-corpus"
        words = frequent_words(corpus.read() if whole else read_training())
        write_json(path, {"source": corpus.source, "tokenizer": config.tokenizer, "words": words})
    return vocabulary_of(words)


def word_vocabulary_path(config: DataConfig, corpus: Corpus, data_dir: Path) -> Path:
    """The name changes with whatever decides which words are counted."""
    parts = [corpus.source, config.tokenizer, LEAST_COUNT]
    if config.tokenizer == "words":
        parts += [config.num_samples, config.train_range, *config.held_out]
    return data_dir / corpus.key / f"words-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}.json"


def _kept(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        words: list[str] = read_json(path)["words"]
    except (RunError, KeyError) as error:
        logger.warning("vocabulary %s cannot be used (%s): counting anew", path, error)
        return None
    return words


def frequent_words(texts: Iterable[str]) -> list[str]:
    """Those of ``LEAST_COUNT`` occurrences or more, the most frequent first, equals by their letters."""
    counts = Counter(word for text in texts for word in text.split())
    frequent = [(-count, word) for word, count in counts.items() if count >= LEAST_COUNT]
    return [word for _, word in sorted(frequent)]


def vocabulary_of(words: list[str]) -> Vocabulary:
    """Ids in the order of ``words``, after 0 for all others."""
    every = [RARE, *words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(every)}, unk_token=RARE))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Vocabulary(tokenizer, len(every), sha256_bytes("\n".join(every).encode()))
