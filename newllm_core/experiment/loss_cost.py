"""What a diversity loss costs: milliseconds of one forward and backward pass."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from newllm_core.losses import diversity_loss
from newllm_core.runs.reproducibility import derived_generator


def loss_cost(
    names: Sequence[str], num_tokens: int, context_dim: int, repetitions: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Time diversity losses on a random matrix `[num_tokens, context_dim]`, in turns, on the threads torch has now.

    A record each: ``name``, ``forward_backward_ms`` (the median), ``low`` and ``high`` (quartiles of the repetitions).
    Raises ValueError for an unknown loss and for fewer than 1 repetition.
    """
    if repetitions < 1:
        raise ValueError(f"loss_cost: expected at least 1 repetition, given {repetitions}")
    losses = {name: diversity_loss(name) for name in names}
    generator = derived_generator("loss cost", 0)
    contexts = torch.randn(num_tokens, context_dim, generator=generator).to(device).requires_grad_()

    def milliseconds(name: str) -> float:
        began = time.perf_counter()
        torch.autograd.grad(losses[name](contexts), contexts)
        if contexts.is_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)

    # Round 0 pays for memory and kernels. In turns, so that a slow minute of the machine hits all of them.
    rounds = [[milliseconds(name) for name in losses] for _ in range(repetitions + 1)][1:]
    quartiles = np.quantile(rounds, [0.25, 0.5, 0.75], axis=0).T.tolist()
    return [
        {"name": name, "forward_backward_ms": median, "low": low, "high": high}
        for name, (low, median, high) in zip(losses, quartiles)
    ]
