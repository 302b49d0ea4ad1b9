"""Exponential moving average of a model's parameters and buffers (nkat.md section 4)."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


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
