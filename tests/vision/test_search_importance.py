"""Importance of a search's parameters: planted laws are found again, and noise is not taken for a law."""

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from newllm_core.vision.search.importance import LEAST_TRIALS, Explained, search_importance
from newllm_core.vision.search.journal import SearchError

RESAMPLES = 30
SPACE: dict[str, BaseDistribution] = {
    "stem": CategoricalDistribution(("off", "tiny")),
    "depth": IntDistribution(2, 4),
    "top_p": FloatDistribution(0.8, 0.95),
    "temperature": FloatDistribution(0.6, 1.0),
    "patch": CategoricalDistribution((4,)),
}


def figure(num_trials: int, stem: float, depth: float, noise: float, seed: int = 0) -> Explained:
    """A sum of what the stem and each layer bring, and of noise; the other parameters do nothing."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_trials):
        trial = study.ask(SPACE)
        brought = stem * (trial.params["stem"] == "tiny") + depth * trial.params["depth"]
        values.append(brought + noise * generator.standard_normal())
        study.tell(trial, values[-1])
    return Explained("planted", study.get_trials(), values)


@pytest.mark.parametrize(("stem", "depth", "first"), [(0.1, 0.01, "stem"), (0.01, 0.1, "depth")])
def test_the_parameter_that_decides_comes_first_with_its_share(stem: float, depth: float, first: str) -> None:
    found = search_importance(figure(40, stem, depth, noise=0.002), RESAMPLES)
    variances = {"stem": stem**2 / 4, "depth": depth**2 * 2 / 3}  # of two, and of three values alike often
    share = variances[first] / (sum(variances.values()) + 0.002**2)
    assert next(iter(found)) == first and found[first].share == pytest.approx(share, abs=0.05)
    low, high = found[first].interval
    assert low - 0.05 <= share <= high + 0.05  # a forest mixes what it has not seen apart
    assert found[first].is_above_chance and not any(found[name].is_above_chance for name in ("top_p", "temperature"))
    assert "patch" not in found


def test_noise_alone_puts_hardly_a_parameter_above_chance() -> None:
    studies = [search_importance(figure(20, stem=0, depth=0, noise=1, seed=seed), 20) for seed in range(5)]
    found = [one for study in studies for one in study.values()]
    assert all(sum(one.share for one in study.values()) <= 1 for study in studies)
    assert max(one.share for one in found) > 0.5  # a forest finds something, all the same
    # Of 20, where one in 21 is expected to be above the largest of 20 permutations.
    assert sum(one.is_above_chance for one in found) <= 3


def test_few_trials_are_refused() -> None:
    with pytest.raises(SearchError, match=f"expected at least {LEAST_TRIALS} trials, given {LEAST_TRIALS - 1}"):
        search_importance(figure(LEAST_TRIALS - 1, 1, 1, 0))
