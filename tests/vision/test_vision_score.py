"""The score against the figures on record, and what it leaves undefined."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.vision.config import model_preset
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.score import (
    TARGET_ACCURACIES,
    TARGET_GLOBAL,
    ScoreError,
    attainable_maximum,
    completion_rate,
    consistency_absolute,
    consistency_relative,
    global_score,
    largest_theory,
    min_over_mean,
    score_card,
    theory_params,
    theory_scalars,
    tpe_score,
)

FOUR = tuple(TARGET_ACCURACIES)
# Scores on record for Stage 2, and the accuracies they were computed from at λ = 20 (docs/method.md, section 12.1).
STAGE2_SCORES = [0.688, 0.636, 0.524, 0.262]
STAGE2_ACCURACIES = [0.910, 0.841, 0.693, 0.346]
ACCURACIES = st.floats(0, 1)
THEORIES = st.floats(1e-6, 1e6)
SCORE_LISTS = st.lists(st.floats(0.01, 2), min_size=2, max_size=6)


def test_worked_example() -> None:
    assert tpe_score(0.9405, 20) == pytest.approx(0.7113, abs=5e-5)


def test_scores_on_record_follow_from_their_accuracies() -> None:
    assert [tpe_score(accuracy, 20) for accuracy in STAGE2_ACCURACIES] == pytest.approx(STAGE2_SCORES, abs=6e-4)


@pytest.mark.parametrize(("theory", "expected"), [(20, 0.592), (28, 0.535)])
def test_global_of_the_target_accuracies(theory: float, expected: float) -> None:
    card = score_card(TARGET_ACCURACIES, dict.fromkeys(FOUR, theory), FOUR)
    assert card.global_score == pytest.approx(expected, abs=5e-4)


def test_the_target_is_in_reach_up_to_a_theory_of_12() -> None:
    mean = sum(TARGET_ACCURACIES.values()) / 4
    assert mean == pytest.approx(0.7825)
    assert largest_theory(mean, TARGET_GLOBAL) == pytest.approx(12.1, abs=0.05)


def test_the_target_is_out_of_reach_at_depth_7_even_at_full_accuracy() -> None:
    assert attainable_maximum(28) == pytest.approx(0.684, abs=5e-4)


def test_no_theory_is_undefined() -> None:
    assert tpe_score(0.9, 0) is None
    assert attainable_maximum(0) is None


@given(ACCURACIES, THEORIES)
@settings(deadline=None)
def test_score_is_the_share_of_its_maximum_that_accuracy_says(accuracy: float, theory: float) -> None:
    score, maximum = tpe_score(accuracy, theory), attainable_maximum(theory)
    assert score is not None and maximum is not None
    assert score == pytest.approx(accuracy * maximum)
    assert maximum == pytest.approx(1 / math.log10(1 + theory), rel=1e-6)


@given(st.floats(0.05, 1), st.floats(0.1, 5))
@settings(deadline=None)
def test_largest_theory_gives_the_score_back(accuracy: float, score: float) -> None:
    assert tpe_score(accuracy, largest_theory(accuracy, score)) == pytest.approx(score)


@given(st.floats(0.01, 1), THEORIES, st.floats(1.01, 10))
@settings(deadline=None)
def test_removing_theory_is_rewarded(accuracy: float, theory: float, times: float) -> None:
    less, more = tpe_score(accuracy, theory), tpe_score(accuracy, theory * times)
    assert less is not None and more is not None and less > more


def test_both_theories_of_a_model() -> None:
    model = NkatModel(model_preset("literal", depth=5))
    assert theory_scalars(model) == 20
    assert theory_params(model) == pytest.approx((201_808 + 5 * 1_182_724) / 1e6)
    assert theory_scalars(NkatModel(model_preset("quick", nkat="off"))) == 6


def test_consistency_and_robustness_on_record() -> None:
    assert consistency_absolute(STAGE2_SCORES) == pytest.approx(0.84, abs=0.005)
    assert global_score(dict(zip(FOUR, STAGE2_SCORES)), FOUR) == pytest.approx(0.53, abs=0.005)
    assert completion_rate(dict(zip(FOUR, STAGE2_SCORES)), FOUR) == 1.0
    # By hand: mean 0.5275, population deviation 0.16434.
    assert consistency_relative(STAGE2_SCORES) == pytest.approx(1 - 0.16434 / 0.5275, abs=1e-4)
    assert min_over_mean(STAGE2_SCORES) == pytest.approx(0.262 / 0.5275)


@given(SCORE_LISTS, st.floats(0.1, 0.9))
@settings(deadline=None)
def test_shrinking_all_scores_raises_the_absolute_consistency_alone(scores: list[float], factor: float) -> None:
    smaller = [score * factor for score in scores]
    absolute, shrunk = consistency_absolute(scores), consistency_absolute(smaller)
    assert absolute is not None and shrunk is not None and shrunk >= absolute - 1e-12
    assert consistency_relative(smaller) == pytest.approx(consistency_relative(scores))
    assert min_over_mean(smaller) == pytest.approx(min_over_mean(scores))


@given(st.floats(0.01, 2), st.integers(2, 6))
@settings(deadline=None)
def test_equal_scores_are_perfectly_consistent(score: float, count: int) -> None:
    for figure in (consistency_absolute, consistency_relative, min_over_mean):
        assert figure([score] * count) == pytest.approx(1)


def test_spread_of_one_score_and_ratios_to_zero_are_undefined() -> None:
    for figure in (consistency_absolute, consistency_relative, min_over_mean):
        assert figure([0.5]) is None
        assert figure([]) is None
    assert consistency_relative([0.0, 0.0]) is None
    assert min_over_mean([0.0, 0.0]) is None


def test_global_is_over_the_named_data_sets_alone() -> None:
    scores = {"mnist": 0.6, "cifar10": 0.2, "fashion-mnist": 0.9}
    assert global_score(scores, ["mnist", "cifar10"]) == pytest.approx(0.4)
    card = score_card({"mnist": 0.9, "cifar10": 0.5, "other": 0.1}, {"mnist": 12, "cifar10": 28}, ["cifar10", "mnist"])
    assert card.data_sets == ("cifar10", "mnist")
    assert set(card.score) == set(card.accuracy) == set(card.maximum) == {"mnist", "cifar10"}


def test_a_missing_data_set_is_an_error_that_names_it() -> None:
    with pytest.raises(ScoreError, match="no score for emnist-letters: expected one for each of mnist, emnist-letters"):
        global_score({"mnist": 0.5}, ["mnist", "emnist-letters"])
    with pytest.raises(ScoreError, match="no accuracy for cifar10"):
        score_card({"mnist": 0.5}, {"mnist": 20, "cifar10": 20}, ["mnist", "cifar10"])
    with pytest.raises(ScoreError, match="no λ for cifar10"):
        score_card({"mnist": 0.5, "cifar10": 0.4}, {"mnist": 20}, ["mnist", "cifar10"])
    assert completion_rate({"mnist": 0.5}, ["mnist", "emnist-letters"]) == 0.5


@pytest.mark.parametrize("names", [[], ["mnist", "mnist"], "mnist"])
def test_names_must_be_given_and_distinct(names: list[str]) -> None:
    with pytest.raises(ScoreError, match="one or more data sets, each named once"):
        global_score({"mnist": 0.5}, names)


def test_an_undefined_score_leaves_every_figure_over_the_data_sets_undefined() -> None:
    card = score_card({"mnist": 0.9, "cifar10": 0.5}, {"mnist": 20, "cifar10": 0}, ["mnist", "cifar10"])
    assert card.score["cifar10"] is None and card.score["mnist"] is not None
    assert (card.global_score, card.global_maximum) == (None, None)
    assert (card.consistency_absolute, card.consistency_relative, card.min_over_mean) == (None, None, None)
    assert card.record()["global_score"] is None


@pytest.mark.parametrize(("accuracy", "theory"), [(1.1, 20), (-0.1, 20), (math.nan, 20), (0.5, -1), (0.5, math.inf)])
def test_figures_out_of_range_are_refused(accuracy: float, theory: float) -> None:
    with pytest.raises(ScoreError, match="expected"):
        tpe_score(accuracy, theory)


def test_percent_instead_of_a_share_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"accuracy in 0 … 1, given 94.05"):
        tpe_score(94.05, 20)
    with pytest.raises(ScoreError, match="score > 0, given 0.5 and 0"):
        largest_theory(0.5, 0)
