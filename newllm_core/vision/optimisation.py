"""What the optimizer is given, a learning rate per step, and an exponential moving average.

Source: docs/method.md, section 12.4.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from newllm_core.vision.config import VisionTrainConfig
from newllm_core.vision.model.nkat import NkatModel, parameters_without_decay


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


def ema_decay_at(updates: int, decay: float) -> float:
    """`min(decay, (1 + t) / (10 + t))` after t updates: the first models, which know little, are soon forgotten."""
    return min(decay, (1 + updates) / (10 + updates))


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` that follows it: call `.update_parameters(model)` after each step, evaluate `.module`.

    Buffers that are not floating point, such as BatchNorm's batch count, are copied. Its `state_dict` holds the
    number of updates, so that a resumed average goes on as if nothing had happened. Raises ValueError unless
    0 < decay <= 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"exponential_average: expected 0 < decay <= 1, given {decay}")

    @torch.no_grad()
    def average(averages: list[Tensor], currents: list[Tensor], models_averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():
            # The copy made below is the first model averaged.
            weight = 1 - ema_decay_at(int(models_averaged) - 1, decay)
            torch._foreach_lerp_(averages, currents, weight)
        else:
            torch._foreach_copy_(averages, currents)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]
    # AveragedModel would replace its copy by the model at the first update; this one starts from it.
    averaged.n_averaged.fill_(1)
    return averaged.requires_grad_(False)
