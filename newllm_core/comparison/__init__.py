"""Runs held against each other, from their records alone."""

from newllm_core.comparison.accuracy import accuracy_difference, accuracy_table, mean_accuracy
from newllm_core.comparison.figures import perplexity, seed_mean
from newllm_core.comparison.groups import ComparisonError, Group, groups_of, varying_parameters
from newllm_core.comparison.leaderboard import (
    Standing,
    contexts_table,
    expectation_sentences,
    perplexity_ratio,
    standings,
    standings_table,
)
from newllm_core.comparison.paired import (
    comparison_lines,
    comparison_table,
    paired_difference,
    paired_perplexity_ratio,
    rank_perplexity_correlation,
)
from newllm_core.comparison.tables import readable_table

__all__ = [
    "ComparisonError",
    "Group",
    "Standing",
    "accuracy_difference",
    "accuracy_table",
    "comparison_lines",
    "comparison_table",
    "contexts_table",
    "expectation_sentences",
    "groups_of",
    "mean_accuracy",
    "paired_difference",
    "paired_perplexity_ratio",
    "perplexity",
    "perplexity_ratio",
    "rank_perplexity_correlation",
    "readable_table",
    "seed_mean",
    "standings",
    "standings_table",
    "varying_parameters",
]
