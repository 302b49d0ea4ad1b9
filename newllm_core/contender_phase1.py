"""Phase 1 of the contenders: trained once for all that differ in Phase 2 alone, as ablations of the readout do."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from newllm_core.config import Phase1Config, config_hash
from newllm_core.experiment import CONTEXT_WEIGHTS, PHASE1_RECORD, configs_record
from newllm_core.metrics import contraction_rate, forgetting_horizon, stream_rank
from newllm_core.model import StreamEmbeddings
from newllm_core.phase1 import Phase1Result, finish_phase1, train_phase1
from newllm_core.preparation import Prepared
from newllm_core.runs import (
    derived_generator,
    load_tensors,
    locked,
    read_json,
    refuse_other_config,
    save_tensors,
    write_json,
)

_FORGETTING_TOKENS = 4096  # that exponent and horizon are measured on


@dataclass(frozen=True)
class KeptPhase1:
    """
    Attributes:
        contexts: of the kept weights, which the model carries too.
        figures: effective rank of the validation contexts, how the block forgets, iterations, seconds.
        earlier_cpu_seconds: what its training took before, 0 where that was now: a row's cost counts both phases.
    """

    contexts: Phase1Result
    figures: dict[str, Any]
    earlier_cpu_seconds: float


def kept_phase1(prepared: Prepared, config: Phase1Config, folder: Path) -> KeptPhase1:
    """Train Phase 1 and keep it in ``folder``, or take it from there; the contexts are the same to the last bit.

    Raises NotFiniteError from training, and RunError where a file was altered.
    """
    model_part = prepared.model.config.phase1_part()
    place = folder / config_hash(prepared.data, model_part, config, prepared.run)
    configs = configs_record(prepared.data, model_part, config, prepared.run)
    with locked(place / "phase1.lock"):
        return _kept_alone(prepared, config, place, configs)


def _kept_alone(prepared: Prepared, config: Phase1Config, place: Path, configs: dict[str, Any]) -> KeptPhase1:
    if (place / PHASE1_RECORD).is_file():
        return _found(prepared, place, configs)
    began = time.process_time()
    # Losses that draw would else depend on how many numbers the weights of this row's readout took.
    torch.manual_seed(derived_generator("phase 1 of contenders", prepared.run.seed).initial_seed())
    result = train_phase1(prepared.model, prepared.train_tokens, prepared.validation_tokens, config, prepared.run.seed)
    figures = _figures(prepared, result, config)
    record = {"config": configs, "figures": figures, "cpu_seconds": time.process_time() - began}
    save_tensors(place / CONTEXT_WEIGHTS, prepared.model.context_block.state_dict())
    write_json(place / PHASE1_RECORD, record)
    return KeptPhase1(result, figures, 0.0)


def _found(prepared: Prepared, place: Path, configs: dict[str, Any]) -> KeptPhase1:
    record = read_json(place / PHASE1_RECORD)
    refuse_other_config(record, configs, place)
    prepared.model.context_block.load_state_dict(load_tensors(place / CONTEXT_WEIGHTS))
    began = time.process_time()
    contexts = finish_phase1(prepared.model, prepared.train_tokens, prepared.validation_tokens, None)
    again = time.process_time() - began  # is in the training's own figure
    return KeptPhase1(contexts, record["figures"], max(0.0, record["cpu_seconds"] - again))


def _figures(prepared: Prepared, result: Phase1Result, config: Phase1Config) -> dict[str, Any]:
    """Of the validation text: effective rank, and how the block forgets."""
    history = result.history
    assert history is not None  # it has just been trained
    few = StreamEmbeddings(prepared.model, prepared.validation_tokens)[0:_FORGETTING_TOKENS]
    block = prepared.model.context_block
    rank = stream_rank(result.validation_contexts[:, -1], config.effective_rank_tokens)
    return {
        "validation_rank": rank.record(),
        "contraction_rate": contraction_rate(block, few),
        "forgetting_horizon": forgetting_horizon(block, few).horizon,
        "iterations_kept": history.best_iteration,
        "phase1_seconds": history.seconds,
    }
