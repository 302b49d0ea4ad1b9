"""Initial weights with a given forgetting: the recurrent weights are scaled until the Lyapunov exponent is as asked.

At the notes' initialisation the exponent rises with the width, so that wider blocks forget more slowly, or not at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import brentq
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.model import ContextBlock, NewLLM, StreamEmbeddings

_TOKENS = 1024  # the exponent is measured on
_TOLERANCE = 1e-3  # of the logarithm of the scale
_SMALLEST, _LARGEST = 0.02, 5.0


@dataclass(frozen=True)
class ExponentScale:
    """``scale`` of the recurrent weights, and the ``exponent`` it gives, nats a token; ``success``: within 0.005."""

    scale: float
    exponent: float
    success: bool


@torch.no_grad()
def scale_to_exponent(block: ContextBlock, embeds: StreamEmbeddings, target: float) -> ExponentScale:
    """Scale every layer's `from_context` weights in place, so that ``contraction_rate`` is ``target`` (below 0).

    ``embeds`` are of the training text. A target that no scale within 0.02 … 5 meets leaves the weights as they were.
    """
    weights = [layer.from_context.weight for layer in block.context_layers()]
    drawn = [weight.clone() for weight in weights]
    few = embeds[0:_TOKENS]

    def exponent(log_scale: float) -> float:
        for weight, start in zip(weights, drawn, strict=True):
            weight.copy_(start * math.exp(log_scale))
        return contraction_rate(block, few)

    low, high = (math.log(scale) for scale in (_SMALLEST, _LARGEST))
    if not exponent(low) < target < exponent(high):
        return ExponentScale(1.0, exponent(0.0), False)
    log_scale, result = brentq(lambda x: exponent(x) - target, low, high, xtol=_TOLERANCE, full_output=True)
    found = exponent(log_scale)
    return ExponentScale(math.exp(log_scale), found, result.converged and abs(found - target) < 5e-3)


@dataclass(frozen=True)
class WidthExponent:
    """Exponents of one width at the start, nats a token: ``drawn`` as initialised, and after scaling to the target."""

    context_dim: int
    drawn: float
    scaled: ExponentScale


def exponents_by_width(
    config: ModelConfig, embedding_matrix: Tensor, tokens: Tensor, context_dims: Sequence[int], target: float, seed: int
) -> list[WidthExponent]:
    """Of new models that differ in their width alone; ``tokens`` `[N]` of the training text, N >= 64."""
    found = []
    for context_dim in context_dims:
        model = NewLLM(replace(config, context_dim=context_dim), embedding_matrix, seed)
        embeds = StreamEmbeddings(model, tokens)
        drawn = contraction_rate(model.context_block, embeds[0:_TOKENS])
        found.append(WidthExponent(context_dim, drawn, scale_to_exponent(model.context_block, embeds, target)))
    return found
