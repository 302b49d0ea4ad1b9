"""Phase 1 in a folder of its own: trained there once, and read by all who want the same."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from newllm_core.experiment.prepare import Prepared
from newllm_core.runs.checkpoint import CheckpointPlace, discard_checkpoint
from newllm_core.runs.files import load_tensors, locked, read_json, save_tensors, write_json
from newllm_core.runs.folder import refuse_other_config
from newllm_core.training.phase1 import Phase1Result, finish_phase1

logger = logging.getLogger("newllm")

CONTEXT_WEIGHTS = "context_block.safetensors"
PHASE1_RECORD = "phase1.json"
PHASE1_CHECKPOINT = "phase1_checkpoint"

TrainAndMeasure = Callable[[CheckpointPlace], tuple[Phase1Result, Mapping[str, Any]]]


def phase1_in_folder(
    prepared: Prepared, configs: Mapping[str, Any], folder: Path, train: TrainAndMeasure
) -> tuple[Phase1Result, dict[str, Any]]:
    """What is in ``folder``, or else what ``train`` gives, kept there: contexts and record. Contexts that were there
    have no history.

    Of two processes that want the same one, the second waits and reads it. The model of ``prepared`` carries the kept
    weights afterwards.

    Args:
        configs: what the folder must have been made with, by section.
        train: trains the model in place, with checkpoints at the place it is given; returns contexts and figures.

    Raises RunError when the folder holds another configuration or a damaged file.
    """
    with locked(folder / "phase1.lock"):
        checkpoints = CheckpointPlace(folder / PHASE1_CHECKPOINT, configs)
        if (folder / PHASE1_RECORD).is_file():
            found = _read(prepared, configs, folder)
            discard_checkpoint(checkpoints.folder)  # of an interruption just before it was discarded
            return found
        result, figures = train(checkpoints)
        record = {"config": dict(configs), **figures}
        save_tensors(folder / CONTEXT_WEIGHTS, prepared.model.context_block.state_dict())
        write_json(folder / PHASE1_RECORD, record)
        discard_checkpoint(checkpoints.folder)
        return result, record


def _read(prepared: Prepared, configs: Mapping[str, Any], folder: Path) -> tuple[Phase1Result, dict[str, Any]]:
    record = read_json(folder / PHASE1_RECORD)
    refuse_other_config(record, configs, folder)
    prepared.model.context_block.load_state_dict(load_tensors(folder / CONTEXT_WEIGHTS))
    logger.info("Phase 1: found in %s", folder)
    # Contexts are recomputed, which takes seconds, rather than kept, which takes gigabytes.
    return finish_phase1(prepared.model, prepared.train_tokens, prepared.validation_tokens, None), record
