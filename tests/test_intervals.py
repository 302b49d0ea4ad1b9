"""Intervals: they hold known answers, cover, and one rule says what is not distinguishable."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from newllm_core.intervals import (
    LARGEST_NATS,
    Estimate,
    clustered_mean,
    comparison_text,
    correlation,
    interval_text,
    is_distinguishable,
    newcombe_difference,
    over_seeds,
    paired_difference,
    paired_ratio,
    seeds_text,
    wilson_interval,
)

# One rule


@settings(deadline=None)
@given(*[st.tuples(st.floats(-5, 5), st.floats(0, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))] * 2)
def test_intervals_are_distinguishable_exactly_when_they_share_no_point(a: tuple, b: tuple) -> None:
    assert is_distinguishable(a, b) == (max(a[0], b[0]) > min(a[1], b[1]))
    assert is_distinguishable(a, b) == is_distinguishable(b, a)
    assert ("not distinguishable" in comparison_text("a", a, "b", b)) == (not is_distinguishable(a, b))


def test_an_undefined_interval_tells_nothing_apart() -> None:
    assert not is_distinguishable(None, (0.0, 1.0))
    text = comparison_text("MCDL", None, "ODCM", (0.0, 1.0))
    assert text == "MCDL [–], ODCM [0.000, 1.000]: not distinguishable (an interval is undefined)"


@pytest.mark.parametrize("interval", [(1.0, 0.0), (math.nan, 1.0)])
def test_an_interval_upside_down_is_refused(interval: tuple) -> None:
    with pytest.raises(ValueError, match="low <= high"):
        is_distinguishable((0.0, 1.0), interval)


@pytest.mark.parametrize(
    "estimate, verdict",
    [
        (Estimate(1.2, (1.1, 1.3), (1.1, 1.3), 1.0), "distinguishable"),
        (Estimate(1.2, (1.1, 1.3), (1.2,), 1.0), "distinguishable for this seed alone"),
        (Estimate(1.2, (1.0, 1.3), (1.2,), 1.0), "not distinguishable"),
        (Estimate(1.2, None, (1.2,), 1.0), "not distinguishable"),
        (Estimate(-0.4, (-0.5, -0.3), (-0.4, -0.4), 0.0), "distinguishable"),
    ],
)
def test_a_verdict_is_of_the_interval_and_the_number_of_seeds(estimate: Estimate, verdict: str) -> None:
    assert estimate.verdict == verdict


def test_text_has_one_form() -> None:
    assert Estimate(1.2, (1.1, 1.3)).text() == "1.200 [1.100, 1.300]"
    assert Estimate(1.2, None).text("{:+.1f}") == "+1.2 [–]"
    assert interval_text((1000.0, 2000.0), "{:,.0f}") == "[1,000, 2,000]"


# Over seeds and conversations


def test_mean_over_seeds_has_the_t_interval() -> None:
    mean = over_seeds([1.0, 2.0, 6.0])
    assert mean.value == pytest.approx(3.0) and mean.by_seed == (1.0, 2.0, 6.0) and seeds_text(mean) == "3 seeds"
    assert mean.interval == pytest.approx(stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0])))
    assert over_seeds([2.0]) == Estimate(2.0, None, (2.0,)) and seeds_text(over_seeds([2.0])) == "1 seed"
    assert over_seeds([1.0, 50.0, 99.0], percent=True).interval == (0.0, 100.0)
    with pytest.raises(ValueError, match="at least one seed, given none"):
        over_seeds([])


def test_a_single_seed_gives_the_t_interval_over_conversations_and_the_other_way_round() -> None:
    losses, counts = np.array([5.0, 6.0, 6.5, 7.5]), np.full(4, 100.0)
    expected = stats.t.interval(0.95, 3, loc=losses.mean(), scale=stats.sem(losses))
    for sums, of in ((100 * losses[None], counts), (100 * losses[:, None], counts[:1])):
        mean = clustered_mean(sums, of)
        assert mean.value == pytest.approx(losses.mean()) and mean.interval == pytest.approx(expected)
    assert clustered_mean(np.array([[500.0]]), counts[:1]) == Estimate(5.0, None, (5.0,))


def test_conversations_without_a_token_say_nothing() -> None:
    sums, counts = np.array([[0.0, 500.0, 610.0]]), np.array([0.0, 100.0, 100.0])
    assert clustered_mean(sums, counts) == clustered_mean(sums[:, 1:], counts[1:])
    assert clustered_mean(sums[:, :2], counts[:2]).interval is None


def test_variance_between_conversations_is_the_jackknifes() -> None:
    rng = np.random.default_rng(0)
    sums, counts = rng.uniform(100, 900, (1, 6)), rng.uniform(50, 400, 6)
    left_out = [np.delete(sums, one).sum() / np.delete(counts, one).sum() for one in range(6)]
    found = clustered_mean(sums, counts)
    error = math.sqrt(5 / 6 * sum((one - found.value) ** 2 for one in left_out))
    assert found.interval == pytest.approx(stats.t.interval(0.95, 5, loc=found.value, scale=error))


# Tokens of the twenty conversations that the leaderboard is judged on.
JUDGED = np.array([
    708, 1472, 688, 301, 1124, 1068, 1142, 1622, 371, 349, 966, 266, 145, 442, 1361, 4643, 541, 1214, 1099, 180,
], np.float64)  # fmt: skip


def test_intervals_of_one_seed_cover_where_a_conversation_holds_a_quarter_of_the_tokens() -> None:
    rng, truth, times, covered = np.random.default_rng(0), 0.02, 2000, 0
    for _ in range(times):
        losses = truth + 0.05 * rng.standard_normal((1, 20)) * np.sqrt(900 / JUDGED)
        interval = clustered_mean(losses * JUDGED, JUDGED).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.93 <= covered / times <= 0.97


def percentile_interval(rng: np.random.Generator, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bootstrap over seeds and conversations, 200 draws."""
    num_seeds, num_conversations = sums.shape
    weights = rng.multinomial(num_conversations, np.full(num_conversations, 1 / num_conversations), 200).astype(float)
    losses = (weights @ sums.T) / (weights @ counts)[:, None]
    drawn = np.take_along_axis(losses, rng.integers(num_seeds, size=(200, num_seeds)), axis=1)
    return np.quantile(drawn.mean(axis=1), [0.025, 0.975])


