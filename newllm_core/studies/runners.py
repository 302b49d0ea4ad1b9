"""What the context is worth: the model, controls and baselines on identical text, one row a run.

All see the same tokens, frozen embeddings, tied head and validation text, and are judged token by token. A finished row
is read, not run again, an interrupted one goes on from its last checkpoint, and a Phase 1 that several rows have in
common is trained once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.baselines.config import BaselineConfig, baseline_config
from newllm_core.baselines.gpt2 import gpt2_nats
from newllm_core.baselines.ngrams import fit_kneser_ney
from newllm_core.baselines.train import train_baseline
from newllm_core.config.language import Settings
from newllm_core.config.schema import ConfigError, changed, config_hash
from newllm_core.data import token_byte_lengths
from newllm_core.experiment.measure import describe, per_conversation_sums
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.metrics.prediction import NATS_PER_BIT, perplexity
from newllm_core.runs.checkpoint import CheckpointPlace, discard_checkpoint
from newllm_core.runs.files import DATA_DIR, RESULTS_DIR, locked, read_json, write_json
from newllm_core.runs.folder import refuse_other_config
from newllm_core.runs.progress import Stopwatch, progress_bar
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.studies.phase1_rows import kept_phase1
from newllm_core.studies.variants import Contender, contender
from newllm_core.training.phase1 import Phase1Result
from newllm_core.training.phase2 import train_phase2

CONTENDERS_DIR = RESULTS_DIR / "contenders"
PHASE1_FOLDER = "phase1"  # beside the rows: weights that rows have in common
CHECKPOINTS_FOLDER = "checkpoints"  # beside them too: of rows that were interrupted
# What makes a model another one, and not a larger or shorter trained one.
_NOTES_MODEL = (
    ("model", "weight_std"), ("model", "initial_exponent"), ("model", "time_scales"), ("model", "readout"),
    ("model", "token_gate"), ("model", "adapter_rank"), ("model", "logit_scale"), ("phase1", "objective"),
    ("phase2", "unigram_bias"), ("phase2", "dropout"), ("phase2", "weight_decay"), ("phase2", "schedule"),
    ("phase2", "cache_weight"),
)  # fmt: skip
SEEDLESS = ("unigram", "kneser-ney", "pretrained")  # kinds whose figures no seed touches
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


def run_contenders(
    names: Sequence[str],
    base: Settings,
    seeds: Sequence[int],
    folder: Path = CONTENDERS_DIR,
    *,
    network_changes: Mapping[str, Any] | None = None,
    data_dir: Path = DATA_DIR,
) -> list[Row]:
    """Every contender with every seed; what has no seed (counts) once. ``network_changes``: of every BaselineConfig.

    Raises ConfigError for an unknown name or an impossible value before anything is run.
    """
    points = points_of(names, base, seeds)
    for point in points:
        row_path(*point, folder, network_changes or {})  # refuses what is impossible
    if network_changes:
        baseline_config("gru", **network_changes)  # also where no network takes part
    rows = []
    bar = progress_bar(points, desc="contenders", unit="run")
    for name, settings in bar:
        bar.set_postfix_str(f"{name}, seed {settings.run.seed}")
        rows.append(run_contender(name, settings, folder, network_changes or {}, data_dir))
    return rows


def read_rows(folder: Path) -> list[Row]:
    """Every row that was kept there. Raises RunError for a file that is not JSON."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def points_of(names: Sequence[str], base: Settings, seeds: Sequence[int]) -> list[tuple[str, Settings]]:
    """Every contender with every seed, and counts with the first alone.

    Raises ConfigError for an unknown name, and for a ``base`` that is not the notes' model: contenders are changes to
    that.
    """
    plain = Settings()
    for part, field_name in _NOTES_MODEL:
        given, expected = getattr(getattr(base, part), field_name), getattr(getattr(plain, part), field_name)
        if given != expected:
            raise ConfigError(
                f"contenders are changes to the notes' model: expected {field_name}={expected!r}, given {given!r} "
                "(the better model is the contender 'best')"
            )
    return [
        (name, changed(base, {"seed": seed}))
        for name in names
        for seed in (seeds[:1] if contender(name).kind in SEEDLESS else seeds)
    ]


