"""Runs held against each other, from their records alone."""

from newllm_core.comparison.accuracy import accuracy_table
from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.groups import ComparisonError, varying_parameters
from newllm_core.comparison.leaderboard import (
    contexts_table,
    expectation_sentences,
    standings,
    standings_table,
)
from newllm_core.comparison.paired import comparison_lines, comparison_table, rank_perplexity_correlation

__all__ = [
    "ComparisonError",
    "accuracy_table",
    "comparison_lines",
    "comparison_table",
    "contexts_table",
    "expectation_sentences",
    "perplexity_ratio",
    "rank_perplexity_correlation",
    "standings",
    "standings_table",
    "varying_parameters",
]
