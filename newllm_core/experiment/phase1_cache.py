"""Phase 1 in a folder of its own: trained there once, and read by all who want the same."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from newllm_core.experiment.prepare import Prepared
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import load_tensors
from newllm_core.runs.folder import Record, RunFolder
from newllm_core.runs.identity import Identity
from newllm_core.runs.progress import Stopwatch
from newllm_core.training.phase1 import Phase1Result, finish_phase1

logger = logging.getLogger("newllm")

CONTEXT_WEIGHTS = "context_block.safetensors"
PHASE1_RECORD = "phase1.json"
PHASE1_CHECKPOINT = "phase1_checkpoint"
PHASE1_KIND = "phase1"  # of an experiment, in the name of its copies

TrainAndMeasure = Callable[[CheckpointPlace], tuple[Phase1Result, Mapping[str, Any]]]


def phase1_place(folder: Path, identity: Identity, copy_to: str | None = None, kind: str = PHASE1_KIND) -> RunFolder:
    """Phase 1 as it is kept in ``folder``."""
    record, checkpoint = folder / PHASE1_RECORD, folder / PHASE1_CHECKPOINT
    return RunFolder(record, checkpoint, identity, files=phase1_files(folder), copy_to=copy_to, kind=kind)


def phase1_files(folder: Path) -> tuple[Path, ...]:
    """All that a complete Phase 1 is."""
    return folder / PHASE1_RECORD, folder / CONTEXT_WEIGHTS


def phase1_in_folder(
    prepared: Prepared, identity: Identity, folder: Path, train: TrainAndMeasure, kind: str = PHASE1_KIND
) -> tuple[Phase1Result, Record]:
    """What is in ``folder``, or else what ``train`` gives, kept there: contexts and record. Contexts that were there
    have no history.

    Of two processes that want the same one, the second waits and reads it. The model of ``prepared`` carries the kept
    weights afterwards.

    Args:
        identity: what the folder must have been made with.
        train: trains the model in place, with checkpoints at the place it is given; returns contexts and figures. Its
            seconds, before interruptions too, are added to the record.
        kind: of this training, in the name of its copies: two that train differently never share one.

    Raises RunError when the folder holds another Phase 1 or a damaged file.
    """
    with phase1_place(folder, identity, prepared.run.copy_to, kind).held() as run:
        if run.record is not None:
            return _read(prepared, folder), run.record
        watch = Stopwatch()
        result, figures = train(run.checkpoints)
        assert result.history is not None  # it has just been trained
        took, earlier = watch.total(), result.history.earlier
        seconds = {"seconds": took.wall + earlier.wall, "cpu_seconds": took.cpu + earlier.cpu}
        weights = {CONTEXT_WEIGHTS: prepared.model.context_block.state_dict()}
        return result, run.finish({**figures, **seconds}, weights)


def _read(prepared: Prepared, folder: Path) -> Phase1Result:
    prepared.model.context_block.load_state_dict(load_tensors(folder / CONTEXT_WEIGHTS))
    logger.info("Phase 1: found in %s", folder)
    # Contexts are recomputed, which takes seconds, rather than kept, which takes gigabytes.
    return finish_phase1(
        prepared.model, prepared.train_tokens, prepared.validation_tokens, None, prepared.selection_tokens
    )
