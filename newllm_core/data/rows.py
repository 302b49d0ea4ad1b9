"""Rows of the user's own file, one conversation each, with the place of each for error messages: JSON lines or Parquet.

Whatever is in the file, memory stays bounded: a line or text beyond ``MAX_CONVERSATION_BYTES`` is refused before it is
parsed. The tokenizer takes up to 200 bytes for each byte of a text (tokenizers 0.23, measured), so 8 MiB, four long
novels, are 1.6 GB there.
"""

import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from newllm_core.data.errors import DataError

MAX_CONVERSATION_BYTES = 8 << 20
COLUMNS = ("messages", "conversations")  # UltraChat's and OpenAI's name, ShareGPT's
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_ROWS = 32  # converted to Python at once

Row = tuple[str, Any]  # place, e.g. "mine.jsonl, line 7", and value


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of ``path`` in file order. Raises DataError that names the place and says how to mend the file."""
    return _READERS[path.suffix.lower()](path)


def check_file(path: Path) -> None:
    """Raises DataError unless there is a file of a known kind with something in it."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found a {'folder' if path.is_dir() else 'device or pipe'}")
    if path.suffix.lower() not in _READERS:
        expected = f"expected a file that ends in {' or '.join(_READERS)}, unpacked"
        raise DataError(f"{path}: {expected}, given {path.suffix!r}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected one conversation per line or row")


def import_or_explain(module: str, purpose: str) -> Any:
    """The module. Raises DataError with the command that installs its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{purpose} needs the package {package}: pip install {package}") from error


def _json_rows(path: Path) -> Iterator[Row]:
    # Read as bytes: text mode would also split at other line ends and decode before a line number is known.
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_CONVERSATION_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            refuse_long(len(line), where)
            # A mark stands at the start of a file, and inside where files were joined.
            text = line.removeprefix(_UTF8_MARK).strip()
            if text:
                yield where, _parsed_line(text, where)


def refuse_long(num_bytes: int, where: str) -> None:
    """Raises DataError for a line or text beyond ``MAX_CONVERSATION_BYTES``."""
    if num_bytes > MAX_CONVERSATION_BYTES:
        raise DataError(
            f"{where}: expected text of at most {MAX_CONVERSATION_BYTES >> 20} MiB, found more; cut it into several "
            "conversations"
        )


def _parsed_line(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line.startswith(_UTF16_MARKS) else "ITS-ENCODING"
        raise DataError(
            f"{where}: expected UTF-8, found byte {line[error.start]:#04x}; "
            f"`iconv -f {encoding} -t UTF-8 FILE > NEW-FILE` writes it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: expected a JSON object, found something else ({error}); where objects go on over several lines, "
            "`jq -c . FILE > NEW-FILE` writes one a line"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = import_or_explain("pyarrow.parquet", "a .parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            column = _conversation_column(path, file.schema_arrow.names, file.metadata.num_rows)
            batches = file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column])
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for number, value in enumerate(values, start=1):
                where = f"{path}, row {number}"
                yield where, {column: _python_value(value, where)}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a Parquet file, found something else ({error})") from error


def _python_value(value: Any, where: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8, found byte {error.object[error.start]:#04x}") from error


def _conversation_column(path: Path, columns: list[str], num_rows: int) -> str:
    named = [name for name in COLUMNS if name in columns]
    if not named:
        raise DataError(f"{path}: expected a column {' or '.join(COLUMNS)}, found the columns {columns}")
    if num_rows == 0:
        raise DataError(f"{path}: the file is empty; expected one conversation per line or row")
    return named[0]


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}
