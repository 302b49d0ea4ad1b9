"""How perplexity falls with data: the exponent, per window of sizes, with intervals."""

from newllm_core.scaling.analysis import (
    ScalingAnalysis,
    alpha_by_algorithm,
    analyse,
    analysis_record,
    analysis_text,
    size_table,
)
from newllm_core.scaling.bootstrap import bootstrap_alpha
from newllm_core.scaling.floor import bootstrap_floor_law, fit_floor_law
from newllm_core.scaling.law import PowerLawFit, ScalingError, extrapolate, fit_power_law, sample_sizes
from newllm_core.scaling.progression import alpha_progression

__all__ = [
    "PowerLawFit",
    "ScalingAnalysis",
    "ScalingError",
    "alpha_by_algorithm",
    "alpha_progression",
    "analyse",
    "analysis_record",
    "analysis_text",
    "bootstrap_alpha",
    "bootstrap_floor_law",
    "extrapolate",
    "fit_floor_law",
    "fit_power_law",
    "sample_sizes",
    "size_table",
]
