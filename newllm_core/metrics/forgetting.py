"""How fast a block forgets where it started: Lyapunov exponent and horizon."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_core.contexts.horizon import start_distances
from newllm_core.model.layers import ContextBlock
from newllm_core.runs.reproducibility import derived_generator

FORGETTING_FACTOR = 1e-6  # a difference this much smaller is that of float32's rounding
# What exponent and horizon are measured on, everywhere: on other numbers of tokens they come out differently.
FORGETTING_TOKENS = 4096
MIN_FORGETTING_TOKENS = 64  # of fewer, nothing settles
_STRETCHES = 8  # side by side


@torch.no_grad()
def contraction_rate(block: ContextBlock, token_embeds: Tensor, max_tokens: int = FORGETTING_TOKENS) -> float:
    """Largest Lyapunov exponent of the recurrence, in nats per token; below 0 the block forgets its start.

    Benettin's method (1980) in float64: two trajectories 1e-7 apart, the distance reset after every token, its log
    growth averaged. Eight stretches of the first ``max_tokens`` tokens run at once; the first quarter of each
    (200 tokens at most) lets trajectory and direction settle.

    Args:
        token_embeds: `[N, E·T]`, N >= 64.
    """
    stretches, distance = _STRETCHES, 1e-7
    steps = min(len(token_embeds), max_tokens) // stretches
    if stretches * steps < MIN_FORGETTING_TOKENS:
        raise ValueError(
            f"contraction_rate: expected at least {MIN_FORGETTING_TOKENS} tokens, given {len(token_embeds)}"
        )
    settle = min(steps // 4, 200)
    wide = copy.deepcopy(block).double()
    embeds = token_embeds[: stretches * steps].double().reshape(stretches, steps, -1)
    parts = wide.token_parts(embeds)
    context = torch.zeros(stretches, block.context_dim, dtype=torch.float64, device=embeds.device)
    direction = torch.randn(context.shape, generator=derived_generator("lyapunov"), dtype=torch.float64).to(context)
    growth = torch.zeros(stretches, dtype=torch.float64, device=embeds.device)
    for step in range(steps):
        direction = direction / direction.norm(dim=1, keepdim=True)
        pair = torch.cat([context, context + distance * direction])
        moved = wide.forward_from_token_parts(pair, [part[:, step].repeat(2, 1) for part in parts])[-1]
        context, direction = moved[:stretches], (moved[stretches:] - moved[:stretches]) / distance
        if step >= settle:
            growth += direction.norm(dim=1).log()
    return float(growth.mean()) / (steps - settle)


@dataclass(frozen=True)
class Forgetting:
    """How trajectories from unlike starts approach each other.

    Attributes:
        distances: largest component-wise distance after each token, from about 3 downwards.
        horizon: tokens until it fell by the factor asked for; None when it did not within the tokens given.
    """

    distances: list[float]
    horizon: int | None


def forgetting_horizon(
    block: ContextBlock, token_embeds: Tensor, factor: float = FORGETTING_FACTOR, streams: int = 4
) -> Forgetting:
    """Tokens until the difference between two starts falls by ``factor`` (docs/method.md, section 6), in float64.

    Args:
        token_embeds: `[N, E·T]`; ``streams`` stretches of it run at once, and the slowest one counts.
    """
    steps = len(token_embeds) // streams
    if steps < 1:
        raise ValueError(f"forgetting_horizon: expected at least {streams} tokens, given {len(token_embeds)}")
    embeds = token_embeds[: streams * steps].double().reshape(streams, steps, -1)
    # The starts are a zero context and unit normal components: their distance is of order one.
    distances = start_distances(copy.deepcopy(block).double(), embeds, stop_below=factor * 1e-3)
    below = [step for step, distance in enumerate(distances, start=1) if distance <= factor * distances[0]]
    return Forgetting(distances, below[0] if below else None)
