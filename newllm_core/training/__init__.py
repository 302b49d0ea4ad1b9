"""Both phases: what is minimised, step by step."""

from newllm_core.training.evaluation import Evaluation, evaluate, evaluation_head
from newllm_core.training.fixed_point import CvfpPass, PassFigures, batch_slices, context_noise
from newllm_core.training.initialisation import ExponentScale, WidthExponent, exponents_by_width, scale_to_exponent
from newllm_core.training.phase1 import (
    IterationRecord,
    Phase1History,
    Phase1Result,
    all_contexts,
    finish_phase1,
    train_phase1,
)
from newllm_core.training.phase2 import EpochRecord, Phase2Result, set_output_bias, train_phase2
from newllm_core.training.predictive import PredictivePass, contrastive_loss, regression_loss

__all__ = [
    "CvfpPass",
    "EpochRecord",
    "Evaluation",
    "ExponentScale",
    "IterationRecord",
    "PassFigures",
    "Phase1History",
    "Phase1Result",
    "Phase2Result",
    "PredictivePass",
    "WidthExponent",
    "all_contexts",
    "batch_slices",
    "context_noise",
    "contrastive_loss",
    "evaluate",
    "evaluation_head",
    "exponents_by_width",
    "finish_phase1",
    "regression_loss",
    "scale_to_exponent",
    "set_output_bias",
    "train_phase1",
    "train_phase2",
]
