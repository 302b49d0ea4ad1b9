"""One experiment: data → Phase 1 → Phase 2 → record.

Each phase leaves its result in a folder of its own and is not run again while that is there. Both leave checkpoints,
within epochs too, in a hundredth of their time, so an interrupted experiment goes on where it stopped.
Experiments that differ in Phase 2 alone share Phase 1.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from newllm_core.config.language import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig, Settings
from newllm_core.config.schema import config_hash, from_mapping
from newllm_core.experiment.measure import describe, measure_phase1, phase2_record, validation_spectrum
from newllm_core.experiment.phase1_cache import CONTEXT_WEIGHTS, phase1_in_folder
from newllm_core.experiment.prepare import Prepared, check_phase1, prepare
from newllm_core.losses import user_loss_fingerprint
from newllm_core.runs.checkpoint import CheckpointPlace, discard_checkpoint
from newllm_core.runs.files import DATA_DIR, load_tensors, read_json, save_tensors, write_json
from newllm_core.runs.folder import RECORD_NAME, is_complete, refuse_other_config
from newllm_core.runs.progress import Stopwatch
from newllm_core.training.phase1 import Phase1Result, train_phase1
from newllm_core.training.phase2 import set_output_bias, train_phase2

logger = logging.getLogger("newllm")

TOKEN_WEIGHTS = "token_block.safetensors"
PHASE2_CHECKPOINT = "phase2_checkpoint"


def phase1_folder_name(data: DataConfig, model: ModelConfig, phase1: Phase1Config, run: RunConfig) -> str:
    """A readable name that no other configuration of Phase 1 shares."""
    objective = "" if phase1.objective == "cvfp" else f"{phase1.objective}-"
    loss = f"{objective}{phase1.diversity_algorithm}-w{phase1.dist_reg_weight:g}"
    trained = loss if phase1.max_iterations else "untrained"
    return (
        f"{data.corpus}-{data.embeddings}-{data.num_samples}s-C{model.context_dim}-{trained}"
        f"-seed{run.seed}-{config_hash(data, model, phase1, run)}"
    )


def run_folder_name(settings: Settings) -> str:
    """The same for a whole experiment."""
    phase1 = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    return f"{phase1}-{config_hash(settings.phase2)}"


def run_phase1(prepared: Prepared, config: Phase1Config, phase1_dir: Path) -> tuple[Phase1Result, dict[str, Any]]:
    """Train, measure and save Phase 1, or load it from ``phase1_dir`` when it is there.

    The model of ``prepared`` carries the kept weights afterwards. Returns the contexts, and the record.
    Raises RunError when the folder holds another configuration or a damaged file.
    """

    def train(checkpoints: CheckpointPlace) -> tuple[Phase1Result, dict[str, Any]]:
        check_phase1(prepared, config, phase1_dir)
        watch = Stopwatch()
        before = validation_spectrum(prepared, config)
        result = train_phase1(
            prepared.model, prepared.train_tokens, prepared.validation_tokens, config, prepared.run.seed, checkpoints
        )
        assert result.history is not None
        figures = measure_phase1(prepared, config, result, result.history)
        figures["spectrum"]["validation_before"] = before
        return result, {**figures, "seconds": watch.total().wall + result.history.earlier.wall}

    configs = configs_record(prepared.data, prepared.model.config, config, prepared.run)
    return phase1_in_folder(prepared, configs, phase1_dir, train)


def phase1_only_record(prepared: Prepared, phase1_record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record before Phase 2, for reports and plots of Phase 1 alone."""
    figures = {name: value for name, value in phase1_record.items() if name != "config"}
    return {**describe(prepared), "config": phase1_record["config"], "phase1": figures}


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
) -> dict[str, Any]:
    """Data → Phase 1 → Phase 2 → the record that `run.json` holds (design, section 5); its `seconds` are those of the
    session that finished it.

    A complete folder is read, not run again; a partial one goes on after the last checkpoint of either phase.

    Args:
        run_dir: of this run; gets `run.json` and the TokenBlock's weights.
        run: seed, threads, device.
        data_dir: where token cache and validation text are kept.
        phase1_dir: where Phase 1 is kept; runs that differ in Phase 2 alone can share one. None: inside ``run_dir``.

    Raises ConfigError, DataError, RunError (another configuration in the folder) or NotFiniteError.
    """
    configs = configs_record(data, model, phase1, run, phase2)
    if is_complete(run_dir):
        record: dict[str, Any] = read_json(run_dir / RECORD_NAME)
        refuse_other_config(record, configs, run_dir)
        discard_checkpoint(run_dir / PHASE2_CHECKPOINT)  # of an interruption just before it was discarded
        logger.info("complete already: %s", run_dir / RECORD_NAME)
        return record
    start, began = datetime.now(UTC), time.perf_counter()
    prepared = prepare(data, model, run, data_dir)
    contexts, phase1_record = run_phase1(prepared, phase1, phase1_dir or run_dir / "phase1")
    checkpoints = CheckpointPlace(run_dir / PHASE2_CHECKPOINT, configs)
    result = train_phase2(
        prepared.model, contexts, prepared.train_tokens, prepared.validation_tokens, phase2, run.seed, checkpoints
    )
    record = {
        **describe(prepared),
        "config": configs,
        "phase1": {name: value for name, value in phase1_record.items() if name != "config"},
        "phase2": phase2_record(prepared, result),
        "start": start.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - began,
    }
    trained = {name: value for name, value in prepared.model.named_parameters() if not name.startswith("context_block")}
    if model.freeze_embedding:
        del trained["embedding"]
    save_tensors(run_dir / TOKEN_WEIGHTS, {name: value for name, value in trained.items() if "embed_norm" not in name})
    write_json(run_dir / RECORD_NAME, record)
    discard_checkpoint(checkpoints.folder)
    return record


def load_model(record: Mapping[str, Any], run_dir: Path, phase1_dir: Path, data_dir: Path = DATA_DIR) -> Prepared:
    """The trained model of a complete run, with its tokens and embeddings."""
    settings = settings_of(record)
    prepared = prepare(settings.data, settings.model, settings.run, data_dir)
    prepared.model.context_block.load_state_dict(load_tensors(phase1_dir / CONTEXT_WEIGHTS))
    prepared.model.load_state_dict(load_tensors(run_dir / TOKEN_WEIGHTS), strict=False)
    set_output_bias(prepared.model, prepared.train_tokens, settings.phase2)
    return prepared


def settings_of(record: Mapping[str, Any]) -> Settings:
    """The configuration that a record was made with."""
    sections = {spec.name: spec.type for spec in dataclasses.fields(Settings) if spec.name in record["config"]}
    return Settings(**{name: from_mapping(kind, record["config"][name]) for name, kind in sections.items()})  # type: ignore[arg-type]


def configs_record(
    data: DataConfig, model: ModelConfig, phase1: Phase1Config, run: RunConfig, phase2: Phase2Config | None = None
) -> dict[str, Any]:
    """The configs as JSON gives them back, so that a stored one compares equal.

    A user's loss is part of the configuration by its source, since its name alone does not say what it computes.
    """
    parts = {"data": asdict(data), "model": asdict(model), "phase1": asdict(phase1), "run": asdict(run)}
    fingerprint = user_loss_fingerprint(phase1.diversity_algorithm)
    if fingerprint is not None:
        parts["user_loss"] = {"source_sha256": fingerprint}
    if phase2 is not None:
        parts["phase2"] = asdict(phase2)
    stored: dict[str, Any] = json.loads(json.dumps(parts))
    return stored
