"""Perplexity and bits a byte from summed cross-entropies."""

import math

NATS_PER_BIT = math.log(2)


def perplexity(mean_nats: float) -> float:
    """`exp` of the mean cross-entropy; inf where that overflows, as at the start of a run that diverges."""
    return math.inf if mean_nats > 700 else math.exp(mean_nats)


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Cross-entropy per byte of the predicted text: comparable across tokenizers."""
    return total_nats / NATS_PER_BIT / num_bytes
