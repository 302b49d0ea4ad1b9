"""What is measured on contexts and predictions; each figure carries the counts it rests on.

A new measure of the contexts' spectrum is an entry of ``spectrum.SPECTRUM_MEASURES``, and stands in every record from
then on. Any other measure is a function here, called in ``experiment/measure.py``.
"""

from newllm_core.metrics.convergence import Convergence, count_converged
from newllm_core.metrics.few_tokens import few_token_rank
from newllm_core.metrics.forgetting import contraction_rate, forgetting_horizon
from newllm_core.metrics.prediction import bits_per_byte, perplexity
from newllm_core.metrics.rank import (
    StreamRank,
    calibrated_effective_rank,
    effective_rank,
    noise_effective_rank,
    singular_values,
    stream_rank,
)
from newllm_core.metrics.spectrum import spectrum_figures

__all__ = [
    "Convergence",
    "StreamRank",
    "bits_per_byte",
    "calibrated_effective_rank",
    "contraction_rate",
    "count_converged",
    "effective_rank",
    "few_token_rank",
    "forgetting_horizon",
    "noise_effective_rank",
    "perplexity",
    "singular_values",
    "spectrum_figures",
    "stream_rank",
]
