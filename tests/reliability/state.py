"""What a finished run has left, held against what an uninterrupted one leaves: figures, weights, and nothing else."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from newllm_core.runs.files import has_valid_checksum, read_json
from newllm_core.runs.identity import figures_of
from newllm_core.runs.record_differences import differences

# Stay by design: what workers of a search agree by, and what Optuna wrote before a cut.
_KEPT = ("search.lock", "ask.lock", ".damaged")
# Of a search that was killed: trials that were interrupted and queued again.
_OF_INTERRUPTIONS = ("number", "folder", "state")


def differing(found: Path, expected: Path) -> str | None:
    """The first thing in which two results folders differ; of weights the first tensor and number; None: nothing."""
    one, other = (_files(folder) for folder in (expected, found))
    for name in sorted(one.keys() | other.keys()):
        if name not in other:
            return f"{name} is missing"
        if name not in one:
            return f"{name} was left behind"
        difference = next(_differences(one[name], other[name]), None)
        if difference:
            return f"{name}: {difference}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """By relative name, in which a search's trials are counted by those that were finished: others were interrupted.

    A checksum beside its file belongs to that.
    """
    trials = _trial_folders(folder)
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith((*_KEPT, ".sha256", ".journal")):
            place = path.relative_to(folder)
            found[Path(*(trials.get(part, part) for part in place.parts)).as_posix()] = path
    return found


def _trial_folders(folder: Path) -> dict[str, str]:
    summary = folder / "search.json"
    trials = read_json(summary)["trials"] if summary.is_file() else []
    finished = [trial["folder"] for trial in trials if trial["state"] in ("complete", "pruned")]
    return {name: f"finished-{number}" for number, name in enumerate(finished)}


def _differences(expected: Path, found: Path) -> Iterator[str]:
    if expected.suffix == ".safetensors":
        if not has_valid_checksum(found):
            yield "does not match its checksum"
        yield from _tensors(load_file(expected), load_file(found))
    elif expected.name == "search.json":
        yield from differences(*(_trials(read_json(path)) for path in (expected, found)))
    elif expected.suffix == ".json" and expected.name != "tokenizer.json":
        yield from differences(*(without_seconds(figures_of(read_json(path))) for path in (expected, found)))
    elif expected.suffix == ".ipynb":
        yield from differences(*(_cells(path) for path in (expected, found)))
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


def _trials(summary: Mapping[str, Any]) -> Any:
    """What was tried and what came of it, in order, without the attempts that were interrupted."""
    finished = [trial for trial in summary["trials"] if trial["state"] in ("complete", "pruned")]
    kept = [{name: value for name, value in one.items() if name not in _OF_INTERRUPTIONS} for one in finished]
    return {"config": summary["config"], "states": [one["state"] for one in finished], "trials": kept}


def _cells(path: Path) -> Any:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{name: value for name, value in cell.items() if name != "metadata"} for cell in cells]
