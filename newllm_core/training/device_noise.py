"""Noise on a GPU: drawn where it is added, from a counter that is the token's position (Philox, Salmon et al. 2011).

One number depends on seed, iteration, token position and component alone: not on batches, nor on the card. It is
another stream than the CPU's, as every generator of a GPU is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from newllm_core.runs.reproducibility import derived_generator

_COMPONENTS = 1024  # that a program changes
_SEEDS = 2**31 - 1


def noise_seed(seed: int, iteration: int, device: torch.device) -> Tensor:
    """What one iteration's noise is drawn from, int64 `[1]`; on the GPU, so that a recorded step can be given it."""
    drawn = derived_generator("device noise", seed, iteration).initial_seed() % _SEEDS
    return torch.full((1,), drawn, device=device)


def with_noise(contexts: Tensor, first_token: int, std: float, seed: Tensor) -> Tensor:
    """``contexts`` `[n, C]` of the tokens from ``first_token`` on, plus normal noise of standard deviation ``std``."""
    count, width = contexts.shape
    noisy = contexts.new_empty(count, width)
    _add_noise[(count, triton.cdiv(width, _COMPONENTS))](
        contexts, noisy, seed, first_token, contexts.stride(0), width, std, COMPONENTS=_COMPONENTS
    )
    return noisy


@triton.jit(do_not_specialize=["first_token"])
def _add_noise(contexts, noisy, seed, first_token, stride, width, std, COMPONENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COMPONENTS + tl.arange(0, COMPONENTS)
    inside = column < width
    # 64 bits: a million tokens of C = 2,500 are more than 2^31 numbers.
    counter = (first_token + row) * width + column
    values = tl.load(contexts + row * stride + column, mask=inside, other=0.0)
    noise = std * tl.randn(tl.load(seed), counter)
    tl.store(noisy + row * width + column, values + noise, mask=inside)