@pytest.mark.parametrize("seed_spread, conversation_spread", [(0.03, 0.0), (0.02, 0.05), (0.003, 0.05)])
def test_intervals_of_three_seeds_cover_and_percentiles_do_not(seed_spread: float, conversation_spread: float) -> None:
    rng, truth, times = np.random.default_rng(0), 0.02, 600
    covered, by_percentiles = 0, 0
    for _ in range(times):
        counts = rng.integers(300, 1_700, 20).astype(float)
        losses = truth + seed_spread * rng.standard_normal((3, 1)) + conversation_spread * rng.standard_normal(20)
        sums = (losses + 0.02 * rng.standard_normal((3, 20))) * counts
        interval = clustered_mean(sums, counts).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
        low, high = percentile_interval(rng, sums, counts)
        by_percentiles += bool(low <= truth <= high)
    assert 0.91 <= covered / times <= 0.97
    assert by_percentiles < covered and (seed_spread < 0.03 or by_percentiles / times < 0.82)


def test_pairing_cancels_what_a_seed_does_to_both() -> None:
    difference = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert difference.by_seed == (1.0, 2.0, 3.0) and difference.no_difference == 0
    assert difference.interval == pytest.approx(stats.t.interval(0.95, 2, loc=2.0, scale=1 / math.sqrt(3)))
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def test_seeds_that_differ_by_exactly_as_much_do_not_tell_the_scatter() -> None:
    """Shares of a thousand images."""
    assert paired_difference([70.5, 70.5], [70.0, 70.0]) == Estimate(0.5, None, (0.5, 0.5), 0.0)
    assert not paired_difference([70.5, 70.5], [70.0, 70.0]).is_distinguishable
    assert paired_difference([70.0, 70.0], [70.0, 70.0]).interval == (0.0, 0.0)


def test_exponentials_of_runs_that_diverge_are_finite() -> None:
    found = Estimate(712.0, (5.0, 10_000.0), (712.0,)).exp()
    assert found.interval is not None
    assert found.value == found.interval[1] == found.by_seed[0] == math.exp(LARGEST_NATS)


def test_a_ratio_of_perplexities_is_the_exponential_of_paired_losses() -> None:
    counts = np.array([10.0, 20.0])
    sums = np.array([[20.0, 50.0], [22.0, 54.0]])
    ratio = paired_ratio(sums - 0.1 * counts, sums, counts)
    assert ratio.value == pytest.approx(math.exp(-0.1)) and ratio.by_seed == pytest.approx([math.exp(-0.1)] * 2)
    assert ratio.no_difference == 1 and ratio.is_distinguishable
    back = paired_ratio(sums, sums - counts * np.array([[0.1, 0.3]]), counts)
    there = paired_ratio(sums - counts * np.array([[0.1, 0.3]]), sums, counts)
    assert back.interval is not None and there.interval is not None
    assert back.interval == pytest.approx((1 / there.interval[1], 1 / there.interval[0]))


# Shares and correlations


def test_shares_have_wilsons_interval_and_newcombes_difference() -> None:
    """Newcombe 1998, table II, example (a): 56/70 against 48/80 gives 0.20 with 0.0524 … 0.3339 (method 10)."""
    one, other = (Estimate(hits / of, wilson_interval(hits, of)) for hits, of in ((56, 70), (48, 80)))
    difference = newcombe_difference(one, other)
    assert difference.value == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference.verdict == "distinguishable for this seed alone"
    with pytest.raises(ValueError, match="shares with their intervals"):
        newcombe_difference(one, Estimate(0.5, None))


def test_correlation_has_fishers_interval_from_four_pairs() -> None:
    one, other = [1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0]
    found = correlation(one, other)
    r = float(np.corrcoef(one, other)[0, 1])
    half = stats.norm.ppf(0.975) / math.sqrt(4 - 3)
    assert found.value == pytest.approx(r) and found.no_difference == 0
    assert found.interval == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))
    assert correlation(one[:3], other[:3]).interval is None
