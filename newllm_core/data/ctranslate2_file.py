"""Read one variable of a CTranslate2 model file, binary format version 6.

Little-endian: uint32 format version; string specification name; uint32 revision; uint32 number of variables; then per
variable: string name, uint8 rank, rank × uint32 dimensions, uint8 type id, uint32 size in bytes, data. A string is a
uint16 length, that counts a closing zero byte, and its bytes.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from newllm_core.data.errors import DataError

FORMAT_VERSION = 6
FLOAT16 = 4  # CTranslate2's type id


def read_float16_rows(path: Path, name: str, num_rows: int) -> NDArray[np.float16]:
    """The first ``num_rows`` rows of the variable ``name``, [num_rows, columns]; other variables are skipped, not read.

    Raises DataError for another format version, a missing variable, another type or rank, or a file that ends early.
    """
    with path.open("rb") as stream:
        version = _number(stream, "I", path)
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: expected CTranslate2 format version {FORMAT_VERSION}, found {version}")
        _string(stream, path)
        _number(stream, "I", path)
        num_variables = _number(stream, "I", path)
        for _ in range(num_variables):
            found = _string(stream, path)
            dims = [_number(stream, "I", path) for _ in range(_number(stream, "B", path))]
            type_id, num_bytes = _number(stream, "B", path), _number(stream, "I", path)
            if found == name:
                _check_variable(f"{path}: {name}", dims, type_id, num_bytes, num_rows)
                content = _exactly(stream, num_rows * dims[1] * 2, path)
                return np.frombuffer(content, dtype="<f2").reshape(num_rows, dims[1])
            stream.seek(num_bytes, 1)
    raise DataError(f"{path}: expected a variable {name}, found {num_variables} others")


def _check_variable(label: str, dims: list[int], type_id: int, num_bytes: int, num_rows: int) -> None:
    if type_id != FLOAT16 or len(dims) != 2 or dims[0] < num_rows or num_bytes != 2 * math.prod(dims):
        raise DataError(
            f"{label}: expected a float16 (type {FLOAT16}) matrix of at least {num_rows} rows, "
            f"found type {type_id}, dimensions {dims}, {num_bytes} bytes"
        )


def _exactly(stream: BinaryIO, size: int, path: Path) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise DataError(f"{path}: the file ends early; expected {size} more bytes, found {len(content)}")
    return content


def _number(stream: BinaryIO, code: str, path: Path) -> int:
    layout = struct.Struct("<" + code)
    return int(layout.unpack(_exactly(stream, layout.size, path))[0])


def _string(stream: BinaryIO, path: Path) -> str:
    return _exactly(stream, _number(stream, "H", path), path).rstrip(b"\0").decode("utf-8", errors="replace")
