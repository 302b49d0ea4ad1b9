"""Many runs: variants × seeds, and who is compared."""

from newllm_core.studies.rows import read_rows
from newllm_core.studies.runners import ExperimentRunner, RowRunner
from newllm_core.studies.sweep import Variant, grid, one_axis_at_a_time
from newllm_core.studies.variants import known_variants, variant

__all__ = [
    "ExperimentRunner",
    "RowRunner",
    "Variant",
    "grid",
    "known_variants",
    "one_axis_at_a_time",
    "read_rows",
    "variant",
]
