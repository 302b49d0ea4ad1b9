"""Text: conversations of a corpus, in corpus order, as one string each.

`chitchat` is read from an installed package, `ultrachat` is streamed from the Hugging Face Hub, `file` is the user's
own file in UltraChat's `messages` schema. Source: spec section 3, design.md section 2.
"""

import functools
import importlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm_core.config.language import DataConfig
from newllm_core.data.errors import DataError
from newllm_core.data.packages import CHITCHAT, locate
from newllm_core.runs.files import content_sha256

ULTRACHAT = ("HuggingFaceH4/ultrachat_200k", "train_sft")  # data set, split
# Filter of the chitchat corpus, design.md section 2. Longer turns and links are pasted text, not conversation.
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
    read: Callable[[], Iterator[str]]


def open_corpus(config: DataConfig) -> Corpus:
    """The configured corpus; nothing of it is parsed yet. Raises DataError when its file is missing or altered."""
    if config.corpus == "chitchat":
        path = locate(CHITCHAT)
        return Corpus("chitchat", CHITCHAT.sha256, "chitchat", lambda: iter(chitchat_conversations(path)))
    if config.corpus == "ultrachat":
        return Corpus("ultrachat", ":".join(ULTRACHAT), "ultrachat", _stream_ultrachat)
    assert config.conversations_file is not None  # DataConfig refuses corpus="file" without it
    return _open_file(Path(config.conversations_file))


def load_conversations(config: DataConfig, stop: int) -> list[str]:
    """Conversations 0 … ``stop`` - 1, fewer when the corpus ends before. No more is parsed or downloaded.

    Raises DataError for input that cannot be used.
    """
    return list(itertools.islice(open_corpus(config).read(), stop))


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


def _stream_ultrachat() -> Iterator[str]:
    name, split = ULTRACHAT
    datasets = _import_or_explain("datasets", "corpus='ultrachat'")
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
    except OSError as error:
        raise DataError(
            f"corpus='ultrachat': {name} cannot be reached ({error}). It needs a network; corpus='chitchat' does not."
        ) from error
    # The published data set is taken as it is, a message without text included.
    return conversations_from_rows(rows, f"{name}:{split}", "row", allow_empty_content=True)


def _import_or_explain(module: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{purpose} needs the package {package}: pip install {package}") from error


def _open_file(path: Path) -> Corpus:
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file that ends in {' or '.join(readers)}, given {path.suffix!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected one conversation per line or row")
    source = content_sha256(path)
    unit = "line" if path.suffix == ".jsonl" else "row"
    rows = readers[path.suffix]
    return Corpus(f"file-{source[:8]}", source, str(path), lambda: conversations_from_rows(rows(path), str(path), unit))


def _json_rows(path: Path) -> Iterator[Any]:
    # Read as bytes: text mode would also split at other line ends and decode before a line number is known.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                yield json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: expected UTF-8, found byte {line[error.start]:#04x}") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: expected a JSON object, found something else ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    parquet = _import_or_explain("pyarrow.parquet", "a .parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            _check_parquet_columns(path, file.schema_arrow.names, file.metadata.num_rows)
            batches = file.iter_batches(batch_size=256, columns=["messages"])
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for number, value in enumerate(values, start=1):
                yield {"messages": _python_value(value, f"{path}, row {number}")}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a Parquet file, found something else ({error})") from error


def _python_value(value: Any, where: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8, found byte {error.object[error.start]:#04x}") from error


def _check_parquet_columns(path: Path, columns: list[str], num_rows: int) -> None:
    if "messages" not in columns:
        raise DataError(f"{path}: expected a column `messages`, found the columns {columns}")
    if num_rows == 0:
        raise DataError(f"{path}: the file is empty; expected one conversation per line or row")


def conversations_from_rows(
    rows: Iterable[Any], origin: str, unit: str, *, allow_empty_content: bool = False
) -> Iterator[str]:
    """Rows in UltraChat's schema, ``{"messages": [{"role": …, "content": text}, …]}``, to one text each, lazily.

    Raises DataError that names ``origin`` and the row, counted from 1, for a row that is not in this schema.
    """
    for number, row in enumerate(rows, start=1):
        yield _conversation_text(row, f"{origin}, {unit} {number}", allow_empty_content)


def _conversation_text(row: Any, where: str, allow_empty_content: bool) -> str:
    """The message contents joined by a newline."""
    if not isinstance(row, dict) or "messages" not in row:
        found = f"the keys {sorted(map(str, row))}" if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: expected an object with `messages`, found {found}")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: expected `messages` to be a list of at least one message, found {messages!r:.60}")
    return "\n".join(
        _message_content(message, f"{where}, message {number}", allow_empty_content)
        for number, message in enumerate(messages, start=1)
    )


def _message_content(message: Any, where: str, allow_empty_content: bool) -> str:
    if not isinstance(message, dict) or "content" not in message:
        raise DataError(f"{where}: expected an object with `content`, found {message!r:.60}")
    content = message["content"]
    if not isinstance(content, str) or not (content or allow_empty_content):
        raise DataError(f"{where}: expected `content` to be text that is not empty, found {content!r:.60}")
    try:
        # JSON can spell half a surrogate pair (\ud800); the tokenizer, and every file written from it, cannot.
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected text that UTF-8 can hold, found {content[error.start]!r}") from error
    return content
