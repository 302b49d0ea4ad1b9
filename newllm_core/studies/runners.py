"""What the context is worth: the model, controls and baselines on identical text, one row a run.

All see the same tokens, frozen embeddings, tied head and validation text, and are judged token by token. A finished row
is read, not run again, an interrupted one goes on from its last checkpoint, and a Phase 1 that several rows have in
common is trained once.
"""

from collections.abc import Mapping, Sequence
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
from newllm_core.config.schema import changed, config_hash
from newllm_core.data import corpus_key, token_byte_lengths
from newllm_core.experiment.identity import identity_of
from newllm_core.experiment.measure import describe, per_conversation_sums
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.metrics.prediction import NATS_PER_BIT, perplexity
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import DATA_DIR, RESULTS_DIR, read_json
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.progress import Stopwatch, progress_bar
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.studies.phase1_rows import kept_phase1
from newllm_core.studies.variants import LeaderboardVariant, variant
from newllm_core.training.phase1 import Phase1Result
from newllm_core.training.phase2 import train_phase2

LEADERBOARD_DIR = RESULTS_DIR / "leaderboard"
PHASE1_FOLDER = "phase1"  # beside the rows: weights that rows have in common
CHECKPOINTS_FOLDER = "checkpoints"  # beside them too: of rows that were interrupted
SEEDLESS = ("counts", "pretrained")  # kinds whose figures no seed touches
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


def run_rows(
    names: Sequence[str],
    base: Settings,
    seeds: Sequence[int],
    folder: Path = LEADERBOARD_DIR,
    *,
    network_changes: Mapping[str, Any] | None = None,
    data_dir: Path = DATA_DIR,
) -> list[Row]:
    """Every variant with every seed; what has no seed (counts) once. ``network_changes``: of every BaselineConfig.

    Raises ConfigError for an unknown name or an impossible value before anything is run.
    """
    points = points_of(names, base, seeds)
    for point in points:
        row_path(*point, folder, network_changes or {})  # refuses what is impossible
    if network_changes:
        baseline_config("gru", **network_changes)  # also where no network takes part
    rows = []
    bar = progress_bar(points, desc="leaderboard", unit="run")
    for name, settings in bar:
        bar.set_postfix_str(f"{name}, seed {settings.run.seed}")
        rows.append(run_row(name, settings, folder, network_changes or {}, data_dir))
    return rows


def read_rows(folder: Path) -> list[Row]:
    """Every row that was kept there. Raises RunError for a file that is not JSON."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def points_of(names: Sequence[str], base: Settings, seeds: Sequence[int]) -> list[tuple[str, Settings]]:
    """Every variant with every seed, and counts with the first alone.

    Raises ConfigError for an unknown name, and for a ``base`` that is not the notes' model.
    """
    return [
        (name, changed(base, {"seed": seed}))
        for name in names
        for seed in (seeds[:1] if variant(name).kind in SEEDLESS else seeds)
    ]


def row_settings(name: str, base: Settings) -> Settings:
    """``base`` with the variant's own changes."""
    return variant(name).settings(base)


def row_path(name: str, base: Settings, folder: Path, network_changes: Mapping[str, Any]) -> Path:
    """Where the row is or will be kept."""
    settings = row_settings(name, base)
    sections = _sections(name, settings, network_changes)
    seed = f"-seed{settings.run.seed}" if "run" in sections else ""
    corpus = f"-{corpus_key(settings.data)}" if settings.data.corpus == "file" else ""
    return folder / f"{name}{corpus}-{settings.data.num_samples}s{seed}-{config_hash(*sections.values())}.json"


def run_row(
    name: str, base: Settings, folder: Path, network_changes: Mapping[str, Any], data_dir: Path = DATA_DIR
) -> Row:
    """One row: read when it is there, else prepared, trained, judged and written.

    Of two processes that want the same one, the second waits and reads it. ``seconds`` of the row are those of the
    session that finished it, ``cpu_seconds`` those of all.
    """
    settings, path = row_settings(name, base), row_path(name, base, folder, network_changes)
    sections = _sections(name, settings, network_changes)
    place = RunFolder(path, folder / CHECKPOINTS_FOLDER / path.stem, identity_of(sections))
    with place.held() as held:
        if held.record is not None:
            return held.record
        places = _Places(folder / PHASE1_FOLDER, held.checkpoints)
        return held.finish(_run(name, settings, sections.get("network"), places, data_dir), {})


def _run(name: str, settings: Settings, network: BaselineConfig | None, places: _Places, data_dir: Path) -> Row:
    start = datetime.now(UTC).isoformat(timespec="seconds")
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    watch = Stopwatch()
    fitted = _fit(variant(name), prepared, settings, network, places)
    took = watch.total()
    seconds = {"seconds": took.wall, "cpu_seconds": took.cpu + fitted.earlier_cpu_seconds}
    return {"variant": variant(name).record(), "start": start, **_row(prepared, fitted), **seconds}


def _sections(name: str, settings: Settings, network_changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configs that a variant's figures depend on: counts have no seed, networks no phases."""
    chosen = variant(name)
    if chosen.kind in ("model", "control"):
        return {part: getattr(settings, part) for part in ("data", "model", "phase1", "phase2", "run")}
    if chosen.kind == "network":
        network = baseline_config(name, embed_dim=settings.model.embed_dim, **network_changes)
        return {"data": settings.data, "network": network, "run": settings.run}
    return {"data": settings.data}


def _fit(
    chosen: LeaderboardVariant, prepared: Prepared, settings: Settings, network: BaselineConfig | None, places: _Places
) -> _Fitted:
    train, validation = prepared.train_tokens, prepared.validation_tokens
    if chosen.kind in SEEDLESS:
        nats, details = BASELINES[chosen.name].builder(train, validation, len(prepared.embeddings.matrix))
        return _Fitted(nats, 0, details)
    if network is not None:
        seed = settings.run.seed
        result = train_baseline(prepared.model, train, validation, network, seed, places.checkpoints)
        return _Fitted(result.nats, result.trainable_parameters, result.record(), result.earlier.cpu)
    return _fit_model(chosen, prepared, settings, places)


def _fit_model(chosen: LeaderboardVariant, prepared: Prepared, settings: Settings, places: _Places) -> _Fitted:
    model, seed = prepared.model, settings.run.seed
    phase1 = kept_phase1(prepared, settings.phase1, places.phase1)
    read = changed_contexts(phase1.contexts, chosen.contexts, seed)
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
