"""Which parameter decides: the share of variance that each explains alone (functional ANOVA, by Optuna).

Not PED-ANOVA, whose shares are of reaching the best tenth: a choice of two that carries 97 % of the variance gets a
fifth of what a number with 3 % gets there (findings/optuna_ped_anova_choice.sh).

Source: Hutter, Hoos, Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance".
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial

from newllm_core.intervals import CONFIDENCE, Floats, Interval
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import ended_trials, finished_trials, gate_data_set, objective_names

LEAST_TRIALS = 10  # with fewer, one trial more turns the order over
# Above all of 39 permutations is whoever does nothing in one of 40 cases.
_RESAMPLES, _PERMUTATIONS, _TREES = 100, 39, 16


@dataclass(frozen=True)
class Importance:
    """Of one parameter; shares of all sum to at most 1, and the rest is what parameters do together.

    Attributes:
        share: of the variance that it explains alone, in [0, 1], where each parameter is drawn as the search's first
            trials are: numbers uniformly, or uniformly in their logarithm.
        interval: percentiles 2.5 and 97.5 of shares from as many trials, drawn anew with repetition.
        chance: the largest share where its values, and they alone, are dealt out to the trials at random. A forest
            finds something in noise too, and more in a number than in a choice of two. A parameter that does nothing
            is above it in 2.5 % of cases: of ten, one in every fourth study.
    """

    share: float
    interval: Interval
    chance: float

    @property
    def is_above_chance(self) -> bool:
        return self.share > self.chance


@dataclass(frozen=True)
class Explained:
    """A figure that some trials have, ``values`` one a trial."""

    name: str
    trials: Sequence[FrozenTrial]
    values: Sequence[float]


def explained(study: optuna.Study) -> list[Explained]:
    """The accuracy of stage A, which pruned trials have too, and the first objective, which those behind the gate have
    alone; without what fewer than `LEAST_TRIALS` have. A trial that was stopped within stage A has neither, and the
    name says how many those are."""
    ended, gate, complete = ended_trials(study), gate_data_set(study), finished_trials(study)
    stage_a = [trial for trial in ended if "accuracy" in trial.user_attrs]
    stopped = len(ended) - len(stage_a)
    without = f", without {stopped} stopped earlier" if stopped else ""
    figures = [
        Explained(f"accuracy on {gate}{without}", stage_a, [one.user_attrs["accuracy"][gate] for one in stage_a]),
        Explained(objective_names(study)[0], complete, [one.values[0] for one in complete]),
    ]
    return [one for one in figures if len(one.trials) >= LEAST_TRIALS]


def search_importance(
    figure: Explained, resamples: int = _RESAMPLES, permutations: int = _PERMUTATIONS
) -> dict[str, Importance]:
    """By parameter, most important first; parameters with one possible value are left out.

    Raises SearchError for fewer than `LEAST_TRIALS`.
    """
    count = len(figure.trials)
    if count < LEAST_TRIALS:
        raise SearchError(f"importance: expected at least {LEAST_TRIALS} trials, given {count}")
    drawn, values, generator = _uniform(figure.trials), np.asarray(figure.values), np.random.default_rng(0)
    estimate = _shares(drawn, values)
    again = [generator.integers(count, size=count) for _ in range(resamples)]
    shares = pd.DataFrame([_shares(drawn.iloc[rows], values[rows]) for rows in again])
    low, high = (shares.quantile((1 + side * CONFIDENCE) / 2) for side in (-1, 1))
    return {
        name: Importance(
            estimate[name],
            (float(low[name]), float(high[name])),
            max(_shares(_dealt(drawn, name, generator), values)[name] for _ in range(permutations)),
        )
        for name in sorted(estimate, key=lambda one: -estimate[one])
    }


def _dealt(drawn: pd.DataFrame, name: str, generator: np.random.Generator) -> pd.DataFrame:
    return drawn.assign(**{name: generator.permutation(drawn[name].to_numpy())})


def _uniform(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """What was drawn, a row a trial, as numbers that the search draws uniformly between 0 and 1.

    Optuna's forest shares out the variance over ranges as they are, and over combinations of a choice's values that
    there are none of (findings/optuna_fanova_space.sh).
    """
    columns = {
        name: [_place(distribution, trial.params[name]) for trial in trials]
        for name, distribution in trials[0].distributions.items()
        if not distribution.single()
    }
    return pd.DataFrame(columns, index=range(len(trials)))


def _place(distribution: BaseDistribution, value: Any) -> float:
    """The middle of what stands for the value between 0 and 1."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    take: Callable[[float], float] = math.log if distribution.log else float
    margin = (distribution.step or 0) / 2  # of whole numbers: half a step around each
    low, high = take(distribution.low - margin), take(distribution.high + margin)
    return (take(value) - low) / (high - low)


def importance_table(study: optuna.Study) -> pd.DataFrame:
    """A row a figure that the study explains and a parameter."""
    return pd.DataFrame([
        {"of": figure.name, "trials": len(figure.trials), "parameter": name, "share": one.share,
         "low": one.interval[0], "high": one.interval[1], "noise": one.chance, "above noise": one.is_above_chance}
        for figure in explained(study)
        for name, one in search_importance(figure).items()
    ])  # fmt: skip


def _shares(drawn: pd.DataFrame, values: Floats) -> dict[str, float]:
    if np.ptp(values) == 0 or (drawn.nunique() <= 1).all():  # Optuna raises an error where nothing varies
        return dict.fromkeys(drawn.columns, 0.0)
    space: dict[str, BaseDistribution] = dict.fromkeys(drawn.columns, FloatDistribution(0, 1))
    trials = [
        optuna.trial.create_trial(params=row, distributions=space, value=value)
        for row, value in zip(drawn.to_dict("records"), values.tolist(), strict=True)
    ]
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study that is made
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(told)
    study.add_trials(trials)
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # normalize: False keeps shares of the whole variance
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    return {name: float(found[name]) for name in drawn.columns}
