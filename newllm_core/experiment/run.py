"""One experiment: data → Phase 1 → Phase 2 → record.

Each phase leaves its result in a folder of its own and is not run again while that is there. Both leave checkpoints,
within epochs too, in a hundredth of their time, so an interrupted experiment goes on where it stopped.
Experiments that differ in Phase 2 alone share Phase 1.
"""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig, Settings
from newllm_core.experiment.folder_names import identity_of, run_identity, settings_of
from newllm_core.experiment.measure import describe, measure_phase1, phase2_record, validation_spectrum
from newllm_core.experiment.phase1_cache import CONTEXT_WEIGHTS, PHASE1_RECORD, phase1_files, phase1_in_folder
from newllm_core.experiment.prepare import Prepared, check_phase1, prepare
from newllm_core.experiment.record_keys import check_run_record
from newllm_core.head.continuous_cache import configured_cache
from newllm_core.head.cross_entropy import choose_head
from newllm_core.model import NewLLM
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import DATA_DIR, load_tensors, read_json
from newllm_core.runs.folder import RECORD_NAME, HeldRun, Record, RunFolder
from newllm_core.runs.host_memory import memory_errors_named
from newllm_core.runs.identity import refuse_other_run
from newllm_core.runs.reproducibility import resolve_device
from newllm_core.runs.world import current_world
from newllm_core.training.phase1 import Phase1Result, train_phase1
from newllm_core.training.phase2 import set_counts, train_phase2

logger = logging.getLogger("newllm")

TOKEN_WEIGHTS = "token_block.safetensors"
PHASE2_CHECKPOINT = "phase2_checkpoint"
MODEL_FOLDER = "model"


def run_phase1(prepared: Prepared, config: Phase1Config, phase1_dir: Path) -> tuple[Phase1Result, dict[str, Any]]:
    """Train, measure and save Phase 1, or load it from ``phase1_dir`` when it is there.

    The model of ``prepared`` carries the kept weights afterwards. Returns the contexts, and the record.
    Raises RunError when the folder holds another configuration or a damaged file.
    """

    world = current_world()

    def train(checkpoints: CheckpointPlace) -> tuple[Phase1Result, dict[str, Any]]:
        check_phase1(prepared, config, phase1_dir)
        before = world.from_first(lambda: validation_spectrum(prepared, config))
        result = train_phase1(
            prepared.model, prepared.train_tokens, prepared.validation_tokens, config, prepared.run.seed, checkpoints,
            prepared.selection_tokens,
        )  # fmt: skip
        history = result.history
        assert history is not None
        figures = world.from_first(lambda: measure_phase1(prepared, config, result, history))
        figures["spectrum"]["validation_before"] = before
        return result, figures

    sections = {"data": prepared.data, "model": prepared.model.config, "phase1": config, "run": prepared.run}
    return phase1_in_folder(prepared, identity_of(sections), phase1_dir, train)


