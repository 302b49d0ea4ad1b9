"""The frozen head: cross-entropy without logits, samples of the vocabulary, biases, a cache."""

from newllm_core.head.cross_entropy import frozen_head_cross_entropy

__all__ = ["frozen_head_cross_entropy"]
