"""Tables and pictures from records; nothing is trained here."""

from newllm_core.report.comparison import (
    plot_axis,
    plot_comparison,
    plot_loss_cost,
    plot_rank_against_perplexity,
    plot_rank_progression,
    plot_spectra,
)
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.gallery import Gallery
from newllm_core.report.leaderboard import group_pictures, plot_exponents, plot_ratios, plot_standings
from newllm_core.report.phases import plot_epochs, plot_forgetting, plot_phase1, plot_spectrum, plot_tokens
from newllm_core.report.scaling import plot_alpha, plot_perplexity, plot_rank, window_picture
from newllm_core.report.style import save_figure
from newllm_core.report.text import data_table, epoch_table, iteration_table, report, spectrum_table
from newllm_core.report.widgets import picture_with_sliders

__all__ = [
    "ForestLabel",
    "ForestPanel",
    "Gallery",
    "data_table",
    "epoch_table",
    "group_pictures",
    "iteration_table",
    "picture_with_sliders",
    "plot_alpha",
    "plot_axis",
    "plot_comparison",
    "plot_epochs",
    "plot_exponents",
    "plot_forest",
    "plot_forgetting",
    "plot_loss_cost",
    "plot_perplexity",
    "plot_phase1",
    "plot_rank",
    "plot_rank_against_perplexity",
    "plot_rank_progression",
    "plot_ratios",
    "plot_spectra",
    "plot_spectrum",
    "plot_standings",
    "plot_tokens",
    "report",
    "save_figure",
    "spectrum_table",
    "window_picture",
]
