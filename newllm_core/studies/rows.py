"""A row of the leaderboard: one variant with one seed, on the same text, embeddings and head as all others."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import BASELINES
from newllm_core.comparison.leaderboard import NOTHING_CHOSEN
from newllm_core.config.hyperparameters import Phase1Config, Settings
from newllm_core.config.schema import config_hash
from newllm_core.data import corpus_key, token_byte_lengths
from newllm_core.experiment.folder_names import identity_of
from newllm_core.experiment.measure import describe, per_conversation_sums
from newllm_core.experiment.phase1_cache import phase1_in_folder
from newllm_core.experiment.prepare import Prepared, check_phase1, prepare
from newllm_core.metrics.forgetting import (
    FORGETTING_TOKENS,
    MIN_FORGETTING_TOKENS,
    contraction_rate,
    forgetting_horizon,
)
from newllm_core.metrics.prediction import bits_per_byte, perplexity
from newllm_core.metrics.rank import stream_rank
from newllm_core.model import StreamEmbeddings
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import read_json
from newllm_core.runs.progress import Stopwatch
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.runs.world import current_world
from newllm_core.studies.fitted import Fitted
from newllm_core.studies.kept_networks import fit_network
from newllm_core.studies.sweep import Point, Record
from newllm_core.studies.variants import LeaderboardVariant
from newllm_core.training.phase1 import Phase1Result, train_phase1
from newllm_core.training.phase2 import train_phase2

PHASE1_FOLDER = "phase1"  # beside the rows: weights that rows have in common
# In the name of its copies: it draws other numbers than an experiment's of the same configuration, and keeps others.
ROW_PHASE1_KIND = "row-phase1"
NETWORKS_FOLDER = "networks"


def read_rows(folder: Path) -> list[Record]:
    """Every row that was kept there. Raises RunError for a file that is not JSON."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def run_row(
    point: Point, network: BaselineConfig | None, folder: Path, checkpoints: CheckpointPlace, data_dir: Path
) -> Record:
    """Prepare, train and judge: the figures of one row, without what says which run it is.

    ``seconds`` are those of the session that finished it, ``cpu_seconds`` those of all.

    Args:
        network: of a baseline that is trained.
        folder: of the rows, beside which what several have in common is kept, and found again.
        checkpoints: of this row's readout.
    """
    start, settings = datetime.now(UTC).isoformat(timespec="seconds"), point.settings
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    train, validation, watch = prepared.train_tokens, prepared.validation_tokens, Stopwatch()
    if network is not None:
        fitted = fit_network(prepared, network, folder / NETWORKS_FOLDER)
    elif isinstance(point.variant, LeaderboardVariant) and point.variant.kind in ("model", "control"):
        fitted = _fit_model(point.variant.contexts, prepared, settings, folder / PHASE1_FOLDER, checkpoints)
    else:
        build, size = BASELINES[point.variant.name].builder, len(prepared.embeddings.matrix)
        nats, details = current_world().from_first(lambda: build(train, validation, size))
        fitted = Fitted(nats, 0, details)
    took = watch.total()
    seconds = {"seconds": took.wall, "cpu_seconds": took.cpu + fitted.earlier_cpu_seconds}
    row = {"variant": point.variant.record(), "start": start, **_figures(prepared, fitted), **seconds}
    return {**row, "chosen_on": chosen_on(point.variant.kind, row["chosen_on"])}


def chosen_on(kind: str, text: str) -> str:
    """What a row says: counts and pretrained models choose nothing on a text that is held out."""
    return NOTHING_CHOSEN if kind in ("counts", "pretrained") else text


def _fit_model(
    contexts: str, prepared: Prepared, settings: Settings, phase1_folder: Path, checkpoints: CheckpointPlace
) -> Fitted:
    model, seed = prepared.model, settings.run.seed
    own, figures, phase1_seconds = _phase1(prepared, settings.phase1, phase1_folder)
    read = changed_contexts(own, contexts, seed)
    phase2 = train_phase2(
        model, read, prepared.train_tokens, prepared.validation_tokens, settings.phase2, seed, checkpoints,
        prepared.selection_tokens,
    )  # fmt: skip
    counts = model.parameter_counts()
    trained = counts["trained_in_phase2"] + (counts["trained_in_phase1"] if settings.phase1.max_iterations else 0)
    details = {
        **figures,
        "best_epoch": phase2.best_epoch,
        "epochs": [epoch.validation_perplexity for epoch in phase2.epochs],
        **({"counted_ngrams": model.ngrams.counts.num_ngrams} if model.ngrams is not None else {}),
    }
    return Fitted(phase2.validation.nats.double(), trained, details, phase1_seconds + phase2.earlier.cpu)


