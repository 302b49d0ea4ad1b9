"""What the optimizer is given (nkat.md section 4): groups with and without decay, and a learning rate per step."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from newllm_core.vision.config import VisionTrainConfig
from newllm_core.vision.model import NkatModel, parameters_without_decay


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the full learning rate at ``step`` 0 … total_steps - 1: above 0 at each of them, at most 1.

    A line to 1 over the warm-up steps, whose first is 1 / warmup_steps, then a cosine that reaches 0 only after the
    last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(optimizer: Optimizer, steps_per_epoch: int, config: VisionTrainConfig) -> LambdaLR:
    """Scheduler to be stepped after each optimizer step. Raises ValueError unless there is a step per epoch."""
    if steps_per_epoch < 1:
        raise ValueError(f"warmup_cosine: expected at least one step per epoch, given {steps_per_epoch}")
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, warmup))


def parameter_groups(model: NkatModel, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: with ``weight_decay``, and without."""
    without = parameters_without_decay(model)
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name not in without], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in without], "weight_decay": 0.0},
    ]
