"""The frozen head: cross-entropy without logits, samples of the vocabulary, biases, a cache."""

from newllm_core.head.continuous_cache import ContinuousCache, cached_nats
from newllm_core.head.cross_entropy import (
    Head,
    HeadLoss,
    TokenFigures,
    choose_head,
    frozen_head_cross_entropy,
    with_output_bias,
    with_unit_columns,
)
from newllm_core.head.sampled_softmax import SampledHead, VocabularySample, epochs_head, sample_vocabulary
from newllm_core.head.unigram_bias import UNIGRAM_ADDED, Unigram, fit_unigram

__all__ = [
    "ContinuousCache",
    "Head",
    "HeadLoss",
    "SampledHead",
    "TokenFigures",
    "UNIGRAM_ADDED",
    "Unigram",
    "VocabularySample",
    "cached_nats",
    "choose_head",
    "epochs_head",
    "fit_unigram",
    "frozen_head_cross_entropy",
    "sample_vocabulary",
    "with_output_bias",
    "with_unit_columns",
]
