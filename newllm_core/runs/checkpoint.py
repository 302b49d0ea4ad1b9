"""What an interrupted training goes on from: everything that its next step depends on.

A checkpoint is three files: tensors (safetensors), the states of optimizer, schedule and generators (loaded with
`weights_only=True`), and a JSON file that holds their checksums, its own, and the figures so far. It is written last,
so a reader finds a whole checkpoint or the one before. Two are kept: if the newest was damaged, the one before is used.
"""

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.runs.copies import copy_files
from newllm_core.runs.disk import RunError, disk_errors_named
from newllm_core.runs.files import (
    read_json,
    sha256_file,
    sha256_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from newllm_core.runs.identity import Identity, refuse_other_run
from newllm_core.runs.mapped import is_mapped
from newllm_core.runs.tensor_pieces import read_in_place

logger = logging.getLogger("newllm")

# What checkpoints may cost, as a share of a training's seconds so far.
CHECKPOINT_SHARE = 0.01
# What the first one is taken to cost, before one was timed: syncing some files, and bytes of tensors a second.
_ASSUMED_SECONDS, _ASSUMED_BYTES = 0.05, 100e6
_NUM_KEPT = 2


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a training keeps its checkpoints, and the configuration they belong to, by section.

    ``copies``: a second place for the newest one; None: none.
    """

    folder: Path
    configs: Mapping[str, Any]
    copies: Path | None = None


def with_read_data(
    place: CheckpointPlace, device: torch.device, tensors: Mapping[str, Sequence[Tensor]], **others: Any
) -> CheckpointPlace:
    """With the device and the hashes of ``tensors``: the same configuration can meet other data."""
    hashes = {name: sha256_tensors(*read) for name, read in tensors.items()}
    return replace(place, configs={**place.configs, "read": {"device": device.type, **others, **hashes}})


@dataclass(frozen=True)
class Checkpoint:
    """
    Attributes:
        configs: configuration and data it belongs to, by section.
        rows: the figures of every finished epoch or iteration.
        steps: taken of the next one.
        tensors: weights, by full name.
        states: nested dicts and lists of numbers and tensors.
    """

    configs: Mapping[str, Any]
    rows: list[dict[str, Any]]
    steps: int
    tensors: Mapping[str, Tensor]
    states: Mapping[str, Any]


class CheckpointBudget:
    """Says when the next checkpoint is worth its time: all together may take ``CHECKPOINT_SHARE`` of the session.

    ``saved``: where the training stood at the last one; None before the first.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent, self._last = 0.0, 0.0
        self.saved: str | None = None

    def allows(self, tensors: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Whether one more would stay within the share; the first, of ``tensors()``, by a guess."""
        if not self._last:
            self._last = _ASSUMED_SECONDS + sum(value.nbytes for value in tensors().values()) / _ASSUMED_BYTES
        return self._spent + self._last <= CHECKPOINT_SHARE * (time.perf_counter() - self._began)

    @contextmanager
    def timed(self, where: str) -> Iterator[None]:
        """Around the writing of one; a failed one has cost its time too."""
        began = time.perf_counter()
        try:
            yield
            self.saved = where
        finally:
            self._last = time.perf_counter() - began
            self._spent += self._last


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write it, then delete all but it and the one before, and what a killed process has left half-written.

    One that says it is further along goes too: it was damaged, so this training began before it, and it would be taken
    for the newest, here and in every copy.
    """
    stem = f"{len(checkpoint.rows):06d}-{checkpoint.steps:08d}"
    tensors, states, progress = _paths(folder, stem)
    with disk_errors_named(progress):
        progress.unlink(missing_ok=True)  # one of the same place, whose other files are replaced now
    contiguous = {
        name: tensor.detach() if is_mapped(tensor) else tensor.detach().contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    write_tensors(tensors, contiguous)
    size = _num_bytes(checkpoint.states)
    write_atomically(states, lambda temporary: torch.save(dict(checkpoint.states), temporary), size)
    content = {
        "config": dict(checkpoint.configs), "rows": checkpoint.rows, "steps": checkpoint.steps,
        "sha256": {path.name: sha256_file(path) for path in (tensors, states)},
    }  # fmt: skip
    write_json(progress, content)
    until_now = [found for found in _newest_first(folder) if found <= stem]
    kept = {path for found in until_now[:_NUM_KEPT] for path in _paths(folder, found)}
    with disk_errors_named(folder):
        for path in sorted(set(folder.iterdir()) - kept, key=lambda path: path.suffix != ".json"):
            if path.is_dir():
                shutil.rmtree(path)  # of a process that was killed while it wrote
            else:
                path.unlink()


CHECKPOINT_NAME = "checkpoint/"  # of its files, in a copy


def copy_checkpoint(place: CheckpointPlace) -> bool:
    """The newest one to the second place; False where it does not take it now."""
    assert place.copies is not None
    newest = _newest_first(place.folder)[0]
    files = {f"{CHECKPOINT_NAME}{path.name}": path for path in _paths(place.folder, newest)}
    return copy_files(place.copies, files, newest)


def _num_bytes(states: Any) -> int:
    """Of all tensors within."""
    if isinstance(states, Tensor):
        return states.nbytes
    parts = states.values() if isinstance(states, Mapping) else states if isinstance(states, list | tuple) else ()
    return sum(map(_num_bytes, parts))


def load_checkpoint(place: CheckpointPlace | None, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint at ``place`` that is whole, its tensors on ``device``; None when there is none.

    Raises RunError when it belongs to another configuration or other data, or when all were altered since.
    """
    if place is None:
        return None
    problem = None
    for stem in _newest_first(place.folder):
        tensors, states, progress = _paths(place.folder, stem)
        problem = _problem(tensors, states, progress)
        if problem is None:
            return _read(place, tensors, states, progress, device)
        logger.warning("%s; looking for the checkpoint before", problem)
    if problem is not None:
        raise RunError(f"{problem}; there is none before it, delete {place.folder} to start anew")
    return None


def _read(place: CheckpointPlace, tensors: Path, states: Path, progress: Path, device: torch.device) -> Checkpoint:
    content = read_json(progress)
    refuse_other_run(content, Identity(place.configs), place.folder)
    return Checkpoint(
        content["config"],
        content["rows"],
        content["steps"],
        {name: tensor.to(device) for name, tensor in read_in_place(tensors).items()},
        # Generator states must stay on the CPU; load_state_dict moves the optimizer's own.
        torch.load(states, weights_only=True, map_location="cpu"),
    )


def _problem(tensors: Path, states: Path, progress: Path) -> str | None:
    """What is wrong with a checkpoint's files."""
    try:
        digests = read_json(progress).get("sha256")
    except RunError:
        return f"{progress}: the file does not match its checksum"
    if not isinstance(digests, dict) or set(digests) != {tensors.name, states.name}:
        return f"{progress}: the file is no checkpoint's"
    for path in (tensors, states):
        if not path.is_file() or sha256_file(path) != digests[path.name]:
            return f"{path}: the file is missing or does not match its checksum"
    return None


def _paths(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """Tensors, states, and the JSON file that makes them a checkpoint."""
    return folder / f"{stem}.safetensors", folder / f"{stem}.pt", folder / f"checkpoint-{stem}.json"


def _newest_first(folder: Path) -> list[str]:
    return sorted((path.stem.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*.json")), reverse=True)


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several sets of weights as one: ``{"best": {"w": …}}`` becomes ``{"best.w": …}``."""
    return {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}


def parted(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What ``joined`` was given, without the sets that were empty."""
    found = defaultdict[str, dict[str, Tensor]](dict)
    for full_name, value in tensors.items():
        part, name = full_name.split(".", 1)
        found[part][name] = value
    return dict(found)


def discard_checkpoint(folder: Path) -> None:
    """Delete all: what makes them checkpoints first, so that an interruption leaves none that names missing files."""
    with disk_errors_named(folder):
        for path in folder.glob("checkpoint-*.json"):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
