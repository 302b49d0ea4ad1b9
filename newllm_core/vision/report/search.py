"""Pictures of a study: history and epochs of stage A, drawn by Optuna; importance, and the front of two objectives."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization import matplotlib as optuna_plots

from newllm_core.report.style import BLUE, PLAIN_COLOUR, VERMILION, new_axes
from newllm_core.vision.search.front import front_trials, mean_accuracy
from newllm_core.vision.search.importance import LEAST_TRIALS, explained, importance_table
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import finished_trials, load_study, objective_names

_IMAGES = "selection images"


def plot_search_history(folder: Path) -> Figure:
    """The objective of each trial, and the best so far."""
    study = _with_complete_trials(folder)
    (name,) = objective_names(study)
    title = f"Search history, {_IMAGES}"
    return _drawn(lambda: optuna_plots.plot_optimization_history(study, target_name=name), study, title)


def plot_search_front(folder: Path) -> Figure:
    """Of two objectives: accuracy against parameters, with 95 % intervals over images; a line through the trials that
    no other beats in both, with their numbers."""
    study = _with_complete_trials(folder)
    figure, (axis,) = new_axes(1, width=8, height=4)
    front = front_trials(study)
    for trial in finished_trials(study):
        is_best = trial in front
        interval = mean_accuracy(folder, study, trial).interval
        assert interval is not None  # over images, which every record has
        axis.plot(interval, [trial.values[1]] * 2, color=PLAIN_COLOUR, lw=0.6, alpha=0.5)
        axis.plot(*trial.values, "D" if is_best else "o", color=VERMILION if is_best else BLUE, ms=5)
    # Up to each accuracy, the fewest parameters that reached it.
    axis.step(
        *zip(*(trial.values for trial in front)), where="pre", color=VERMILION, label="no other is better in both"
    )
    for trial in front:
        axis.annotate(str(trial.number), trial.values, xytext=(5, -10), textcoords="offset points", fontsize=8)
    accuracy, parameters = objective_names(study)
    axis.set(xlabel=f"{accuracy}, {_IMAGES}; 95 % over images", ylabel=parameters)
    axis.set_title(f"Two objectives — {_counts(study)}", fontsize=10)
    axis.legend(loc="upper left", fontsize=9)
    return figure


def plot_search_importance(folder: Path, table: pd.DataFrame | None = None) -> Figure:
    """A panel a figure that the study explains: the share of its variance that each parameter explains alone.

    ``table``: the study's `importance_table`, where it is there already; a minute for 40 trials of ten parameters.
    """
    study = load_study(folder)
    if not explained(study):
        raise SearchError(f"{folder}: expected at least {LEAST_TRIALS} trials that ended stage A, for importances")
    table = importance_table(study) if table is None else table
    panels = [part.set_index("parameter") for _, part in table.groupby("of", sort=False)]
    picture, axes = new_axes(len(panels), width=5.2, height=4)
    order = list(reversed(panels[0].index))  # the same in all panels
    for axis, panel in zip(axes, panels):
        for place, (_, row) in enumerate(panel.loc[order].iterrows()):
            axis.plot(row[["low", "high"]], [place, place], color=PLAIN_COLOUR, lw=2)
            axis.plot(row["share"], place, "o", color=BLUE)
            axis.plot(row["noise"], place, "|", color=VERMILION, ms=12, mew=2)
        axis.set_yticks(range(len(order)), order)
        axis.set(xlabel="share of the variance, 95 % (trials drawn anew)", xlim=(0, 1))
        axis.set_title(f"{panel['of'].iloc[0]}, {panel['trials'].iloc[0]} trials", fontsize=10)
    picture.suptitle(f"Importance (functional ANOVA), {_IMAGES}; red: what noise reaches (97.5 %)", fontsize=10)
    return picture


def plot_search_epochs(folder: Path) -> Figure:
    """Selection accuracy per epoch of stage A, a line a trial; grey ones missed the gate."""
    study = load_study(folder)
    if not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        raise SearchError(f"{folder}: no trial has reported an epoch; a study of two objectives reports none")
    figure = _drawn(lambda: optuna_plots.plot_intermediate_values(study), study, "Stage A; grey: below the gate")
    axis = figure.axes[0]
    axis.set(xlabel="epoch", ylabel="selection accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _drop_legend(axis)  # a line for each of 50 trials
    return figure


def search_pictures(folder: Path, table: pd.DataFrame | None = None) -> dict[str, Figure]:
    """By name, every picture that the study's trials suffice for: epochs, history or front, importance; ``table`` as of
    ``plot_search_importance``."""
    study = load_study(folder)
    drawn: dict[str, Figure] = {}
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        drawn["epochs"] = plot_search_epochs(folder)
    if finished_trials(study):
        is_front = len(study.directions) > 1
        drawn["front" if is_front else "history"] = (plot_search_front if is_front else plot_search_history)(folder)
    if explained(study):
        drawn["importance"] = plot_search_importance(folder, table)
    return drawn


def _drop_legend(axis: Axes) -> None:
    legend = axis.get_legend()
    assert legend is not None  # Optuna draws one
    legend.remove()


def _counts(study: optuna.Study) -> str:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return f"{states.count(TrialState.COMPLETE)} trials finished, {states.count(TrialState.PRUNED)} pruned"


def _with_complete_trials(folder: Path) -> optuna.Study:
    study = load_study(folder)
    if not finished_trials(study):
        raise SearchError(f"{folder}: expected at least one trial that passed the gate, found none")
    return study


def _drawn(draw: Callable[[], Any], study: optuna.Study, title: str) -> Figure:
    """Optuna draws with pyplot and sets its style; neither may reach the caller's other pictures."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = draw()
        figure: Figure = axes.figure
        pyplot.close(figure)
    figure.set_layout_engine("constrained")
    figure.set_size_inches(8, 4)
    axes.set_facecolor("white")  # on its grey, Optuna's grey for trials below the gate is hard to see
    axes.grid(color="0.9")
    axes.set_title("", loc="left")
    axes.set_title(f"{title} — {_counts(study)}", fontsize=10, loc="center")
    return figure
