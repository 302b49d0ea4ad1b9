"""What a finished run has left, held against what an uninterrupted one leaves: figures, weights, and nothing else."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from newllm_core.runs.files import RunError, has_valid_checksum, read_json
from newllm_core.runs.identity import figures_of
from newllm_core.runs.record_differences import differences

from .scenarios import cells_of, trials_of

# Stay by design: what workers of a search agree by, and what Optuna wrote before a cut.
_KEPT = ("search.lock", "ask.lock", ".damaged")


def differing(found: Path, expected: Path, but: Path | None = None) -> str | None:
    """The first thing in which two results folders differ; of weights the first tensor and number; None: nothing.

    ``but``: a file that may be anything, relative.
    """
    one, other = (_files(folder) for folder in (expected, found))
    for name in sorted((one.keys() | other.keys()) - {"" if but is None else but.as_posix().removesuffix(".sha256")}):
        if name not in other:
            return f"{name} is missing"
        if name not in one:
            return f"{name} was left behind"
        try:
            difference = next(_differences(one[name], other[name]), None)
        except RunError as error:
            difference = str(error)
        if difference:
            return f"{name}: {difference}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """By relative name. A checksum beside its file belongs to that."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((*_KEPT, ".sha256", ".journal"))
    }


def values_differing(found: Any, expected: Any) -> str | None:
    """The first difference of what was read."""
    one, other = (_plain(value) for value in (expected, found))
    return next(differences(one, other), None)


def _plain(value: Any) -> Any:
    return without_seconds(figures_of(json.loads(json.dumps(value))))


def _differences(expected: Path, found: Path) -> Iterator[str]:
    if expected.suffix == ".safetensors":
        if not has_valid_checksum(found):
            yield "does not match its checksum"
        yield from _tensors(load_file(expected), load_file(found))
    elif expected.name == "search.json":
        yield from differences(*(trials_of(read_json(path)) for path in (expected, found)))
    elif expected.suffix == ".json" and expected.name != "tokenizer.json":
        yield from differences(*(without_seconds(figures_of(read_json(path))) for path in (expected, found)))
    elif expected.suffix == ".ipynb":
        yield from differences(*(cells_of(path) for path in (expected, found)))
    elif expected.read_bytes() != found.read_bytes():
        yield "other content"


def _tensors(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> Iterator[str]:
    if expected.keys() != found.keys():
        yield f"tensors {sorted(found)}, expected {sorted(expected)}"
        return
    for name, tensor in expected.items():
        other = found[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            yield f"tensor {name} is {other.dtype} {list(other.shape)}, expected {tensor.dtype} {list(tensor.shape)}"
        elif not torch.equal(tensor, other):
            place = int((tensor != other).flatten().int().argmax())
            yield f"tensor {name}, number {place}: {other.flatten()[place]}, expected {tensor.flatten()[place]}"


def without_seconds(figures: Any) -> Any:
    """Without what a clock says, at every depth."""
    if isinstance(figures, dict):
        return {name: without_seconds(value) for name, value in figures.items() if not name.endswith("seconds")}
    return [without_seconds(value) for value in figures] if isinstance(figures, list) else figures
