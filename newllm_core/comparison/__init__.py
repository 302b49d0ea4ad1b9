"""Runs held against each other, from their records alone."""

from newllm_core.comparison.accuracy import (
    VariantRuns,
    accuracy_difference,
    accuracy_table,
    mean_accuracy,
    variants_of,
)
from newllm_core.comparison.figures import FIGURES, conversation_losses, perplexity, seed_mean, validation_losses
from newllm_core.comparison.groups import (
    ALGORITHM,
    UNTRAINED,
    WEIGHT,
    ComparisonError,
    Group,
    families_along,
    groups_of,
    setting_text,
    usual_settings,
    varying_parameters,
)
from newllm_core.comparison.leaderboard import (
    Standing,
    contexts_table,
    expectation_sentences,
    perplexity_ratio,
    ratios_to_references,
    standings,
    standings_table,
)
from newllm_core.comparison.paired import (
    RankCorrelation,
    comparison_lines,
    comparison_table,
    paired_difference,
    paired_perplexity_ratio,
    rank_perplexity_correlation,
)
from newllm_core.comparison.tables import readable_table, table_of

__all__ = [
    "ALGORITHM",
    "ComparisonError",
    "FIGURES",
    "Group",
    "RankCorrelation",
    "Standing",
    "UNTRAINED",
    "VariantRuns",
    "WEIGHT",
    "accuracy_difference",
    "accuracy_table",
    "comparison_lines",
    "comparison_table",
    "contexts_table",
    "conversation_losses",
    "expectation_sentences",
    "families_along",
    "groups_of",
    "mean_accuracy",
    "paired_difference",
    "paired_perplexity_ratio",
    "perplexity",
    "perplexity_ratio",
    "rank_perplexity_correlation",
    "ratios_to_references",
    "readable_table",
    "seed_mean",
    "setting_text",
    "standings",
    "standings_table",
    "table_of",
    "usual_settings",
    "validation_losses",
    "variants_of",
    "varying_parameters",
]