def _phase1(prepared: Prepared, config: Phase1Config, folder: Path) -> tuple[Phase1Result, dict[str, Any], float]:
    """Contexts, figures, and the CPU seconds that training took before this call: a row's cost counts both phases.

    Trained once in ``folder`` for all rows that differ in Phase 2 alone, or taken from there, finished or half-way; the
    contexts are the same to the last bit.

    Raises NotFiniteError from training, and RunError where a file was altered or is another configuration's.
    """

    def train(checkpoints: CheckpointPlace) -> tuple[Phase1Result, dict[str, Any]]:
        check_phase1(prepared, config, place)
        seed = prepared.run.seed
        # Losses that draw would else depend on how many numbers the weights of this row's readout took.
        # The words are part of the figures of committed rows.
        torch.manual_seed(derived_generator("phase 1 of contenders", seed).initial_seed())
        result = train_phase1(
            prepared.model, prepared.train_tokens, prepared.validation_tokens, config, seed, checkpoints,
            prepared.selection_tokens,
        )  # fmt: skip
        return result, {"figures": _context_figures(prepared, result, config)}

    model_part = prepared.model.config.phase1_part()
    sections = {"data": prepared.data, "model": model_part, "phase1": config, "run": prepared.run}
    watch = Stopwatch()
    place = folder / f"{corpus_key(prepared.data)}-{config_hash(*sections.values())}"
    contexts, record = phase1_in_folder(prepared, identity_of(sections), place, train, ROW_PHASE1_KIND)
    earlier = max(0.0, record["cpu_seconds"] - watch.total().cpu)  # what this call took is counted by the caller
    return contexts, record["figures"], earlier


def _context_figures(prepared: Prepared, result: Phase1Result, config: Phase1Config) -> dict[str, Any]:
    """Of the validation text: effective rank, and how the block forgets."""
    history = result.history
    assert history is not None  # it has just been trained
    few = StreamEmbeddings(prepared.model, prepared.validation_tokens)[0:FORGETTING_TOKENS]
    block = prepared.model.context_block
    settles = len(few) >= MIN_FORGETTING_TOKENS
    rank = stream_rank(result.validation_contexts[:, -1], config.effective_rank_tokens)
    return {
        "validation_rank": rank.record(),
        "contraction_rate": contraction_rate(block, few) if settles else None,
        "forgetting_horizon": forgetting_horizon(block, few).horizon if settles else None,
        "forgetting_tokens": len(few),
        "iterations_kept": history.best_iteration,
        "phase1_seconds": history.seconds,
    }


def changed_contexts(phase1: Phase1Result, contexts: str, seed: int) -> Phase1Result:
    """The control: the same contexts, none (zeros), or each stream's own in a random order."""
    if contexts == "own":
        return phase1
    streams = {"train": phase1.train_contexts, "validation": phase1.validation_contexts}
    if phase1.selection_contexts is not None:
        streams["selection"] = phase1.selection_contexts
    if contexts == "none":
        changed = {name: torch.zeros_like(stream) for name, stream in streams.items()}
    else:
        changed = {
            name: stream[torch.randperm(len(stream), generator=derived_generator("shuffled contexts", name, seed))]
            for name, stream in streams.items()
        }
    return Phase1Result(changed["train"], changed["validation"], phase1.history, changed.get("selection"))


def _figures(prepared: Prepared, fitted: Fitted) -> Record:
    stream = prepared.token_data.validation
    num_bytes = int(token_byte_lengths(stream.vocabulary)[stream.tokens[1:]].sum())
    total = float(fitted.nats.double().sum())
    described = describe(prepared)
    del described["parameters"]  # of the whole model, embeddings included; the row has what was trained
    return {
        **described,
        "validation_perplexity": perplexity(total / len(fitted.nats)),
        "bits_per_byte": bits_per_byte(total, num_bytes),
        "validation_bytes": num_bytes,
        "validation_conversations": per_conversation_sums(fitted.nats, stream.boundaries),
        "trainable_parameters": fitted.trainable_parameters,
        "details": fitted.details,
    }
