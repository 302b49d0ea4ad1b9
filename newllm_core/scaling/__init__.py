"""How perplexity falls with data: the exponent, per window of sizes, with intervals."""

from newllm_core.scaling.analysis import alpha_by_algorithm, analyse, analysis_record, analysis_text, size_table
from newllm_core.scaling.law import fit_power_law, sample_sizes

__all__ = [
    "alpha_by_algorithm",
    "analyse",
    "analysis_record",
    "analysis_text",
    "fit_power_law",
    "sample_sizes",
    "size_table",
]
