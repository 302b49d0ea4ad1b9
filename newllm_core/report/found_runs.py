"""Every finished run below a folder, whatever its kind, from its record alone: what the results page shows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm_core.runs.files import RunError, read_json

LANGUAGE, PHASE1, ROW, IMAGES = "both phases", "Phase 1 alone", "leaderboard row", "images"
KINDS = (LANGUAGE, PHASE1, ROW, IMAGES)
Scalar = str | int | float | bool | None
# The figures of the table, by kind: dotted paths into the record. What a kind does not have is a dash.
_RANK = "phase1.effective_rank.validation"
_FIGURES: Mapping[str, Mapping[str, str]] = {
    LANGUAGE: {
        "tokens": "tokens.train", "contraction": "phase1.contraction_rate",
        "PPL": "phase2.best.validation_perplexity", "accuracy": "phase2.best.validation_accuracy",
        "bits a byte": "phase2.best.validation_bits_per_byte", "seconds": "seconds",
    },
    PHASE1: {"contraction": "contraction_rate", "seconds": "seconds"},
    ROW: {
        "tokens": "tokens.train", "contraction": "details.contraction_rate", "PPL": "validation_perplexity",
        "bits a byte": "bits_per_byte", "seconds": "cpu_seconds",
    },
    IMAGES: {"accuracy": "selection.accuracy", "test accuracy": "test.accuracy", "seconds": "seconds"},
}  # fmt: skip
FIGURES = {  # by name: unit, decimals
    "tokens": ("training tokens", 0),
    "effective rank": ("% of C, validation", 1),
    "contraction": ("nats a token", 3),
    "PPL": ("validation", 1),
    "accuracy": ("%, validation or selection", 1),
    "test accuracy": ("%", 1),
    "bits a byte": ("validation", 3),
    "seconds": ("of the session; of a row, of the processor", 0),
}
_RECORD_STEMS = ("run", "phase1")  # of records in a folder of their own
_HASHES = re.compile(r"(-[0-9a-f]{8})+$")
_UNSHOWN = ("config", "provenance", "versions", "arithmetic", "read", "paths", "own_sha256", "format")


@dataclass(frozen=True)
class FoundRun:
    """One finished run.

    Attributes:
        record_path: of its record; beside it lie its pictures.
        what: of the table's first column; the variant's name of a row, else the folder's.
        table: FIGURES by name, None where there is none; shares as percent.
        config: every field by its dotted name.
        figures: every single figure of the record by its dotted name, lists left out.
    """

    kind: str
    record_path: Path
    what: str
    seed: int | None
    table: Mapping[str, float | None]
    config: Mapping[str, Scalar]
    figures: Mapping[str, Scalar]
    pictures: tuple[Path, ...] = field(default=())


def find_runs(folder: Path) -> tuple[list[FoundRun], list[str]]:
    """Runs below ``folder`` sorted by kind and path, and a sentence for each record that cannot be used.

    Below `results/` the committed `reference/` is left out; it has to be named itself.
    """
    runs, unusable = [], []
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder).parts[0] == "reference" or not _may_be_record(path):
            continue
        try:
            record = read_json(path)
        except RunError as error:
            unusable.append(str(error))
            continue
        kind = _kind(record)
        if kind is not None:
            runs.append(_found(kind, path, record))
    return sorted(runs, key=lambda run: KINDS.index(run.kind)), unusable


def _may_be_record(path: Path) -> bool:
    """By its name, or by the checksum that every file of the project has; other JSON files are somebody else's."""
    if path.name.startswith("."):
        return False
    return path.stem in _RECORD_STEMS or b'"own_sha256"' in path.read_bytes()


def _kind(record: Mapping[str, Any]) -> str | None:
    """None for a file that is no run's, such as a search's or an analysis'."""
    if "config" not in record:
        return None
    if "variant" in record:
        return ROW
    if "dataset" in record and "selection" in record:
        return IMAGES
    if "phase2" in record:
        return LANGUAGE
    return PHASE1 if "effective_rank" in record else None


