"""One text a conversation, from rows in the schemas that are in use.

    UltraChat, OpenAI   {"messages": [{"role": …, "content": "text"}, …]}
    ShareGPT            {"conversations": [{"from": …, "value": "text"}, …]}

``content`` may also be a list of parts, `{"type": "text", "text": …}`. A message may be a list of pairs (Parquet's
maps), and the list of messages a JSON text of its own. Roles are not read: contents are joined by newlines.
"""

import json
import logging
import reprlib
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any

from newllm_core.data.errors import DataError
from newllm_core.data.rows import COLUMNS, Row, refuse_long

CONTENTS = ("content", "value")
logger = logging.getLogger("newllm")


class _WithoutTextError(DataError):
    """There is no text in a message or a conversation, and nothing else is wrong with it."""


def conversations_from_rows(
    rows: Iterable[Row], origin: str, missing_text: str = "refuse", *, allow_empty: bool = False
) -> Generator[str, None, None]:
    """The text of each row, lazily.

    Args:
        missing_text: of a message whose content is null or empty, or a row without messages: "refuse",
            "skip-message" (a conversation without any text is left out) or "skip-conversation". What was left out is
            counted in a warning when reading ends.
        allow_empty: an empty text is a message like any other, and only null is missing.

    Raises DataError that names the place and what was expected.
    """
    left_out: Counter[str] = Counter()
    try:
        for where, row in rows:
            left_out["read"] += 1
            try:
                texts = _texts(row, where, missing_text == "skip-message", allow_empty, left_out)
            except _WithoutTextError as error:
                if missing_text == "refuse":
                    remedy = "missing_text='skip-message' or 'skip-conversation' leaves it out"
                    raise DataError(f"{error}; {remedy}") from None
                left_out["conversations"] += 1
            else:
                yield _checked("\n".join(texts), where)
    finally:
        if left_out["messages"] + left_out["conversations"]:
            logger.warning(
                "%s: left out %d messages and %d conversations without text, of %d conversations read",
                origin, left_out["messages"], left_out["conversations"], left_out["read"],
            )  # fmt: skip


def _texts(row: Any, where: str, skip_messages: bool, allow_empty: bool, left_out: Counter[str]) -> list[str]:
    """The text of each message. Raises _WithoutTextError where there is none."""
    texts = []
    for number, message in enumerate(_messages(row, where), start=1):
        try:
            texts.append(_text(message, f"{where}, message {number}", allow_empty))
        except _WithoutTextError:
            if not skip_messages:
                raise
            left_out["messages"] += 1
    if not texts:
        raise _WithoutTextError(f"{where}: no message has a text")
    return texts


def _messages(row: Any, where: str) -> list[Any]:
    if isinstance(row, list):
        raise DataError(
            f"{where}: expected an object, found a list; `jq -c '.[]' FILE > NEW-FILE` writes one object a line"
        )
    named = [name for name in COLUMNS if isinstance(row, dict) and name in row]
    if not named:
        found = f"the keys {sorted(map(str, row))}" if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: expected an object with {' or '.join(COLUMNS)}, found {found:.200}")
    messages = _parsed(row[named[0]])
    if messages is None or messages == []:
        expected = f"expected `{named[0]}` to be a list of at least one message"
        raise _WithoutTextError(f"{where}: {expected}, found {messages}")
    if not isinstance(messages, list):
        raise DataError(f"{where}: expected `{named[0]}` to be a list of messages, found {reprlib.repr(messages)}")
    return messages


def _parsed(messages: Any) -> Any:
    """A list that was written as JSON text, or its bytes, as tables without nested columns hold it."""
    if isinstance(messages, str | bytes):
        try:
            return json.loads(messages)
        except (ValueError, RecursionError):
            return messages
    return messages


def _text(message: Any, where: str, allow_empty: bool) -> str:
    if isinstance(message, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in message):
        message = dict(message)
    if message is None:
        raise _WithoutTextError(f"{where}: expected an object with {' or '.join(CONTENTS)}, found None")
    named = [name for name in CONTENTS if isinstance(message, dict) and name in message]
    if not named:
        raise DataError(f"{where}: expected an object with {' or '.join(CONTENTS)}, found {reprlib.repr(message)}")
    content = message[named[0]]
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}, part {number}") for number, part in enumerate(content, start=1))
    if content is None or (content == "" and not allow_empty):
        raise _WithoutTextError(f"{where}: expected `{named[0]}` to be text that is not empty, found {content!r}")
    if not isinstance(content, str):
        raise DataError(f"{where}: expected `{named[0]}` to be text that is not empty, found {reprlib.repr(content)}")
    return content


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise _WithoutTextError(f"{where}: expected a part with `text`, found {reprlib.repr(part)}")
    return text


def _checked(text: str, where: str) -> str:
    try:
        # JSON can spell half a surrogate pair (\ud800); the tokenizer, and every file written from it, cannot.
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: expected text that UTF-8 can hold, found half a character, {text[error.start]!r}; take it out"
        ) from error
    refuse_long(len(encoded), where)
    return text
