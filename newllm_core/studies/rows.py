"""A row of the leaderboard: one variant with one seed, on the same text, embeddings and head as all others."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import BASELINES
from newllm_core.baselines.train import train_baseline
from newllm_core.config.language import Settings
from newllm_core.data import token_byte_lengths
from newllm_core.experiment.measure import describe, per_conversation_sums
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.metrics.prediction import NATS_PER_BIT, perplexity
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import read_json
from newllm_core.runs.progress import Stopwatch
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.studies.phase1_rows import kept_phase1
from newllm_core.studies.sweep import Point
from newllm_core.studies.variants import LeaderboardVariant
from newllm_core.training.phase1 import Phase1Result
from newllm_core.training.phase2 import train_phase2

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


def read_rows(folder: Path) -> list[Row]:
    """Every row that was kept there. Raises RunError for a file that is not JSON."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def run_row(
    point: Point, network: BaselineConfig | None, phase1_folder: Path, checkpoints: CheckpointPlace, data_dir: Path
) -> Row:
    """Prepare, train and judge: the figures of one row, without what says which run it is.

    ``seconds`` are those of the session that finished it, ``cpu_seconds`` those of all.

    Args:
        network: of a baseline that is trained.
        phase1_folder: where every Phase 1 is kept, and found again.
        checkpoints: of this row's readout or network.
    """
    start, settings = datetime.now(UTC).isoformat(timespec="seconds"), point.settings
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    train, validation, watch = prepared.train_tokens, prepared.validation_tokens, Stopwatch()
    if network is not None:
        result = train_baseline(prepared.model, train, validation, network, settings.run.seed, checkpoints)
        fitted = _Fitted(result.nats, result.trainable_parameters, result.record(), result.earlier.cpu)
    elif isinstance(point.variant, LeaderboardVariant) and point.variant.kind in ("model", "control"):
        fitted = _fit_model(point.variant.contexts, prepared, settings, phase1_folder, checkpoints)
    else:
        nats, details = BASELINES[point.variant.name].builder(train, validation, len(prepared.embeddings.matrix))
        fitted = _Fitted(nats, 0, details)
    took = watch.total()
    seconds = {"seconds": took.wall, "cpu_seconds": took.cpu + fitted.earlier_cpu_seconds}
    return {"variant": point.variant.record(), "start": start, **_figures(prepared, fitted), **seconds}


def _fit_model(
    contexts: str, prepared: Prepared, settings: Settings, phase1_folder: Path, checkpoints: CheckpointPlace
) -> _Fitted:
    model, seed = prepared.model, settings.run.seed
    phase1 = kept_phase1(prepared, settings.phase1, phase1_folder)
    read = changed_contexts(phase1.contexts, contexts, seed)
    phase2 = train_phase2(
        model, read, prepared.train_tokens, prepared.validation_tokens, settings.phase2, seed, checkpoints
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


def _figures(prepared: Prepared, fitted: _Fitted) -> Row:
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
