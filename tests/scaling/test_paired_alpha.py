"""The paired bootstrap of a difference of α: planted ones come back, what is shared cancels."""

import dataclasses
import re

import numpy as np
import pytest

from newllm_core.scaling.bootstrap import LEVELS, ScalingPoint, bootstrap_alpha, bootstrap_alpha_difference
from newllm_core.scaling.law import ScalingError

SIZES = 7_000.0 * 2.0 ** np.arange(6)
SEEDS, CONVERSATIONS = 3, 8
PLANTED = 0.04  # α of the first side minus that of the second
OF_RUNS, OF_SIZES = (len(SIZES), SEEDS, CONVERSATIONS), (len(SIZES), 1, 1)
Side = list[ScalingPoint]


def sides(
    rng: np.random.Generator, *, shared: float = 0.05, own: float = 0.004, of: tuple[int, int, int] = OF_RUNS
) -> tuple[Side, Side]:
    """α = -0.26 and α = -0.30; sizes, seeds and conversations deviate by ``shared`` alike and by ``own`` apart."""
    counts = rng.integers(500, 2_000, size=CONVERSATIONS).astype(float)
    of_size, of_seed = rng.normal(size=len(SIZES)), rng.normal(size=(len(SIZES), SEEDS, 1))
    hard = rng.normal(size=(len(SIZES), 1, CONVERSATIONS))
    common = shared * (of_size[:, None, None] + of_seed + hard)

    def side(alpha: float) -> Side:
        apart = own * rng.normal(size=of)
        losses = 5.0 + alpha * np.log(SIZES / SIZES[0])[:, None, None] + common + apart
        return [ScalingPoint(size, loss * counts, counts) for size, loss in zip(SIZES, losses)]

    return side(-0.30 + PLANTED), side(-0.30)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_difference_lies_in_its_interval_and_is_told_from_none(seed: int) -> None:
    found = bootstrap_alpha_difference(*sides(np.random.default_rng(seed)), num_resamples=1000)
    assert found.interval is not None and found.interval[0] < PLANTED < found.interval[1]
    assert found.value == pytest.approx(PLANTED, abs=0.005) and found.is_distinguishable


def test_intervals_cover_about_what_they_claim_where_each_side_leaves_its_line_by_itself() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_alpha_difference(*sides(rng, own=0.02, of=OF_SIZES), num_resamples=300) for _ in range(200)]
    covered = np.mean([one.interval is not None and one.interval[0] < PLANTED < one.interval[1] for one in found])
    assert 0.80 <= covered <= 0.99  # of 95 %; six sizes: a little narrow, as for α itself


def test_the_difference_from_itself_is_nothing_in_every_draw() -> None:
    one, _ = sides(np.random.default_rng(1))
    found = bootstrap_alpha_difference(one, one, num_resamples=200)
    assert (found.value, found.interval, found.by_seed) == (0.0, (0.0, 0.0), (0.0,) * SEEDS)
    assert not found.is_distinguishable


def test_turned_round_it_changes_its_sign() -> None:
    one, other = sides(np.random.default_rng(2))
    there, back = (bootstrap_alpha_difference(*pair, num_resamples=200) for pair in ((one, other), (other, one)))
    assert there.value == -back.value and there.interval is not None and back.interval is not None
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))


@pytest.mark.parametrize("level", [*LEVELS, None])
def test_what_is_shared_cancels_on_every_level(level: str | None) -> None:
    levels = LEVELS if level is None else (level,)
    one, other = sides(np.random.default_rng(3))
    paired = bootstrap_alpha_difference(one, other, 1000, levels=levels).interval
    apart = [bootstrap_alpha(side, 1000, seed, levels).alpha_interval for side, seed in ((one, 1), (other, 2))]
    assert paired is not None
    widths = [interval[1] - interval[0] for interval in apart if interval is not None]
    # Independent errors would add up as squares.
    assert len(widths) == 2 and paired[1] - paired[0] < 0.3 * np.hypot(*widths)


def test_without_anything_shared_it_is_no_narrower_than_two_alone() -> None:
    one, other = sides(np.random.default_rng(4), shared=0.0, own=0.05)
    paired = bootstrap_alpha_difference(one, other, 2000).interval
    apart = [bootstrap_alpha(side, 2000, seed).alpha_interval for side, seed in ((one, 1), (other, 2))]
    assert paired is not None
    widths = [interval[1] - interval[0] for interval in apart if interval is not None]
    assert paired[1] - paired[0] == pytest.approx(np.hypot(*widths), rel=0.35)


def test_its_value_is_that_of_two_fits_and_seeds_stand_alone() -> None:
    one, other = sides(np.random.default_rng(5))
    found = bootstrap_alpha_difference(one, other, 200)
    fits = [bootstrap_alpha(side, 200).alpha for side in (one, other)]
    assert found.value == pytest.approx(fits[0] - fits[1])
    # The loss is linear in the runs' losses, so the mean over seeds is the value.
    assert len(found.by_seed) == SEEDS and np.mean(found.by_seed) == pytest.approx(found.value)


def test_sizes_may_have_other_numbers_of_seeds_than_their_neighbours() -> None:
    one, other = (
        [*side[:-1], dataclasses.replace(side[-1], loss_sums=side[-1].loss_sums[:1])]
        for side in sides(np.random.default_rng(6))
    )
    found = bootstrap_alpha_difference(one, other, 500)
    assert found.interval is not None and found.interval[0] < PLANTED < found.interval[1] and found.by_seed == ()


def test_sides_that_are_no_pairs_are_refused() -> None:
    one, other = sides(np.random.default_rng(7))
    fewer = [dataclasses.replace(other[0], loss_sums=other[0].loss_sums[:1]), *other[1:]]
    with pytest.raises(ScalingError, match=re.escape("of [3, 3, 3, 3, 3, 3] and of [1, 3, 3, 3, 3, 3] seeds")):
        bootstrap_alpha_difference(one, fewer)
    with pytest.raises(ScalingError, match="same sizes and seeds"):
        bootstrap_alpha_difference(one, other[1:])
    elsewhere = [dataclasses.replace(point, token_counts=point.token_counts + 1) for point in other]
    with pytest.raises(ScalingError, match="same conversations"):
        bootstrap_alpha_difference(one, elsewhere)
