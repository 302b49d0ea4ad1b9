"""What is measured on contexts and predictions; each figure carries the counts it rests on.

A new measure of the contexts' spectrum is an entry of ``spectrum.SPECTRUM_MEASURES``, and stands in every record from
then on. Any other measure is a function here, called in ``experiment/measure.py``.
"""

from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.metrics.rank import calibrated_effective_rank, effective_rank

__all__ = ["calibrated_effective_rank", "contraction_rate", "effective_rank"]
