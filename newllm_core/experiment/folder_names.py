"""Which experiment it is: identity, names of folders, and the configuration that a record was made with."""

from collections.abc import Mapping
from typing import Any

from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, RunConfig, Settings
from newllm_core.config.schema import config_hash, config_values, from_sections
from newllm_core.data import content_read, corpus_key
from newllm_core.data.hub_model import folder_name
from newllm_core.losses import user_loss_fingerprint
from newllm_core.runs.identity import Identity

PHASE1_SECTIONS = ("data", "model", "phase1", "run")
SECTIONS = (*PHASE1_SECTIONS, "phase2")


def identity_of(sections: Mapping[str, Any]) -> Identity:
    """Of a run with these configs by section, "data" among them, and of what they read now.

    A user's loss is part of the configuration by its source, since its name alone does not say what it computes. Raises
    DataError where what they read is missing.
    """
    config = {name: config_values(section) for name, section in sections.items()}
    loss = user_loss_fingerprint(sections["phase1"].diversity_algorithm) if "phase1" in sections else None
    if loss is not None:
        config["user_loss"] = {"source_sha256": loss}
    return Identity(config, content_read(sections["data"]))


def run_identity(settings: Settings, *, phase1_only: bool = False) -> Identity:
    """Of a whole experiment, or of its Phase 1."""
    return identity_of({name: getattr(settings, name) for name in (PHASE1_SECTIONS if phase1_only else SECTIONS)})


def phase1_folder_name(data: DataConfig, model: ModelConfig, phase1: Phase1Config, run: RunConfig) -> str:
    """A readable name that no other Phase 1 shares. Raises DataError for a conversations file that is missing."""
    objective = "" if phase1.objective == "cvfp" else f"{phase1.objective}-"
    loss = f"{objective}{phase1.diversity_algorithm}-w{phase1.dist_reg_weight:g}"
    trained = loss if phase1.max_iterations else "untrained"
    return (
        f"{corpus_key(data)}-{folder_name(data.embeddings)}-{data.num_samples}s-C{model.context_dim}-{trained}"
        f"-seed{run.seed}-{config_hash(data, model, phase1, run)}"
    )


def run_folder_name(settings: Settings) -> str:
    """The same for a whole experiment."""
    phase1 = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    return f"{phase1}-{config_hash(settings.phase2)}"


def settings_of(record: Mapping[str, Any]) -> Settings:
    """The configuration that a record was made with; a conversations file is where it was then."""
    stored = dict(record["config"])
    if stored["data"]["corpus"] in ("file", "brown"):
        stored["data"] = {**stored["data"], **record["paths"]}
    return from_sections(Settings, stored)
