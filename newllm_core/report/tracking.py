"""What finished runs' records say, for TensorBoard and MLflow: the same figures, made from the same records.

A record has every iteration and epoch once, however often its run was interrupted, and what is written is known by its
record: written again it replaces, or is found there, so that no step stands twice.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from newllm_core.report.found_runs import FoundRun
from newllm_core.runs.files import read_json, sha256_bytes, write_atomically

_STEPS = ("iteration", "epoch")  # the keys that number the rows of a training
_TAG = "newllm.record_sha256"
Series = dict[str, list[tuple[int, float]]]


def series_of(record: Mapping[str, Any]) -> Series:
    """Steps and values by name, `phase2/validation_loss`, of every list of rows that are numbered in the record.

    A figure that was not measured has no point.
    """
    found: Series = {}
    for path, rows in _numbered_rows(record, ()):
        for row in rows:
            step = next(row[name] for name in _STEPS if name in row)
            for name, value in _figures(row, ()):
                if name not in _STEPS:
                    found.setdefault("/".join([*path[:-1], name]), []).append((step, value))
    return found


def _numbered_rows(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _numbered_rows(one, (*path, name))
    elif isinstance(value, list) and value and all(isinstance(row, dict) and row.keys() & set(_STEPS) for row in value):
        yield path, value


def _figures(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _figures(one, (*path, name))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield ".".join(path), float(value)


# --- TensorBoard


def write_tensorboard(run: FoundRun, folder: Path, below: Path) -> Path | None:
    """An event file of the run in ``folder``, in a folder named as the record's below ``below``; None without steps.

    Own code, since TensorBoard's writer only appends: a file that is there is replaced. The time of every event is the
    run's start, the records have none for each step.
    """
    record = read_json(run.record_path)
    series = series_of(record)
    if not series:
        return None
    began = datetime.fromisoformat(record["start"]).timestamp() if "start" in record else 0.0
    place = folder / run.record_path.relative_to(below).with_suffix("")
    path = place / f"events.out.tfevents.{int(began)}.{run.record_path.stem}"
    events = [_event(began, version="brain.Event:2")]
    events += [_event(began, step, tag, value) for tag, points in series.items() for step, value in points]
    content = b"".join(map(_framed, events))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def _event(time: float, step: int = 0, tag: str = "", value: float = 0.0, version: str = "") -> bytes:
    """A message `tensorflow.Event` in Protocol Buffers' encoding: wall_time 1, step 2, file_version 3, summary 5."""
    event = b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(step)
    if version:
        return event + _field(3, version.encode())
    figure = _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)  # of Summary.Value: tag 1, simple_value 2
    return event + _field(5, _field(1, figure))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


def _framed(content: bytes) -> bytes:
    """A record of a TFRecord file: length, its checksum, content, its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C (Castagnoli), masked as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_row(byte) for byte in range(256)]


# --- MLflow


def log_mlflow(runs: Sequence[FoundRun], uri: str, experiment: str = "newllm") -> int:
    """Log each run that the tracking server or database ``uri`` does not have yet; how many there were.

    Raises ImportError, with the command that installs it, where MLflow is not installed.
    """
    try:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ImportError("MLflow is not installed: pip install mlflow") from error
    client, logged = MlflowClient(uri), 0
    known = client.get_experiment_by_name(experiment)
    home = known.experiment_id if known else client.create_experiment(experiment)
    for run in runs:
        digest = sha256_bytes(run.record_path.read_bytes())
        if client.search_runs([home], f"tags.`{_TAG}` = '{digest}'"):
            continue
        entry = client.create_run(home, run_name=run.what)
        points = [Metric(_allowed(tag), value, 0, step) for tag, one in _series(run).items() for step, value in one]
        single = [Metric(_allowed(name), value, 0, 0) for name, value in run.table.items() if value is not None]
        metrics = [*points, *single]
        for first in range(0, len(metrics), 1000):  # at most so many at once
            client.log_batch(entry.info.run_id, metrics=metrics[first : first + 1000])
        parameters = [Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(parameters), 100):
            client.log_batch(entry.info.run_id, params=parameters[first : first + 100])
        # Last: a run that was cut short is not known by it, and is logged again.
        client.log_batch(entry.info.run_id, tags=[RunTag(_TAG, digest)])
        client.set_terminated(entry.info.run_id)
        logged += 1
    return logged


def _series(run: FoundRun) -> Series:
    return series_of(read_json(run.record_path))


def _allowed(name: str) -> str:
    """MLflow's names have letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)
