"""A row of the leaderboard: one variant with one seed, on the same text, embeddings and head as all others."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import BASELINES, baseline_config
from newllm_core.baselines.train import train_baseline
from newllm_core.config.language import Settings
from newllm_core.config.schema import config_hash
from newllm_core.data import corpus_key, token_byte_lengths
from newllm_core.experiment.identity import identity_of
from newllm_core.experiment.measure import describe, per_conversation_sums
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.metrics.prediction import NATS_PER_BIT, perplexity
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import DATA_DIR, read_json
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.progress import Stopwatch
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.studies.phase1_rows import kept_phase1
from newllm_core.studies.sweep import Point
from newllm_core.studies.variants import LeaderboardVariant
from newllm_core.training.phase1 import Phase1Result
from newllm_core.training.phase2 import train_phase2

PHASE1_FOLDER = "phase1"  # beside the rows: weights that rows have in common
CHECKPOINTS_FOLDER = "checkpoints"  # beside them too: of rows that were interrupted
Row = dict[str, Any]


@dataclass(frozen=True)
class _Fitted:
    """``nats`` `[M - 1]` of the validation targets; parameters trained in both phases.

    ``earlier_cpu_seconds``: of a Phase 1 that an earlier row had trained, and of all before an interruption.
    """

    nats: Tensor
    trainable_parameters: int
    details: dict[str, Any]
    earlier_cpu_seconds: float = 0.0


@dataclass(frozen=True)
class _Places:
    """The folder of every Phase 1, and where this row's readout or network keeps its checkpoints."""

    phase1: Path
    checkpoints: CheckpointPlace


def read_rows(folder: Path) -> list[Row]:
    """Every row that was kept there. Raises RunError for a file that is not JSON."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def row_sections(point: Point, network_changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configs that a row's figures depend on: counts have no seed, networks no phases."""
    settings, kind = point.settings, point.variant.kind
    if kind in ("model", "control"):
        return {part: getattr(settings, part) for part in ("data", "model", "phase1", "phase2", "run")}
    if kind == "network":
        network = baseline_config(point.variant.name, embed_dim=settings.model.embed_dim, **network_changes)
        return {"data": settings.data, "network": network, "run": settings.run}
    return {"data": settings.data}


def row_path(point: Point, folder: Path, network_changes: Mapping[str, Any]) -> Path:
    """The row's file; one for all seeds where none touches the figures."""
    sections, data = row_sections(point, network_changes), point.settings.data
    corpus = f"-{corpus_key(data)}" if data.corpus == "file" else ""
    seed = f"-seed{point.settings.run.seed}" if "run" in sections else ""
    name = f"{point.variant.name}{corpus}-{data.num_samples}s{seed}-{config_hash(*sections.values())}"
    return folder / f"{name}.json"


def row_place(point: Point, folder: Path, network_changes: Mapping[str, Any]) -> RunFolder:
    """Where the row is or will be kept. Raises DataError where what it reads is missing."""
    path = row_path(point, folder, network_changes)
    identity = identity_of(row_sections(point, network_changes))
    return RunFolder(path, folder / CHECKPOINTS_FOLDER / path.stem, identity)


def run_row(point: Point, folder: Path, network_changes: Mapping[str, Any], data_dir: Path = DATA_DIR) -> Row:
    """One row: read when it is there, else prepared, trained, judged and written.

    Of two processes that want the same one, the second waits and reads it. ``seconds`` of the row are those of the
    session that finished it, ``cpu_seconds`` those of all.
    """
    with row_place(point, folder, network_changes).held() as held:
        if held.record is not None:
            return held.record
        network = row_sections(point, network_changes).get("network")
        places = _Places(folder / PHASE1_FOLDER, held.checkpoints)
        return held.finish(_run(point, network, places, data_dir), {})


def _run(point: Point, network: BaselineConfig | None, places: _Places, data_dir: Path) -> Row:
    start, settings = datetime.now(UTC).isoformat(timespec="seconds"), point.settings
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    watch = Stopwatch()
    fitted = _fit(point, prepared, network, places)
    took = watch.total()
    seconds = {"seconds": took.wall, "cpu_seconds": took.cpu + fitted.earlier_cpu_seconds}
    return {"variant": point.variant.record(), "start": start, **_row(prepared, fitted), **seconds}


def _fit(point: Point, prepared: Prepared, network: BaselineConfig | None, places: _Places) -> _Fitted:
    train, validation = prepared.train_tokens, prepared.validation_tokens
    if network is not None:
        result = train_baseline(prepared.model, train, validation, network, point.settings.run.seed, places.checkpoints)
        return _Fitted(result.nats, result.trainable_parameters, result.record(), result.earlier.cpu)
    if isinstance(point.variant, LeaderboardVariant) and point.variant.kind in ("model", "control"):
        return _fit_model(point.variant.contexts, prepared, point.settings, places)
    nats, details = BASELINES[point.variant.name].builder(train, validation, len(prepared.embeddings.matrix))
    return _Fitted(nats, 0, details)


def _fit_model(contexts: str, prepared: Prepared, settings: Settings, places: _Places) -> _Fitted:
    model, seed = prepared.model, settings.run.seed
    phase1 = kept_phase1(prepared, settings.phase1, places.phase1)
    read = changed_contexts(phase1.contexts, contexts, seed)
    phase2 = train_phase2(
        model, read, prepared.train_tokens, prepared.validation_tokens, settings.phase2, seed, places.checkpoints
    )
    counts = model.parameter_counts()
    trained = counts["trained_in_phase2"] + (counts["trained_in_phase1"] if settings.phase1.max_iterations else 0)
    details = {
        **phase1.figures,
        "best_epoch": phase2.best_epoch,
        "epochs": [epoch.validation_perplexity for epoch in phase2.epochs],
    }
    earlier_cpu_seconds = phase1.earlier_cpu_seconds + phase2.earlier.cpu
    return _Fitted(phase2.validation.nats.double(), trained, details, earlier_cpu_seconds)


def changed_contexts(phase1: Phase1Result, contexts: str, seed: int) -> Phase1Result:
    """The control: the same contexts, none (zeros), or each stream's own in a random order."""
    if contexts == "own":
        return phase1
    streams = {"train": phase1.train_contexts, "validation": phase1.validation_contexts}
    if contexts == "none":
        changed = {name: torch.zeros_like(stream) for name, stream in streams.items()}
    else:
        changed = {
            name: stream[torch.randperm(len(stream), generator=derived_generator("shuffled contexts", name, seed))]
            for name, stream in streams.items()
        }
    return Phase1Result(changed["train"], changed["validation"], phase1.history)


def _row(prepared: Prepared, fitted: _Fitted) -> Row:
    stream = prepared.token_data.validation
    num_bytes = int(token_byte_lengths()[stream.tokens[1:]].sum())
    total = float(fitted.nats.double().sum())
    described = describe(prepared)
    del described["parameters"]  # of the whole model, embeddings included; the row has what was trained
    return {
        **described,
        "validation_perplexity": perplexity(total / len(fitted.nats)),
        "bits_per_byte": total / NATS_PER_BIT / num_bytes,
        "validation_bytes": num_bytes,
        "validation_conversations": per_conversation_sums(fitted.nats, stream.boundaries),
        "trainable_parameters": fitted.trainable_parameters,
        "details": fitted.details,
    }
