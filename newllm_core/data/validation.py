"""The texts that are held out: written once beside a record of where they come from, read from there ever after.

docs/method.md, section 3. Each validation_range and selection_range of a corpus has a folder of its own. A figure is
comparable only with figures on the same text, so a recorded text that is not the one the configuration asks for is
refused, and a damaged one rebuilt.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from newllm_core.data.corpus import Corpus
from newllm_core.data.errors import DataError
from newllm_core.data.rows import refuse_long
from newllm_core.runs.files import RunError, read_json, sha256_bytes, write_json, write_text

TEXT_NAME = "example_val.txt"
RECORD_NAME = "example_val.json"
SEPARATOR = "\n\n"
logger = logging.getLogger("newllm")


@dataclass(frozen=True)
class HeldOutText:
    """The text, and the character at which each of its conversations starts."""

    text: str
    conversation_starts: list[int]


def held_out_folder(use: str, bounds: tuple[int, int], corpus: Corpus, data_dir: Path) -> Path:
    """`<data_dir>/<corpus key>/<use>-<first>-<past the last>`."""
    return data_dir / corpus.key / f"{use}-{bounds[0]}-{bounds[1]}"


def held_out_text(
    use: str, bounds: tuple[int, int], corpus: Corpus, data_dir: Path, read: Callable[[], list[str]]
) -> HeldOutText:
    """The conversations of a range joined by a blank line, from `example_val.txt` in ``held_out_folder``.

    Args:
        use: "validation" or "selection".
        bounds: (first, past the last).
        read: gives these conversations; it is called only when the text has to be built.

    Raises DataError when the text on disk comes from another source than the configuration's, or is too long.
    """
    folder = held_out_folder(use, bounds, corpus, data_dir)
    text_path, record_path = folder / TEXT_NAME, folder / RECORD_NAME
    wanted = {"corpus": corpus.key, "source": corpus.source, f"{use}_range": list(bounds)}
    if text_path.exists() or record_path.exists():
        record = _read_record(record_path)
        if record is not None:
            _refuse_other_origin(record, wanted, text_path)
        content = text_path.read_bytes() if text_path.is_file() else b""
        if record is not None and sha256_bytes(content) == record.get("sha256"):
            return HeldOutText(content.decode("utf-8"), record["conversation_starts"])
        logger.warning("%s does not match its record %s: building it anew", text_path, RECORD_NAME)
    conversations = read()
    lengths = [len(conversation) + len(SEPARATOR) for conversation in conversations[:-1]]
    built = HeldOutText(SEPARATOR.join(conversations), list(accumulate(lengths, initial=0)))
    encoded = built.text.encode("utf-8")
    # It becomes tokens in one piece, as rows.py says of one conversation.
    refuse_long(len(encoded), f"{corpus.label}, {use}_range {bounds} in all")
    write_text(text_path, built.text)
    record = {**wanted, "conversation_starts": built.conversation_starts, "sha256": sha256_bytes(encoded)}
    write_json(record_path, record)
    return built


def _read_record(path: Path) -> dict[str, Any] | None:
    """None when there is no readable record, and so no way to tell what the text is."""
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except RunError:
        return None
    return record if isinstance(record, dict) and "conversation_starts" in record else None


def _refuse_other_origin(record: dict[str, Any], wanted: dict[str, Any], text_path: Path) -> None:
    for name, value in wanted.items():
        if record.get(name) != value:
            raise DataError(
                f"{text_path} was written for {name} {record.get(name)!r}, the configuration asks for {value!r}: "
                "figures on different texts cannot be compared. "
                f"Set {name} back, or delete {text_path.parent} to start anew"
            )
