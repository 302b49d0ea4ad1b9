"""Text: conversations of a corpus, in corpus order, as one string each.

`chitchat` is read from an installed package, `ultrachat` is streamed from the Hugging Face Hub, `brown` is NLTK's
edition (brown.py), `file` is the user's own file; conversations.py says in which schemas, and is where another one
goes. A new corpus is a branch of
``open_corpus`` and a name in ``DataConfig.corpus``. Source: docs/method.md, section 3.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.brown import brown_conversations, brown_source
from newllm_core.data.conversations import conversations_from_rows
from newllm_core.data.errors import DataError
from newllm_core.data.network import network_errors
from newllm_core.data.packages import CHITCHAT, locate
from newllm_core.data.places import find_path
from newllm_core.data.rows import Row, check_file, import_or_explain, read_rows
from newllm_core.runs.files import content_sha256

ULTRACHAT = ("HuggingFaceH4/ultrachat_200k", "train_sft")  # data set, split
# Filter of the chitchat corpus, docs/method.md, section 3. Longer turns and links are pasted text, not conversation.
MIN_TURNS = 4
MAX_TURN_CHARACTERS = 1000
REFUSED_STRINGS = ("@", "http")


@dataclass(frozen=True)
class Corpus:
    """A source of conversations.

    ``key`` names its folder below the data directory, ``source`` identifies its content (SHA-256 of the file, or data
    set and split), ``label`` is for messages, ``read()`` yields the conversations lazily, from the first one on.
    """

    key: str
    source: str
    label: str
    read: Callable[[], Generator[str, None, None]]

    def first(self, count: int) -> list[str]:
        """The first ``count`` conversations, fewer when there are fewer; no more is parsed or downloaded."""
        with contextlib.closing(self.read()) as conversations:
            return list(itertools.islice(conversations, count))


def open_corpus(config: DataConfig) -> Corpus:
    """The configured corpus; nothing of it is parsed yet. Raises DataError when its file is missing or altered."""
    if config.corpus == "chitchat":
        path = locate(CHITCHAT)
        return Corpus("chitchat", CHITCHAT.sha256, "chitchat", lambda: (text for text in chitchat_conversations(path)))
    if config.corpus == "ultrachat":
        return Corpus("ultrachat", ":".join(ULTRACHAT), "ultrachat", _stream_ultrachat)
    if config.corpus == "brown":
        given = config.conversations_file
        return Corpus("brown", brown_source(given), "brown", lambda: brown_conversations(given))
    return _open_file(config)


def load_conversations(config: DataConfig, stop: int) -> list[str]:
    """Conversations 0 … ``stop`` - 1, fewer when the corpus ends before. No more is parsed or downloaded.

    Raises DataError for input that cannot be used.
    """
    return open_corpus(config).first(stop)


@functools.cache
def chitchat_conversations(path: Path) -> tuple[str, ...]:
    """Every conversation of `dataset.json` that passes the filter, duplicates dropped, in file order."""
    records = json.loads(path.read_bytes()).values()
    kept = (turns for turns in map(_chitchat_turns, records) if turns is not None)
    # A dict keeps the first of equal texts, in order.
    return tuple(dict.fromkeys("\n".join(turns) for turns in kept))


def _chitchat_turns(record: dict[str, Any]) -> list[str] | None:
    """The texts of a conversation's turns; None when the filter drops the conversation."""
    utterances = [[utterance for utterance in turn if utterance["text"]] for turn in record["messages"]]
    senders = {utterance["sender"] for turn in utterances for utterance in turn}
    turns = [" ".join(utterance["text"] for utterance in turn) for turn in utterances if turn]
    if len(senders) != 2 or len(turns) < MIN_TURNS or max(map(len, turns)) > MAX_TURN_CHARACTERS:
        return None
    lowered = "\n".join(turns).lower()
    return None if any(refused in lowered for refused in REFUSED_STRINGS) else turns


def _stream_ultrachat() -> Generator[str, None, None]:
    # The published data set is taken as it is, a message without text included.
    return conversations_from_rows(_hub_rows(*ULTRACHAT), ":".join(ULTRACHAT), allow_empty=True)


def _hub_rows(name: str, split: str) -> Generator[Row, None, None]:
    """Every row of the data set's split, or an error: reading that ends early never looks like a shorter corpus."""
    datasets, pyarrow = (import_or_explain(module, "corpus='ultrachat'") for module in ("datasets", "pyarrow"))
    number = 0
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name}:{split}, row {number}", row
    except (*network_errors(), pyarrow.ArrowException) as error:
        after = f" after row {number}, though datasets tried again for minutes" if number else ""
        raise DataError(
            f"corpus='ultrachat': {name} cannot be read{after} ({type(error).__name__}: {error!s:.500}). It needs a "
            "network; what was read is not kept, run it again, or choose corpus='chitchat', which needs none"
        ) from error
    splits = rows.info.splits
    if splits and split in splits and number != splits[split].num_examples:
        raise DataError(f"{name}:{split}: expected {splits[split].num_examples} rows, as its card says, read {number}")


def _open_file(config: DataConfig) -> Corpus:
    assert config.conversations_file is not None  # DataConfig refuses corpus="file" without it
    path = find_path(config.conversations_file)
    check_file(path)
    source = content_sha256(path)
    # The switch decides what the conversations are, so it belongs to their name.
    key = f"file-{source[:8]}" + ("" if config.missing_text == "refuse" else f"-{config.missing_text}")
    return Corpus(
        key, source, str(path), lambda: conversations_from_rows(read_rows(path), str(path), config.missing_text)
    )
