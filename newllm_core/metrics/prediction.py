"""Perplexity and bits a byte from summed cross-entropies."""

import math

from newllm_core.intervals import finite_exp

NATS_PER_BIT = math.log(2)


def perplexity(mean_nats: float) -> float:
    """`exp` of the mean cross-entropy; that of 700 nats beyond, where it would overflow, as in a run that diverges: a
    record holds finite numbers, and the loss stands beside it."""
    return finite_exp(mean_nats)


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Cross-entropy per byte of the predicted text: comparable across tokenizers."""
    return total_nats / NATS_PER_BIT / num_bytes
