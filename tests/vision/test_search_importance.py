"""Importance of a search's parameters: planted laws are found again, and noise is not taken for a law."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from newllm_core.vision.search.importance import LEAST_TRIALS, Explained, search_importance
from newllm_core.vision.search.journal import SearchError

RESAMPLES = 20
SPACE: dict[str, BaseDistribution] = {
    "stem": CategoricalDistribution(("off", "tiny")),
    "depth": IntDistribution(2, 4),
    "learning_rate": FloatDistribution(3e-4, 3e-3, log=True),
    "top_p": FloatDistribution(0.8, 0.95),
    "patch": CategoricalDistribution((4,)),
}
Law = Callable[[dict[str, Any]], float]


def figure(num_trials: int, law: Law, noise: float, seed: int = 0) -> Explained:
    """What a law and noise make of trials that are drawn at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_trials):
        trial = study.ask(SPACE)
        values.append(law(trial.params) + noise * generator.standard_normal())
        study.tell(trial, values[-1])
    return Explained("planted", study.get_trials(), values)


def stem_and_depth(stem: float, depth: float) -> Law:
    return lambda params: stem * (params["stem"] == "tiny") + depth * params["depth"]


@pytest.mark.parametrize(("stem", "depth", "first"), [(0.1, 0.01, "stem"), (0.01, 0.1, "depth")])
def test_the_parameter_that_decides_comes_first_and_both_that_matter_are_above_chance(
    stem: float, depth: float, first: str
) -> None:
    found = search_importance(figure(40, stem_and_depth(stem, depth), noise=0.002), RESAMPLES)
    variances = {"stem": stem**2 / 4, "depth": depth**2 * 2 / 3}  # of two, and of three values alike often
    share = variances[first] / (sum(variances.values()) + 0.002**2)
    assert next(iter(found)) == first and found[first].share == pytest.approx(share, abs=0.05)
    low, high = found[first].interval
    assert low - 0.05 <= share <= high + 0.05  # a forest mixes what it has not seen apart
    above = [name for name, one in found.items() if one.is_above_chance]
    assert sorted(above) == ["depth", "stem"] and set(found) == {"stem", "depth", "learning_rate", "top_p"}


@pytest.mark.parametrize(
    ("name", "is_low"),
    [("learning_rate", lambda value: value < 5e-4), ("depth", lambda value: value < 3)],
)
def test_numbers_count_as_they_are_drawn(name: str, is_low: Callable[[float], bool]) -> None:
    """A part of the learning rates, which are drawn by their logarithm, and a third of the depths; beside the stem."""
    share_of_low = {"learning_rate": math.log(5 / 3) / math.log(10), "depth": 1 / 3}[name]
    variance = share_of_low * (1 - share_of_low)
    law: Law = lambda params: is_low(params[name]) + math.sqrt(4 * variance) * (params["stem"] == "tiny")  # noqa: E731
    found = search_importance(figure(120, law, noise=0), 2, 1)
    assert [found[one].share for one in (name, "stem")] == pytest.approx([0.5, 0.5], abs=0.02)


def test_noise_alone_puts_hardly_a_parameter_above_chance() -> None:
    studies = [search_importance(figure(20, lambda params: 0, noise=1, seed=seed), 2) for seed in range(3)]
    found = [one for study in studies for one in study.values()]
    assert all(sum(one.share for one in study.values()) <= 1 for study in studies)
    assert max(one.share for one in found) > 0.4  # a forest finds something, all the same
    assert sum(one.is_above_chance for one in found) <= 1  # of twelve, each with a chance of one in 40


def test_figures_that_do_not_vary_are_explained_by_nothing() -> None:
    found = search_importance(figure(12, lambda params: 0.9, noise=0), RESAMPLES)
    assert all((one.share, one.interval, one.chance) == (0, (0, 0), 0) for one in found.values())
    assert not any(one.is_above_chance for one in found.values())


def test_few_trials_are_refused() -> None:
    with pytest.raises(SearchError, match=f"expected at least {LEAST_TRIALS} trials, given {LEAST_TRIALS - 1}"):
        search_importance(figure(LEAST_TRIALS - 1, lambda params: 0, noise=1))
