"""The scaling law: planted laws are recovered, intervals cover what they claim, bad points are refused."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from newllm_core.config.schema import ConfigError
from newllm_core.intervals import is_distinguishable
from newllm_core.scaling.bootstrap import LEVELS, ScalingPoint, bootstrap_alpha, draw_resamples, points_from_losses
from newllm_core.scaling.floor import NOT_IDENTIFIED, bootstrap_floor_law, fit_floor_law
from newllm_core.scaling.law import (
    ScalingError,
    extrapolate,
    fit_power_law,
    mean_over_seeds,
    sample_sizes,
    sliding_windows,
)
from newllm_core.scaling.progression import alpha_progression, progression_record, progression_table

# On record in the research notes: 50, 100, 200 samples, MCDL, two-layer FFN.
NOTES_TOKENS = [62_891, 122_795, 240_132]
NOTES_PERPLEXITY = [568.0, 422.2, 353.4]
SIZES = 12_000.0 * 2.0 ** np.arange(6)

exponents = st.floats(-1.5, -0.05)
growing_tokens = st.lists(st.floats(1.2, 4.0), min_size=2, max_size=8).map(lambda steps: 1e4 * np.cumprod(steps))


def power_law(alpha: float, tokens: np.ndarray, at_last: float = 50.0) -> np.ndarray:
    return at_last * (tokens / tokens[-1]) ** alpha


def simulated_points(rng: np.random.Generator, num_seeds: int = 3, num_conversations: int = 8) -> list[ScalingPoint]:
    """α = -0.3 with deviations of sizes, seeds and conversations."""
    counts = rng.integers(500, 2_000, size=num_conversations).astype(float)
    hard = rng.normal(scale=0.3, size=num_conversations)
    losses = np.log(power_law(-0.3, SIZES)) + rng.normal(scale=0.02, size=len(SIZES))
    seeds = rng.normal(scale=0.02, size=(len(SIZES), num_seeds, 1))
    return [
        ScalingPoint(size, (loss + of_size + hard) * counts, counts)
        for size, loss, of_size in zip(SIZES, losses, seeds)
    ]


# Sizes and windows


def test_default_sizes_are_those_of_the_specification() -> None:
    assert sample_sizes(50, 2, 4, 2) == [50, 100, 200, 400, 800]


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(1.01, 5.0), st.integers(2, 6), st.integers(1, 5))
def test_sizes_increase_strictly_and_fill_every_window(init: int, multiplier: float, window: int, windows: int) -> None:
    try:
        sizes = sample_sizes(init, multiplier, window, windows)
    except ScalingError:
        rounded = [round(init * multiplier**step) for step in range(window + windows - 1)]
        assert len(set(rounded)) < len(rounded)
        return
    assert all(smaller < larger for smaller, larger in zip(sizes, sizes[1:]))
    assert len(sliding_windows(sizes, window)) == windows
    assert sizes == [round(init * multiplier**step) for step in range(len(sizes))]


def test_sizes_that_round_to_the_same_are_refused() -> None:
    with pytest.raises(ScalingError, match=r"strictly increasing, given 1 then 1 in \[1, 1, 1\].*multiplier=1.1"):
        sample_sizes(1, 1.1, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, 4, 2), "init_samples: expected at least 1, given 0"),
        ((50, 1.0, 4, 2), "multiplier: expected more than 1, given 1.0"),
        ((50, math.nan, 4, 2), "multiplier: expected a finite number, given nan"),
        ((50, 2, 1, 2), "window_size: expected at least 2, given 1"),
        ((50, 2, 4, 0), "num_windows: expected at least 1, given 0"),
        ((50.5, 2, 4, 2), "init_samples: expected int, given 50.5"),
    ],
)
def test_impossible_sizes_say_what_was_expected(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        sample_sizes(*arguments)


def test_sizes_beyond_any_number_are_refused() -> None:
    with pytest.raises(ScalingError, match="sample sizes must be finite"):
        sample_sizes(50, 100, 100, 100)
    with pytest.raises(ConfigError, match="multiplier: expected at most 100"):
        sample_sizes(50, 1e3, 4, 2)
    with pytest.raises(ConfigError, match="multiplier: expected a finite number, given inf"):
        sample_sizes(50, math.inf, 4, 2)


def test_windows_slide_by_one_point() -> None:
    assert sliding_windows([1, 2, 3, 4], 3) == [[1, 2, 3], [2, 3, 4]]


def test_fewer_points_than_a_window_names_both() -> None:
    with pytest.raises(ScalingError, match="fewer points than a window: 3 points, window_size=4"):
        sliding_windows([1, 2, 3], 4)


def test_a_window_of_one_point_is_refused() -> None:
    with pytest.raises(ScalingError, match="at least 2 points, given window_size=1"):
        sliding_windows([1, 2, 3], 1)


# The power law


def test_the_notes_figures_give_the_notes_alpha() -> None:
    assert fit_power_law(NOTES_TOKENS, NOTES_PERPLEXITY).alpha == pytest.approx(-0.354, abs=0.0005)


def test_the_notes_alphas_of_three_points_cannot_be_told_apart() -> None:
    interval = fit_power_law(NOTES_TOKENS, NOTES_PERPLEXITY).alpha_interval
    assert interval is not None
    assert not is_distinguishable(interval, -0.407)
    assert not is_distinguishable(interval, -0.568)


@settings(deadline=None)
@given(exponents, growing_tokens)
def test_a_law_without_noise_is_recovered_exactly(alpha: float, tokens: np.ndarray) -> None:
    perplexity = power_law(alpha, tokens)
    assume(perplexity[0] < 1e12)
    fit = fit_power_law(tokens, perplexity)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-9)
    assert pytest.approx(perplexity[0]) == fit.A * tokens[0] ** fit.alpha
    assert fit.predict(tokens[-1]) == pytest.approx(perplexity[-1])


@settings(deadline=None)
@given(exponents, st.integers(0, 10_000))
def test_fit_and_interval_equal_the_normal_equations(alpha: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(scale=0.05, size=len(SIZES))
    perplexity = power_law(alpha, SIZES) * np.exp(noise)
    fit = fit_power_law(SIZES, perplexity)
    design = np.column_stack([np.ones(len(SIZES)), np.log(SIZES)])
    solution, squares, *_ = np.linalg.lstsq(design, np.log(perplexity), rcond=None)
    error = math.sqrt(squares[0] / 4 * np.linalg.inv(design.T @ design)[1, 1])
    t_of_four_degrees = 2.7764451
    assert (fit.log_A, fit.alpha) == pytest.approx(tuple(solution), abs=1e-8)
    assert fit.alpha_standard_error == pytest.approx(error, rel=1e-6)
    assert fit.alpha_interval == pytest.approx(
        (fit.alpha - t_of_four_degrees * error, fit.alpha + t_of_four_degrees * error), abs=1e-7
    )


@pytest.mark.parametrize("num_points", [4, 6])
def test_nominal_intervals_cover_95_percent_of_simulated_data(num_points: int) -> None:
    rng, alpha, tokens = np.random.default_rng(0), -0.35, SIZES[:num_points]
    data = power_law(alpha, tokens) * np.exp(rng.normal(scale=0.03, size=(4_000, num_points)))
    intervals = np.array([fit_power_law(tokens, row).alpha_interval for row in data])
    covered = ((intervals[:, 0] <= alpha) & (alpha <= intervals[:, 1])).mean()
    assert 0.93 <= covered <= 0.97


def test_two_points_have_no_interval() -> None:
    fit = fit_power_law(NOTES_TOKENS[:2], NOTES_PERPLEXITY[:2])
    assert fit.alpha_interval is None
    assert fit.alpha_standard_error is None


@pytest.mark.parametrize(
    ("tokens", "perplexity", "message"),
    [
        ([100], [50.0], "at least 2 points, given 1"),
        ([], [], "at least 2 points, given 0"),
        ([100, 200], [50.0, 40.0, 30.0], "given 2 tokens and 3 of perplexity"),
        ([200, 100], [50.0, 40.0], "tokens must be strictly increasing, given 200 then 100"),
        ([100, 100], [50.0, 40.0], "tokens must be strictly increasing, given 100 then 100"),
        ([0, 100], [50.0, 40.0], "tokens[0]: expected a finite number above 0, given 0"),
        ([-5, 100], [50.0, 40.0], "tokens[0]: expected a finite number above 0, given -5"),
        ([100, math.inf], [50.0, 40.0], "tokens[1]: expected a finite number above 0, given inf"),
        ([100, 200], [50.0, 1.0], "perplexity[1]: expected a finite number above 1, given 1"),
        ([100, 200], [50.0, 0.0], "perplexity[1]: expected a finite number above 1, given 0"),
        ([100, 200], [50.0, None], "perplexity[1] is missing"),
        ([100, 200], [math.nan, 40.0], "perplexity[0] is missing"),
        ([100, 200], [math.inf, 40.0], "perplexity[0]: expected a finite number above 1, given inf"),
        ([100, 200], [40.0, 40.0], "perplexity is 40 at every size"),
        ([[100, 200]], [40.0, 40.0], "tokens: expected one row of numbers, given shape [1, 2]"),
        ([10**6, 10**6 + 1], [50.0, 40.0], "sizes [1000000.0, 1000001.0] are too close"),
        ([10**6, 10**6 + 1], [40.0, 50.0], "sizes [1000000.0, 1000001.0] are too close"),
        ([10**15, 10**15 + 1], [50.0, 40.0], "given 1000000000000000 then 1000000000000001"),
    ],
)
def test_points_that_cannot_be_fitted_say_why(tokens: list, perplexity: list, message: str) -> None:
    with pytest.raises(ScalingError, match=re.escape(message)):
        fit_power_law(tokens, perplexity)


def test_the_mean_over_seeds_is_the_exponential_of_the_mean_loss() -> None:
    assert mean_over_seeds([math.exp(2.0), math.exp(4.0)]) == pytest.approx(math.exp(3.0))
    assert mean_over_seeds([353.4]) == 353.4


@pytest.mark.parametrize(("values", "message"), [([], "at least one seed"), ([50.0, None], r"seeds\[1\] is missing")])
def test_a_size_without_all_its_seeds_is_refused(values: list, message: str) -> None:
    with pytest.raises(ScalingError, match=message):
        mean_over_seeds(values)


# Extrapolation


@settings(deadline=None)
@given(exponents, st.integers(1, 3))
def test_a_law_without_noise_predicts_what_it_did_not_see(alpha: float, holdout: int) -> None:
    result = extrapolate(SIZES, power_law(alpha, SIZES), holdout)
    assert [point.tokens for point in result.points] == list(SIZES[-holdout:])
    assert result.fit.num_points == len(SIZES) - holdout
    assert [point.error_percent for point in result.points] == pytest.approx([0.0] * holdout, abs=1e-6)


def test_extrapolation_error_is_relative_to_the_measured_value() -> None:
    perplexity = power_law(-0.3, SIZES)
    perplexity[-1] *= 1.25
    missed = extrapolate(SIZES, perplexity, holdout=1).points[0]
    assert missed.error_percent == pytest.approx(-20.0)
    assert missed.perplexity == pytest.approx(1.25 * missed.predicted_perplexity)


def test_prediction_intervals_cover_95_percent_of_simulated_points() -> None:
    rng = np.random.default_rng(1)
    data = power_law(-0.3, SIZES) * np.exp(rng.normal(scale=0.03, size=(2_000, len(SIZES))))
    points = [extrapolate(SIZES, row, holdout=1).points[0] for row in data]
    covered = np.mean([p.prediction_interval[0] <= p.perplexity <= p.prediction_interval[1] for p in points])
    assert 0.93 <= covered <= 0.97


def test_extrapolation_from_two_points_has_no_interval() -> None:
    points = extrapolate(SIZES[:4], [400.0, 300.0, 250.0, 220.0]).points
    assert [point.prediction_interval for point in points] == [None, None]


@pytest.mark.parametrize(
    ("num_points", "holdout", "message"),
    [
        (3, 2, "needs 2 points to fit beside the 2 held out, given 3 points"),
        (4, 0, "at least 1 point to predict, given 0"),
    ],
)
def test_too_few_points_to_extrapolate_is_refused(num_points: int, holdout: int, message: str) -> None:
    with pytest.raises(ScalingError, match=message):
        extrapolate(SIZES[:num_points], power_law(-0.3, SIZES[:num_points]), holdout)


# Comparison


# Progression of α


def test_each_window_is_the_fit_of_its_points() -> None:
    perplexity = 20.0 + power_law(-0.4, SIZES)
    progression = alpha_progression(SIZES, [10, 20, 40, 80, 160, 320], perplexity, 4)
    for first, row in enumerate(progression.rows):
        fit = fit_power_law(SIZES[first : first + 4], perplexity[first : first + 4])
        assert (row.alpha, row.A, row.r_squared, row.alpha_interval) == (
            fit.alpha,
            fit.A,
            fit.r_squared,
            fit.alpha_interval,
        )
    assert [row.samples for row in progression.rows] == [(10, 20, 40, 80), (20, 40, 80, 160), (40, 80, 160, 320)]
    assert [row.alpha_change for row in progression.rows] == [
        None,
        progression.rows[1].alpha - progression.rows[0].alpha,
        progression.rows[2].alpha - progression.rows[1].alpha,
    ]


def test_a_floor_makes_alpha_rise_and_the_trend_says_so() -> None:
    progression = alpha_progression(SIZES, [10, 20, 40, 80, 160, 320], 20.0 + power_law(-0.4, SIZES), 4)
    assert progression.trend_per_decade is not None
    assert progression.trend_per_decade > 0
    assert "falls more slowly at larger sizes" in progression.trend


@settings(deadline=None)
@given(exponents)
def test_a_pure_power_law_has_no_trend(alpha: float) -> None:
    progression = alpha_progression(SIZES, [10, 20, 40, 80, 160, 320], power_law(alpha, SIZES), 4)
    assert progression.trend_per_decade == pytest.approx(0.0, abs=1e-8)


def test_one_window_has_no_trend() -> None:
    progression = alpha_progression(SIZES[:4], [1, 2, 3, 4], power_law(-0.3, SIZES[:4]), 4)
    assert progression.trend_per_decade is None
    assert "undefined, there is one window" in progression.trend


def test_seeds_are_averaged_before_the_fit() -> None:
    perplexity = power_law(-0.3, SIZES)
    seeds = [[value * 1.1, value / 1.1] for value in perplexity]
    with_seeds = alpha_progression(SIZES, range(1, 7), seeds, 4)
    assert with_seeds.num_seeds == (2,) * 6
    assert [row.alpha for row in with_seeds.rows] == pytest.approx([-0.3] * 3)


def test_the_table_calls_overlapping_windows_not_distinguishable() -> None:
    tokens, perplexity = [*NOTES_TOKENS, 470_000, 900_000], [*NOTES_PERPLEXITY, 320.0, 299.0]
    table = progression_table(alpha_progression(tokens, [50, 100, 200, 400, 800], perplexity, 4))
    lines = table.splitlines()
    assert "change of α" in lines[0]
    assert re.search(r"50–400 +62,891–470,000 +-0\.283 \[-0\.485, -0\.081\] .* –$", lines[2])
    assert re.search(r"100–800 .* \+0\.112$", lines[3])
    assert lines[4].endswith("not distinguishable (the 95 % intervals overlap)")
    assert lines[5].startswith("trend of α: +0.389 per tenfold tokens over 2 windows")


def test_the_record_survives_strict_json() -> None:
    progression = alpha_progression(SIZES[:3], [10, 20, 40], [300.0, 200.0, 150.0], 2)
    record = json.loads(json.dumps(progression_record(progression), allow_nan=False))
    assert record["rows"][0]["alpha_interval"] is None
    assert record["rows"][1]["alpha"] == progression.rows[1].alpha


@pytest.mark.parametrize(
    ("samples", "perplexity", "message"),
    [
        ([1, 2], [5.0, 4.0, 3.0], "one number of samples per size, given 2 for 3 tokens"),
        ([1, 3, 2], [5.0, 4.0, 3.0], "samples must be strictly increasing, given [1, 3, 2]"),
        ([1, 2, 3], [5.0, 4.0], "one perplexity per size, given 2 for 3 tokens"),
        ([1, 2, 3], [5.0, [4.0, None], 3.0], "seeds[1] is missing"),
    ],
)
def test_a_progression_of_unequal_lists_is_refused(samples: list, perplexity: list, message: str) -> None:
    with pytest.raises(ScalingError, match=re.escape(message)):
        alpha_progression([100, 200, 400], samples, perplexity, 2)


# Bootstrap of α


def test_the_bootstrap_estimate_is_the_power_law_fit() -> None:
    points = simulated_points(np.random.default_rng(2))
    fit = fit_power_law(SIZES, np.exp([point.loss for point in points]))
    assert bootstrap_alpha(points, 200).alpha == pytest.approx(fit.alpha, abs=1e-12)


def test_the_bootstrap_interval_holds_alpha_and_repeats_with_its_seed() -> None:
    points = simulated_points(np.random.default_rng(3))
    once, again, other = (bootstrap_alpha(points, 1_000, seed) for seed in (1, 1, 2))
    assert once == again
    assert once.alpha_interval != other.alpha_interval
    assert once.alpha_interval is not None
    assert once.alpha_interval[0] < -0.3 < once.alpha_interval[1]


def test_resampled_slopes_equal_fits_of_the_drawn_points() -> None:
    points = points_from_losses(SIZES, [3.0, 2.8, 2.65, 2.5, 2.4, 2.2])
    draws = draw_resamples(points, 100, 5, ("points",), min_distinct=2)
    slopes = [np.polyfit(x, loss, 1)[0] for x, loss in zip(draws.log_tokens, draws.loss)]
    expected = tuple(np.quantile(slopes, [0.025, 0.975]))
    assert bootstrap_alpha(points, 100, 5, ("points",)).alpha_interval == pytest.approx(expected, abs=1e-9)


def test_conversations_are_drawn_once_for_all_points() -> None:
    counts = np.array([100.0, 300.0, 200.0])
    hard = np.array([[0.0, 1.0, 2.5]])
    points = [ScalingPoint(size, (4.0 - 0.3 * k + hard) * counts, counts) for k, size in enumerate(SIZES[:4])]
    draws = draw_resamples(points, 100, 0, ("conversations",), min_distinct=2)
    assert np.ptp(draws.loss[:, 0]) > 0.1
    assert np.diff(draws.loss, axis=1) == pytest.approx(np.full((100, 3), -0.3))


def test_a_resampled_loss_is_the_weighted_mean_over_its_conversations() -> None:
    point = ScalingPoint(100.0, np.array([[100.0, 900.0]]), np.array([50.0, 300.0]))
    other = dataclasses.replace(point, tokens=200.0)
    losses = draw_resamples([point, other], 200, 0, ("conversations",), min_distinct=2).loss
    assert sorted(set(np.round(losses.ravel(), 9))) == pytest.approx([2.0, 1000 / 350, 3.0])
    assert point.loss == pytest.approx(1000 / 350)


def test_seeds_are_drawn_within_their_own_size() -> None:
    counts = np.ones(1)
    points = [ScalingPoint(100.0, np.array([[5.0], [6.0]]), counts), ScalingPoint(200.0, np.array([[3.0]]), counts)]
    losses = draw_resamples(points, 200, 0, ("seeds",), min_distinct=2).loss
    assert set(losses[:, 0]) == {5.0, 5.5, 6.0}
    assert set(losses[:, 1]) == {3.0}


def test_draws_of_a_single_size_are_left_out_and_counted() -> None:
    points = points_from_losses(SIZES[:2], [3.0, 2.5])
    result = bootstrap_alpha(points, 1_000, 0, ("points",))
    # Two of the four ordered pairs hold both sizes; four standard deviations of 1,000 draws.
    assert result.num_used == pytest.approx(500, abs=64)
    assert result.num_resamples == 1_000
    assert result.alpha_interval == pytest.approx((result.alpha, result.alpha))


def test_too_few_usable_draws_give_no_interval() -> None:
    result = bootstrap_alpha(points_from_losses(SIZES[:2], [3.0, 2.5]), 100, 0, ("points",))
    assert result.num_used < 100
    assert result.alpha_interval is None


@pytest.mark.parametrize(
    ("points", "arguments", "message"),
    [
        (points_from_losses([100], [3.0]), {}, "at least 2 points, given 1"),
        (points_from_losses([100, 200], [3.0, 2.0]), {"num_resamples": 10}, "at least 100 resamples, given 10"),
        (
            points_from_losses([100, 200], [3.0, 2.0]),
            {"levels": ("runs",)},
            "points, seeds, conversations, given ['runs']",
        ),
        (points_from_losses([100, 200], [3.0, 2.0]), {"levels": ()}, "points, seeds, conversations, given []"),
        (points_from_losses([100, 200], [3.0, 2.0])[::-1], {}, "strictly increasing, given 200 then 100"),
        (
            [
                ScalingPoint(100.0, np.full((1, 2), 9.0), np.ones(2)),
                ScalingPoint(200.0, np.full((1, 1), 9.0), np.ones(1)),
            ],
            {},
            "same conversations: token counts at 200 and 100 tokens differ",
        ),
    ],
)
def test_a_bootstrap_that_cannot_be_says_why(points: list, arguments: dict, message: str) -> None:
    with pytest.raises(ScalingError, match=re.escape(message)):
        bootstrap_alpha(points, **arguments)


@pytest.mark.parametrize(
    ("loss_sums", "token_counts", "message"),
    [
        (np.ones(3), np.ones(3), "given [3] and [3]"),
        (np.ones((2, 3)), np.ones(2), "given [2, 3] and [2]"),
        (np.ones((0, 3)), np.ones(3), "given [0, 3] and [3]"),
        (np.array([[1.0, np.nan]]), np.ones(2), "every sum must be finite and above 0 nats"),
        (np.ones((1, 2)), np.array([1.0, 0.0]), "every count must be finite and above 0"),
    ],
)
def test_a_point_of_impossible_sums_is_refused(loss_sums: np.ndarray, token_counts: np.ndarray, message: str) -> None:
    with pytest.raises(ScalingError, match=re.escape(message)):
        ScalingPoint(100.0, loss_sums, token_counts)


# The law with a floor


@settings(deadline=None, max_examples=40)
@given(st.floats(0.8, 3.0), st.floats(0.15, 0.8))
def test_a_floor_within_a_wide_span_is_recovered(floor: float, beta: float) -> None:
    tokens = 1e4 * 4.0 ** np.arange(8)
    fit = fit_floor_law(tokens, floor + 5.0 * (tokens / tokens[0]) ** -beta)
    assert fit.success
    assert fit.E_identified
    assert pytest.approx(floor, rel=1e-3) == fit.E
    assert fit.beta == pytest.approx(beta, rel=1e-3)
    assert fit.B * tokens[0] ** -fit.beta == pytest.approx(5.0, rel=1e-3)
    assert fit.predict(tokens[0]) == pytest.approx(floor + 5.0, rel=1e-4)


def test_one_outlier_moves_the_floor_little() -> None:
    tokens = 1e4 * 4.0 ** np.arange(10)
    loss = 1.7 + 5.0 * (tokens / tokens[0]) ** -0.3
    loss[4] *= 1.05
    assert pytest.approx(1.7, rel=1e-2) == fit_floor_law(tokens, loss).E


def test_the_floor_is_found_from_noisy_losses_of_a_wide_span() -> None:
    tokens = 1e4 * 4.0 ** np.arange(10)
    noise = np.random.default_rng(4).normal(scale=0.003, size=10)
    points = points_from_losses(tokens, (2.0 + 5.0 * (tokens / tokens[0]) ** -0.4) * np.exp(noise))
    result = bootstrap_floor_law(points, 200)
    assert result.E_identified
    assert result.E_interval is not None and result.beta_interval is not None
    assert result.E_interval[0] < 2.0 < result.E_interval[1]
    assert result.beta_interval[0] < 0.4 < result.beta_interval[1]
    assert result.statement.startswith("E = ")
    assert result.num_used + result.num_failed <= result.num_resamples


@pytest.mark.parametrize(
    ("floor", "ratio", "num_sizes"),
    [(0.0, 2.0, 5), (0.0, 4.0, 10), (0.02, 2.0, 5), (3.0, 1.3, 5)],
    ids=["no floor", "no floor, wide span", "tiny floor", "short span"],
)
def test_a_floor_that_noise_hides_is_not_identified(floor: float, ratio: float, num_sizes: int) -> None:
    tokens = 1e4 * ratio ** np.arange(num_sizes)
    noise = np.random.default_rng(5).normal(scale=0.01, size=num_sizes)
    fit = fit_floor_law(tokens, (floor + (6.0 - floor) * (tokens / tokens[0]) ** -0.1) * np.exp(noise))
    assert not fit.E_identified
    assert fit.statement.startswith(NOT_IDENTIFIED)


def test_a_floor_below_the_resolution_is_not_identified_even_without_noise() -> None:
    fit = fit_floor_law(SIZES, 0.3 + 6.0 * (SIZES / SIZES[0]) ** -0.1)
    assert not fit.E_identified
    assert "no more than delta" in fit.statement


def test_a_fall_within_one_step_puts_beta_at_its_bound() -> None:
    fit = fit_floor_law(SIZES, [9.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    assert not fit.E_identified
    assert "β = 5 lies at a bound of 0 … 5" in fit.statement


def test_a_loss_that_falls_ever_faster_has_no_floor() -> None:
    fit = fit_floor_law(SIZES, [6.0, 5.9, 5.7, 5.3, 4.5, 2.9])
    assert fit.E == 0.0
    assert not fit.E_identified
    assert fit.floor_p_value == pytest.approx(1.0, abs=1e-3)


def test_three_points_never_identify_a_floor() -> None:
    fit = fit_floor_law(SIZES[:3], [6.0, 4.0, 3.0])
    assert fit.floor_p_value is None
    assert fit.statement == f"{NOT_IDENTIFIED}: 3 points leave no residual beside 3 parameters"


def test_a_bootstrap_interval_that_reaches_zero_overrules_the_fit() -> None:
    tokens = 1e4 * 4.0 ** np.arange(5)
    noise = np.random.default_rng(6).normal(scale=0.01, size=5)
    result = bootstrap_floor_law(
        points_from_losses(tokens, (1.7 + 4.3 * (tokens / tokens[0]) ** -0.3) * np.exp(noise)), 200
    )
    assert result.fit.E_identified
    assert result.E_interval is not None and result.E_interval[0] == 0.0
    assert not result.E_identified
    assert re.match(rf"{NOT_IDENTIFIED}: its bootstrap interval \[0\.000, .*\] reaches 0", result.statement)


def test_the_floor_bootstrap_repeats_with_its_seed() -> None:
    points = simulated_points(np.random.default_rng(6))
    once, again = (bootstrap_floor_law(points, 100, seed=3) for _ in range(2))
    assert once == again
    assert once.levels == LEVELS


@pytest.mark.parametrize(
    ("tokens", "loss", "message"),
    [
        ([100, 200], [3.0, 2.0], "at least 3 points, given 2"),
        ([100, 200, 400], [3.0, 2.0, 0.0], "loss[2]: expected a finite number above 0, given 0"),
        ([100, 200, 400], [3.0, None, 2.0], "loss[1] is missing"),
        ([100, 400, 200], [3.0, 2.5, 2.0], "strictly increasing, given 400 then 200"),
        ([100, 200, 400, 800], [3.0, 2.5, 2.0], "given 4 tokens and 3 of loss"),
    ],
)
def test_losses_that_cannot_be_fitted_say_why(tokens: list, loss: list, message: str) -> None:
    with pytest.raises(ScalingError, match=re.escape(message)):
        fit_floor_law(tokens, loss)
