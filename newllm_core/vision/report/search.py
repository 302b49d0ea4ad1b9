"""Pictures of a study, drawn by Optuna from its journal: history, importance, epochs of stage A, two objectives."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as optuna_plots

from newllm_core.report.style import BLUE, PLAIN_COLOUR, new_axes
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import load_study

_RESAMPLES = 100
_TARGET_NAMES = {1: ["Global, selection images"], 2: ["mean accuracy, selection images", "parameters, millions"]}


def plot_search_history(folder: Path) -> Figure:
    """Objective of each trial, and the best so far; with two objectives, the trials that no other beats in both."""
    study = _with_complete_trials(folder, 1)
    names = _TARGET_NAMES[len(study.directions)]
    if len(names) == 2:
        return _drawn(lambda: optuna_plots.plot_pareto_front(study, target_names=names), study, "Two objectives")
    return _drawn(lambda: optuna_plots.plot_optimization_history(study, target_name=names[0]), study, "Search history")


def plot_search_importance(folder: Path) -> Figure:
    """PED-ANOVA importance of each parameter for reaching the better trials (Watanabe 2023, arXiv:2304.10255), with the
    range that other trials might have given."""
    study = _with_complete_trials(folder, 2)
    found = search_importance(study)
    figure, (axis,) = new_axes(1, width=8, height=4)
    for place, (low, middle, high) in enumerate(reversed(found.values())):
        axis.plot([low, high], [place, place], color=PLAIN_COLOUR, lw=2)
        axis.plot(middle, place, "o", color=BLUE)
    axis.set_yticks(range(len(found)), list(reversed(found)))
    axis.set(xlabel=f"share of importance for {_TARGET_NAMES[len(study.directions)][0]}; 95 %, trials drawn anew")
    axis.set_xlim(left=0)
    axis.set_title(f"Importance, from the finished trials — {_counts(study)}", fontsize=10)
    return figure


def search_importance(study: optuna.Study) -> dict[str, tuple[float, float, float]]:
    """By parameter, most important first: 2.5th percentile, estimate, 97.5th, of shares that sum to 1.

    The percentiles are of importances from as many finished trials, drawn with repetition (bootstrap).
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    generator = np.random.default_rng(0)
    draws = [_importance(trials)]
    for _ in range(_RESAMPLES):
        draws.append(_importance([trials[i] for i in generator.integers(len(trials), size=len(trials))]))
    estimate, *others = draws
    found = {}
    for name in sorted(estimate, key=lambda one: -estimate[one]):
        low, high = np.percentile([one[name] for one in others], [2.5, 97.5])
        found[name] = (float(low), estimate[name], float(high))
    return found


def _importance(trials: list[FrozenTrial]) -> dict[str, float]:
    """Shares of the first objective, from finished trials alone; 0 for what they have all alike."""
    drawn = [
        optuna.trial.create_trial(params=one.params, distributions=one.distributions, value=one.values[0])
        for one in trials
    ]
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study that is made
    try:
        study = optuna.create_study(direction="maximize")
    finally:
        optuna.logging.set_verbosity(told)
    study.add_trials(drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an experiment of Optuna's, and of trials that are all as good
        found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: found.get(name, 0.0) for name in trials[0].params}


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


def search_pictures(folder: Path) -> dict[str, Figure]:
    """By name, every picture that the study's trials suffice for: epochs, history, importance."""
    study = load_study(folder)
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    drawn: dict[str, Figure] = {}
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        drawn["epochs"] = plot_search_epochs(folder)
    if complete >= 1:
        drawn["history"] = plot_search_history(folder)
    if complete >= 2:
        drawn["importance"] = plot_search_importance(folder)
    return drawn


def _drop_legend(axis: Axes) -> None:
    legend = axis.get_legend()
    assert legend is not None  # Optuna draws one
    legend.remove()


def _counts(study: optuna.Study) -> str:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return f"{states.count(TrialState.COMPLETE)} trials finished, {states.count(TrialState.PRUNED)} pruned"


def _with_complete_trials(folder: Path, least: int) -> optuna.Study:
    study = load_study(folder)
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if complete < least:
        raise SearchError(f"{folder}: expected at least {least} trials that passed the gate, found {complete}")
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
