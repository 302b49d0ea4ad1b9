"""Which parameter decides: the share of variance that each explains alone (functional ANOVA, by Optuna).

Not PED-ANOVA, whose shares are of reaching the best tenth: a choice of two that carries 97 % of the variance gets a
fifth of what a number with 3 % gets there (findings/optuna_ped_anova_choice.sh).

Source: Hutter, Hoos, Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance".
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from newllm_core.intervals import Floats
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import finished_trials, gate_data_set, objective_names

LEAST_TRIALS = 10  # with fewer, one trial more turns the order over
_RESAMPLES, _TREES = 100, 32


@dataclass(frozen=True)
class Importance:
    """Of one parameter; shares of all sum to at most 1, and the rest is what parameters do together.

    Attributes:
        share: of the variance in the space that it explains alone, in [0, 1].
        interval: percentiles 2.5 and 97.5 of shares from as many trials, drawn anew with repetition.
        chance: percentile 97.5 of its share where values are dealt out to trials at random. A forest finds something in
            noise too, and more in a number than in a choice of two.
    """

    share: float
    interval: tuple[float, float]
    chance: float

    @property
    def is_above_chance(self) -> bool:
        return self.share > self.chance


@dataclass(frozen=True)
class Explained:
    """A figure that some trials have."""

    name: str
    trials: Sequence[FrozenTrial]
    values: Sequence[float]  # one a trial


def explained(study: optuna.Study) -> list[Explained]:
    """The accuracy of stage A, which pruned trials have too, and the first objective, which those behind the gate have
    alone; without what fewer than `LEAST_TRIALS` have. A trial that was stopped within stage A has neither."""
    stage_a, gate, complete = _through_stage_a(study), gate_data_set(study), finished_trials(study)
    figures = [
        Explained(f"accuracy on {gate}", stage_a, [one.user_attrs["accuracy"][gate] for one in stage_a]),
        Explained(objective_names(study)[0], complete, [one.values[0] for one in complete]),
    ]
    return [one for one in figures if len(one.trials) >= LEAST_TRIALS]


def _through_stage_a(study: optuna.Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [trial for trial in trials if "accuracy" in trial.user_attrs]


def search_importance(figure: Explained, resamples: int = 100) -> dict[str, Importance]:
    """By parameter, most important first; parameters with one possible value are left out.

    Raises SearchError for fewer than `LEAST_TRIALS`.
    """
    count = len(figure.trials)
    if count < LEAST_TRIALS:
        raise SearchError(f"importance: expected at least {LEAST_TRIALS} trials, given {count}")
    generator, rows, values = np.random.default_rng(0), np.arange(count), np.asarray(figure.values)
    estimate = _shares(figure.trials, values)
    again = [generator.integers(count, size=count) for _ in range(resamples)]
    drawn = pd.DataFrame([_shares([figure.trials[row] for row in some], values[some]) for some in again])
    dealt = pd.DataFrame([_shares(figure.trials, values[generator.permutation(rows)]) for _ in range(resamples)])
    low, high, chance = drawn.quantile(0.025), drawn.quantile(0.975), dealt.quantile(0.975)
    return {
        name: Importance(estimate[name], (float(low[name]), float(high[name])), float(chance[name]))
        for name in sorted(estimate, key=lambda one: -estimate[one])
    }


def importance_table(study: optuna.Study) -> pd.DataFrame:
    """A row a figure that the study explains and a parameter."""
    return pd.DataFrame([
        {"of": figure.name, "trials": len(figure.trials), "parameter": name, "share": one.share,
         "low": one.interval[0], "high": one.interval[1], "noise": one.chance, "above noise": one.is_above_chance}
        for figure in explained(study)
        for name, one in search_importance(figure).items()
    ])  # fmt: skip


def _shares(trials: Sequence[FrozenTrial], values: Floats) -> dict[str, float]:
    drawn = [
        optuna.trial.create_trial(params=one.params, distributions=one.distributions, value=float(value))
        for one, value in zip(trials, values, strict=True)
    ]
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study that is made
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(told)
    study.add_trials(drawn)
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # normalize: False keeps shares of the whole variance
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    names = [name for name, values in trials[0].distributions.items() if not values.single()]
    return {name: float(found[name]) for name in names}
