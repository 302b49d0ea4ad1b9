"""Tables and pictures of the vision line, from records."""

from newllm_core.vision.report.comparison import plot_epochs, plot_variants
from newllm_core.vision.report.reference import show_reference
from newllm_core.vision.report.runs import plot_attention, plot_rollout, plot_scores, plot_theta, plot_training
from newllm_core.vision.report.score_table import card_lines, score_table
from newllm_core.vision.report.search import search_pictures

__all__ = [
    "card_lines",
    "plot_attention",
    "plot_epochs",
    "plot_rollout",
    "plot_scores",
    "plot_theta",
    "plot_training",
    "plot_variants",
    "score_table",
    "search_pictures",
    "show_reference",
]
