"""Phase 1 of the rows: trained once for all that differ in Phase 2 alone, as ablations of the readout do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from newllm_core.config.language import Phase1Config
from newllm_core.config.schema import config_hash
from newllm_core.data import corpus_key
from newllm_core.experiment.identity import identity_of
from newllm_core.experiment.phase1_cache import phase1_in_folder
from newllm_core.experiment.prepare import Prepared, check_phase1
from newllm_core.metrics.forgetting import (
    FORGETTING_TOKENS,
    MIN_FORGETTING_TOKENS,
    contraction_rate,
    forgetting_horizon,
)
from newllm_core.metrics.rank import stream_rank
from newllm_core.model import StreamEmbeddings
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.progress import Stopwatch
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training.phase1 import Phase1Result, train_phase1


@dataclass(frozen=True)
class KeptPhase1:
    """
    Attributes:
        contexts: of the kept weights, which the model carries too.
        figures: effective rank of the validation contexts, how the block forgets, iterations, seconds.
        earlier_cpu_seconds: what its training took before this call: a row's cost counts both phases.
    """

    contexts: Phase1Result
    figures: dict[str, Any]
    earlier_cpu_seconds: float


def kept_phase1(prepared: Prepared, config: Phase1Config, folder: Path) -> KeptPhase1:
    """Train Phase 1 and keep it in ``folder``, or take it from there, finished or half-way; the contexts are the same
    to the last bit.

    Raises NotFiniteError from training, and RunError where a file was altered or is another configuration's.
    """

    def train(checkpoints: CheckpointPlace) -> tuple[Phase1Result, dict[str, Any]]:
        check_phase1(prepared, config, place)
        seed = prepared.run.seed
        # Losses that draw would else depend on how many numbers the weights of this row's readout took.
        # The words are part of the figures of committed rows.
        torch.manual_seed(derived_generator("phase 1 of contenders", seed).initial_seed())
        result = train_phase1(
            prepared.model, prepared.train_tokens, prepared.validation_tokens, config, seed, checkpoints
        )
        return result, {"figures": _figures(prepared, result, config)}

    model_part = prepared.model.config.phase1_part()
    sections = {"data": prepared.data, "model": model_part, "phase1": config, "run": prepared.run}
    watch = Stopwatch()
    place = folder / f"{corpus_key(prepared.data)}-{config_hash(*sections.values())}"
    contexts, record = phase1_in_folder(prepared, identity_of(sections), place, train)
    earlier = max(0.0, record["cpu_seconds"] - watch.total().cpu)  # what this call took is counted by the caller
    return KeptPhase1(contexts, record["figures"], earlier)


def _figures(prepared: Prepared, result: Phase1Result, config: Phase1Config) -> dict[str, Any]:
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
