"""Tables and pictures from records; nothing is trained here."""

from newllm_core.report.comparison import (
    plot_axis,
    plot_comparison,
    plot_loss_cost,
    plot_rank_against_perplexity,
    plot_rank_progression,
    plot_spectra,
)
from newllm_core.report.leaderboard import group_pictures, plot_exponents, plot_standings
from newllm_core.report.phases import plot_epochs, plot_forgetting, plot_phase1, plot_spectrum, plot_tokens
from newllm_core.report.reference import show_reference
from newllm_core.report.scaling import plot_alpha, plot_perplexity, plot_rank, window_picture
from newllm_core.report.sweeps import animate_sweeps, plot_moving_contexts, plot_sweeps
from newllm_core.report.text import data_table, report
from newllm_core.report.widgets import picture_with_sliders

__all__ = [
    "animate_sweeps",
    "data_table",
    "group_pictures",
    "picture_with_sliders",
    "plot_alpha",
    "plot_axis",
    "plot_comparison",
    "plot_epochs",
    "plot_exponents",
    "plot_forgetting",
    "plot_loss_cost",
    "plot_moving_contexts",
    "plot_perplexity",
    "plot_phase1",
    "plot_rank",
    "plot_rank_against_perplexity",
    "plot_rank_progression",
    "plot_spectra",
    "plot_spectrum",
    "plot_standings",
    "plot_sweeps",
    "plot_tokens",
    "report",
    "show_reference",
    "window_picture",
]
