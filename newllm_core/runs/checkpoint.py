"""What an interrupted training goes on from: everything that its next step depends on.

A checkpoint is three files: tensors (safetensors), the states of optimizer, schedule and generators (loaded with
`weights_only=True`), and `progress.json`, which names the other two. It is written last, so a reader finds a whole
checkpoint or the one before.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.runs.files import (
    RunError,
    checksum_path,
    has_valid_checksum,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    sha256_tensors,
    write_atomically,
    write_json,
    write_text,
)
from newllm_core.runs.identity import Identity, refuse_other_run

PROGRESS_NAME = "progress.json"


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a training keeps its checkpoints, and the configuration they belong to, by section."""

    folder: Path
    configs: Mapping[str, Any]


def with_circumstances(
    place: CheckpointPlace, device: torch.device, tensors: Mapping[str, Sequence[Tensor]], **others: str
) -> CheckpointPlace:
    """With the device and the hashes of ``tensors``: the same configuration can meet other data."""
    hashes = {name: sha256_tensors(*read) for name, read in tensors.items()}
    return CheckpointPlace(place.folder, {**place.configs, "read": {"device": device.type, **others, **hashes}})


@dataclass(frozen=True)
class Checkpoint:
    """
    Attributes:
        configs: configuration and data it belongs to, by section.
        epochs: the figures of every finished epoch or iteration.
        tensors: weights, by full name.
        states: nested dicts and lists of numbers and tensors.
    """

    configs: Mapping[str, Any]
    epochs: list[dict[str, Any]]
    tensors: Mapping[str, Tensor]
    states: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write it, then delete the one before."""
    stem = f"epoch-{len(checkpoint.epochs):04d}"
    save_tensors(folder / f"{stem}.safetensors", checkpoint.tensors)
    states = folder / f"{stem}.pt"
    write_atomically(states, lambda temporary: torch.save(dict(checkpoint.states), temporary))
    write_text(checksum_path(states), sha256_file(states) + "\n")
    progress = {"files": stem, "config": dict(checkpoint.configs), "epochs": checkpoint.epochs}
    write_json(folder / PROGRESS_NAME, progress)
    for path in folder.glob("epoch-*"):
        if not path.name.startswith(f"{stem}."):
            path.unlink()


def load_checkpoint(place: CheckpointPlace | None, device: torch.device) -> Checkpoint | None:
    """The checkpoint at ``place``, its tensors on ``device``; None when there is none, or no place.

    Raises RunError when it belongs to another configuration or other data, or was altered since.
    """
    if place is None or not (place.folder / PROGRESS_NAME).is_file():
        return None
    folder = place.folder
    progress = read_json(folder / PROGRESS_NAME)
    refuse_other_run(progress, Identity(place.configs), folder)
    weights, states = (folder / f"{progress['files']}.{ending}" for ending in ("safetensors", "pt"))
    for path in (weights, states):
        if not has_valid_checksum(path):
            raise RunError(f"{path}: the file is missing or does not match its checksum; delete {folder} to start anew")
    tensors = load_tensors(weights)
    return Checkpoint(
        progress["config"],
        progress["epochs"],
        {name: tensor.to(device) for name, tensor in tensors.items()},
        # Generator states must stay on the CPU; load_state_dict moves the optimizer's own.
        torch.load(states, weights_only=True, map_location="cpu"),
    )


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several sets of weights as one: ``{"best": {"w": …}}`` becomes ``{"best.w": …}``."""
    return {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}


def parted(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """What ``joined`` was given; each of ``parts`` is there, if empty."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for full_name, value in tensors.items():
        part, name = full_name.split(".", 1)
        found[part][name] = value
    return found


def generator_states(device: torch.device) -> dict[str, Any]:
    """Of the random generators that dropout draws from on ``device``; for a checkpoint's ``states``."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"generator": torch.get_rng_state(), "cuda_generator": cuda}


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where ``generator_states`` found them."""
    torch.set_rng_state(states["generator"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda_generator"], device)


def discard_checkpoint(folder: Path) -> None:
    """Delete it, if it is there: the pointer first, so that an interruption leaves none that names missing files."""
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