def contender_settings(name: str, base: Settings) -> Settings:
    """``base`` with the contender's own changes."""
    settings = base
    for parameter, value in contender(name).changes.items():
        settings = changed(settings, {parameter: value})
    return settings


def row_path(name: str, base: Settings, folder: Path, network_changes: Mapping[str, Any]) -> Path:
    """Where the row is or will be kept."""
    settings = contender_settings(name, base)
    sections = _sections(name, settings, network_changes)
    seed = f"-seed{settings.run.seed}" if "run" in sections else ""
    return folder / f"{name}-{settings.data.num_samples}s{seed}-{config_hash(*sections.values())}.json"


def run_contender(
    name: str, base: Settings, folder: Path, network_changes: Mapping[str, Any], data_dir: Path = DATA_DIR
) -> Row:
    """One row: read when it is there, else prepared, trained, judged and written.

    Of two processes that want the same one, the second waits and reads it. ``seconds`` of the row are those of the
    session that finished it, ``cpu_seconds`` those of all.
    """
    settings, path = contender_settings(name, base), row_path(name, base, folder, network_changes)
    sections = _sections(name, settings, network_changes)
    configs = json.loads(json.dumps({section: asdict(config) for section, config in sections.items()}))
    with locked(folder / CHECKPOINTS_FOLDER / f"{path.stem}.lock"):
        # Two controls can have the same configuration and read other contexts.
        place = CheckpointPlace(folder / CHECKPOINTS_FOLDER / path.stem, {**configs, "contender": {"name": name}})
        if path.is_file():
            row: Row = read_json(path)
            refuse_other_config(row, configs, path)
        else:
            row = _run(
                name, settings, configs, sections.get("network"), _Places(folder / PHASE1_FOLDER, place), data_dir
            )
            write_json(path, row)
        discard_checkpoint(place.folder)
        return row


def _run(
    name: str, settings: Settings, configs: dict[str, Any], network: BaselineConfig | None, places: _Places,
    data_dir: Path,
) -> Row:  # fmt: skip
    start = datetime.now(UTC).isoformat(timespec="seconds")
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    watch = Stopwatch()
    fitted = _fit(contender(name), prepared, settings, network, places)
    took = watch.total()
    seconds = {"seconds": took.wall, "cpu_seconds": took.cpu + fitted.earlier_cpu_seconds}
    return {"name": name, "start": start, **_row(prepared, fitted), **seconds, "config": configs}


def _sections(name: str, settings: Settings, network_changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configs that a contender's figures depend on: counts have no seed, networks no phases."""
    chosen = contender(name)
    if chosen.kind == "model":
        return {part: getattr(settings, part) for part in ("data", "model", "phase1", "phase2", "run")}
    if chosen.network is not None:
        network = baseline_config(chosen.network, embed_dim=settings.model.embed_dim, **network_changes)
        return {"data": settings.data, "network": network, "run": settings.run}
    return {"data": settings.data}


def _fit(
    chosen: Contender, prepared: Prepared, settings: Settings, network: BaselineConfig | None, places: _Places
) -> _Fitted:
    vocab_size = len(prepared.embeddings.matrix)
    train, validation = prepared.train_tokens, prepared.validation_tokens
    if chosen.kind == "unigram":
        unigram = fit_unigram(train.cpu(), vocab_size)
        nats = -unigram.log_probabilities[validation[1:].cpu()]
        return _Fitted(nats, 0, {"added_count": unigram.added})
    if chosen.kind == "kneser-ney":
        counts = fit_kneser_ney(train.cpu(), vocab_size)
        return _Fitted(-counts.log_probabilities(validation.cpu()), 0, {"discount": counts.discount})
    if chosen.kind == "pretrained":
        return _Fitted(gpt2_nats(validation).cpu(), 0, {})
    if network is not None:
        seed = settings.run.seed
        result = train_baseline(prepared.model, train, validation, network, seed, places.checkpoints)
        return _Fitted(result.nats, result.trainable_parameters, result.record(), result.earlier.cpu)
    return _fit_model(chosen, prepared, settings, places)


def _fit_model(chosen: Contender, prepared: Prepared, settings: Settings, places: _Places) -> _Fitted:
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