def phase1_only_record(prepared: Prepared, phase1_record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record before Phase 2, for reports and plots of Phase 1 alone."""
    identity = {name: phase1_record[name] for name in ("config", "read")}
    return {**identity, **describe(prepared), "phase1": _phase1_figures(phase1_record)}


def _phase1_figures(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of Phase 1; the rest stands elsewhere in it."""
    return {name: value for name, value in record.items() if name not in ("config", "read", "cpu_seconds")}


def experiment_place(settings: Settings, run_dir: Path, phase1_dir: Path | None = None) -> RunFolder:
    """A whole experiment as it is kept in ``run_dir``, its Phase 1 in ``phase1_dir``; None: inside ``run_dir``."""
    files = run_dir / TOKEN_WEIGHTS, *phase1_files(phase1_dir or run_dir / "phase1")
    identity = run_identity(settings)
    copy_to = settings.run.copy_to
    return RunFolder(run_dir / RECORD_NAME, run_dir / PHASE2_CHECKPOINT, identity, check_run_record, files, copy_to)


def run_phase1_only(settings: Settings, run_dir: Path, phase1_dir: Path, data_dir: Path) -> Record:
    """A run that ends after Phase 1; its record is kept in ``run_dir``, and has no `phase2`."""
    with phase1_only_place(settings, run_dir, phase1_dir).held() as held:
        if held.record is not None:
            return held.record
        prepared = prepare(settings.data, settings.model, settings.run, data_dir)
        return held.keep(phase1_only_record(prepared, run_phase1(prepared, settings.phase1, phase1_dir)[1]))


def phase1_only_place(settings: Settings, run_dir: Path, phase1_dir: Path) -> RunFolder:
    """The same as it is kept."""
    identity = run_identity(settings, phase1_only=True)
    record, checkpoint, copy_to = run_dir / RECORD_NAME, run_dir / PHASE2_CHECKPOINT, settings.run.copy_to
    return RunFolder(record, checkpoint, identity, files=phase1_files(phase1_dir), copy_to=copy_to)


def run_experiment(
    data: DataConfig,
    model: ModelConfig,
    phase1: Phase1Config,
    phase2: Phase2Config,
    run_dir: Path,
    *,
    run: RunConfig = RunConfig(),  # noqa: B008  frozen
    data_dir: Path = DATA_DIR,
    phase1_dir: Path | None = None,
    save_model: bool = False,
) -> dict[str, Any]:
    """Data → Phase 1 → Phase 2 → the record that `run.json` holds (docs/method.md, section 10); its `seconds` are
    those of the session that finished it.

    A complete folder is read, not run again; a partial one goes on after the last checkpoint of either phase.

    Args:
        run_dir: of this run; gets `run.json` and the TokenBlock's weights.
        run: seed, threads, device.
        data_dir: where token cache and validation text are kept.
        phase1_dir: where Phase 1 is kept; runs that differ in Phase 2 alone can share one. None: inside ``run_dir``.
        save_model: also keep the whole model in ``run_dir / "model"``, where `NewLLM.from_pretrained` reads it alone.
            Only when asked: the embedding matrix, 77 MB of Whisper's, would stand in every run; its own weights do
            anyway.

    Raises ConfigError, DataError, RunError (another configuration in the folder) or NotFiniteError.
    """
    settings = Settings(data=data, model=model, phase1=phase1, phase2=phase2, run=run)
    place = experiment_place(settings, run_dir, phase1_dir)
    phase1_dir = phase1_dir or run_dir / "phase1"
    with place.held() as held:
        if held.record is not None:
            logger.info("complete already: %s", place.record_path)
        record = held.record or _run(held, settings, data_dir, phase1_dir)
    if save_model and current_world().is_first:
        with memory_errors_named(run_dir):
            trained = load_model(record, run_dir, phase1_dir, data_dir)
            trained.model.save_pretrained(run_dir / MODEL_FOLDER, record=record)
    return record


def _run(held: HeldRun, settings: Settings, data_dir: Path, phase1_dir: Path) -> Record:
    start, began = datetime.now(UTC), time.perf_counter()
    choose_head(settings.phase2.head, resolve_device(settings.run.device))  # refused now, not after Phase 1
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    contexts, phase1_record = run_phase1(prepared, settings.phase1, phase1_dir)
    train, validation = prepared.train_tokens, prepared.validation_tokens
    result = train_phase2(
        prepared.model, contexts, train, validation, settings.phase2, settings.run.seed, held.checkpoints,
        prepared.selection_tokens,
    )  # fmt: skip
    figures = {
        **describe(prepared),
        "phase1": _phase1_figures(phase1_record),
        "phase2": current_world().from_first(lambda: phase2_record(prepared, result)),
        "start": start.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - began,
    }
    return held.finish(figures, {TOKEN_WEIGHTS: _trained_in_phase2(prepared.model)})


def _trained_in_phase2(model: NewLLM) -> dict[str, Tensor]:
    trained = {name: value for name, value in model.named_parameters() if not name.startswith("context_block")}
    if model.config.freeze_embedding:
        del trained["embedding"]
    return {name: value for name, value in trained.items() if "embed_norm" not in name}


def load_model(record: Mapping[str, Any], run_dir: Path, phase1_dir: Path, data_dir: Path = DATA_DIR) -> Prepared:
    """The trained model of a complete run, with its tokens and embeddings.

    Raises RunError when what it was trained on has changed, or ``phase1_dir`` holds another Phase 1 than the run's.
    """
    settings = settings_of(record)
    refuse_other_run(record, run_identity(settings), run_dir)
    refuse_other_run(read_json(phase1_dir / PHASE1_RECORD), run_identity(settings, phase1_only=True), phase1_dir)
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    prepared.model.context_block.load_state_dict(load_tensors(phase1_dir / CONTEXT_WEIGHTS))
    prepared.model.load_state_dict(load_tensors(run_dir / TOKEN_WEIGHTS), strict=False)
    set_counts(prepared.model, prepared.train_tokens, settings.phase2)
    prepared.model.continuous_cache = configured_cache(settings.phase2)
    return prepared