def _found(kind: str, path: Path, record: Mapping[str, Any]) -> FoundRun:
    table = {name: _number(_at(record, _FIGURES[kind].get(name, ""))) for name in FIGURES}
    table["effective rank"] = _rank_percent(record)
    for name in ("accuracy", "test accuracy"):
        table[name] = None if table[name] is None else 100 * float(table[name] or 0)
    seed = record.get("seed", _at(record, "config.run.seed"))
    figures = dict(_scalars({name: value for name, value in record.items() if name not in _UNSHOWN}))
    pictures = () if kind == ROW else tuple(sorted(path.parent.glob("*.png")))
    return FoundRun(
        kind, path, _name(kind, path, record), seed, table, dict(_scalars(record["config"])), figures, pictures
    )


def _name(kind: str, path: Path, record: Mapping[str, Any]) -> str:
    """Of a row its variant's; else the folder's, or the file's where many lie together, without hashes at the end."""
    if kind == ROW:
        return str(record["variant"]["name"])
    if path.stem not in _RECORD_STEMS:
        return _HASHES.sub("", path.stem)
    folder = path.parent
    return (
        f"{folder.parent.name}/{folder.name}" if folder.name == record.get("dataset") else _HASHES.sub("", folder.name)
    )


def _rank_percent(record: Mapping[str, Any]) -> float | None:
    """Of the validation contexts, in % of C; the three kinds of record that have one say it in three places."""
    share = _number(_at(record, "details.validation_rank.share"))
    if share is not None:
        return 100 * share
    rank = _at(record, "phase1.effective_rank") or record.get("effective_rank")
    return None if rank is None else 100 * float(rank["validation"]) / float(rank["context_dim"])


def _at(record: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where there is nothing."""
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, bool | str) else float(value)


def _scalars(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Scalar]]:
    """Of a nested mapping, what is no list, by dotted name; a list of a few single values as text."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _scalars(inner, f"{before}{name}.")
        elif not isinstance(inner, list):
            yield before + name, inner
        elif len(inner) <= 3 and not any(isinstance(one, Mapping | list) for one in inner):
            yield before + name, ", ".join(map(str, inner))


def closing_lines(runs: Sequence[FoundRun], unusable: Sequence[str], num_notebooks: int) -> list[str]:
    """Three lines that say what came out: how much, the text's lowest perplexities, the images' highest accuracies."""
    counts = [f"{sum(run.kind == kind for run in runs)} {kind}" for kind in KINDS if any(r.kind == kind for r in runs)]
    damaged = f"; {len(unusable)} records cannot be used" if unusable else ""
    notebooks = f"{num_notebooks} executed notebook{'s' * (num_notebooks != 1)}"
    return [
        f"{notebooks}, {len(runs)} runs ({', '.join(counts) or 'none'}){damaged}.",
        f"Text, lowest validation perplexity: {_best_text(runs)}.",
        f"Images, highest selection accuracy: {_best_images(runs)}.",
    ]


def _best_text(runs: Sequence[FoundRun]) -> str:
    """Of whole runs and of the leaderboard's rows, each at the largest number of training tokens.

    Where pictures of a run were asked for, such as in notebook 03, only those are looked at; others belong to a sweep.
    """
    parts = []
    for kind in (LANGUAGE, ROW):
        known = [run for run in runs if run.kind == kind and run.table["PPL"] is not None]
        known = [run for run in known if run.pictures] or known
        if known:
            best = min(known, key=lambda run: (-(run.table["tokens"] or 0), run.table["PPL"]))
            parts.append(f"{best.table['PPL']:,.1f} of {best.what} ({best.table['tokens']:,.0f} training tokens)")
    return ", ".join(parts) or "none yet"


def _best_images(runs: Sequence[FoundRun]) -> str:
    """By data set."""
    known = [run for run in runs if run.kind == IMAGES and run.table["accuracy"] is not None]
    best: dict[Scalar, float] = {}
    for run in known:
        name = run.config.get("data.dataset")
        best[name] = max(best.get(name, 0.0), run.table["accuracy"] or 0.0)
    return ", ".join(f"{name} {accuracy:.1f} %" for name, accuracy in best.items()) or "none yet"
