"""Bootstrap of a scaling law over points, seeds and validation conversations, in one hierarchy.

One resample draws the validation conversations once for all points, since every run is judged on the same text
(a paired draw); then sizes with replacement; then, within each drawn size, its seeds. Efron & Tibshirani 1993,
chapters 8 and 13 (percentile interval). The difference of two configurations' α is drawn with the same sizes, seeds and
conversations on both sides, so that what they share cancels.

Sizes deviate from the line on their own, so intervals of α without the level "points" are far too narrow (17 % and
47 % coverage instead of 95 %), with it alone a little (about 90 %), with all levels near nominal where seeds scatter
about as much as sizes: ``reproduce/interval_coverage.py``, figures in ``results/reference/interval_coverage.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newllm_core.config.hyperparameters import ScalingConfig
from newllm_core.intervals import CONFIDENCE, Estimate, Floats, Interval
from newllm_core.scaling.law import POWER_LAW_PARAMETERS, Numbers, ScalingError, checked_points

LEVELS = ("points", "seeds", "conversations")
NUM_RESAMPLES = ScalingConfig.num_resamples
MIN_USED = 100  # a 2.5 % quantile of fewer draws rests on one or two of them


@dataclass(frozen=True, eq=False)
class ScalingPoint:
    """One size: what each seed's run lost on each validation conversation."""

    tokens: float
    loss_sums: Floats  # [num_seeds, num_conversations], nats
    token_counts: Floats  # [num_conversations], predicted tokens of each conversation

    def __post_init__(self) -> None:
        sums, counts = np.asarray(self.loss_sums, np.float64), np.asarray(self.token_counts, np.float64)
        if sums.ndim != 2 or counts.ndim != 1 or not sums.size or sums.shape[1] != len(counts):
            raise ScalingError(
                "a point needs loss_sums [num_seeds, num_conversations] and token_counts [num_conversations], "
                f"given {list(sums.shape)} and {list(counts.shape)}"
            )
        if not (np.isfinite(sums).all() and (sums > 0).all()):
            raise ScalingError(f"loss_sums at {self.tokens:g} tokens: every sum must be finite and above 0 nats")
        if not (np.isfinite(counts).all() and (counts > 0).all()):
            raise ScalingError(f"token_counts at {self.tokens:g} tokens: every count must be finite and above 0")
        object.__setattr__(self, "loss_sums", sums)
        object.__setattr__(self, "token_counts", counts)

    @property
    def loss(self) -> float:
        """Mean over seeds of the validation loss, nats per token."""
        return float(self.loss_sums.sum(axis=1).mean() / self.token_counts.sum())


@dataclass(frozen=True, eq=False)
class Resamples:
    """Draws of all points at once; a repeated size fills several slots."""

    log_tokens: Floats  # [num_used, num_points]
    loss: Floats  # [num_used, num_points], nats per token, mean over the drawn seeds
    num_drawn: int  # with those left out: too few distinct sizes


@dataclass(frozen=True)
class BootstrapInterval:
    """Percentile interval of α; None when fewer than 100 draws could be used."""

    alpha: float  # of the points themselves
    alpha_interval: Interval | None
    num_resamples: int
    num_used: int
    levels: tuple[str, ...]


def points_from_losses(tokens: Numbers, loss: Numbers) -> list[ScalingPoint]:
    """Points known by their loss alone (nats per token, [num_points]): only ``levels=("points",)`` moves them."""
    sizes, losses = checked_points(tokens, loss, "loss", above=0.0, min_points=1)
    return [ScalingPoint(float(size), np.array([[value]]), np.ones(1)) for size, value in zip(sizes, losses)]


def bootstrap_alpha(
    points: Sequence[ScalingPoint], num_resamples: int = NUM_RESAMPLES, seed: int = 42, levels: Sequence[str] = LEVELS
) -> BootstrapInterval:
    """95 % percentile interval of α over resampled points, seeds and conversations.

    Draws with fewer than two distinct sizes are left out; ``num_used`` counts the others.
    Raises ScalingError for what ``draw_resamples`` refuses.
    """
    draws = draw_resamples(points, num_resamples, seed, levels, min_distinct=POWER_LAW_PARAMETERS)
    sizes = _log_tokens(points)
    losses = np.array([[point.loss for point in points]])
    slopes = _slopes(draws.log_tokens, draws.loss)
    return BootstrapInterval(
        alpha=float(_slopes(sizes, losses)[0]),
        alpha_interval=percentile_interval(slopes),
        num_resamples=num_resamples,
        num_used=len(slopes),
        levels=tuple(levels),
    )


def bootstrap_alpha_difference(
    points: Sequence[ScalingPoint],
    others: Sequence[ScalingPoint],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 42,
    levels: Sequence[str] = LEVELS,
) -> Estimate:
    """α of ``points`` minus α of ``others``, with its 95 % percentile interval over draws that both sides share.

    ``others[i]`` stands beside ``points[i]``: the same size of text, though the tokens may differ a little, and the
    same seeds in the same order. ``by_seed`` is filled where every point has as many seeds. The interval is None when
    fewer than 100 draws could be used. Raises ScalingError for what ``draw_resamples`` refuses on either side, for
    sides of another length or number of seeds, and for other conversations.
    """
    sides = points, others
    _check_pairs(*sides)
    # Equal seeds of the generator: what is drawn depends on the number of points, conversations and seeds alone.
    draws = [draw_resamples(side, num_resamples, seed, levels, POWER_LAW_PARAMETERS) for side in sides]
    one, other = (_slopes(draw.log_tokens, draw.loss) for draw in draws)
    whole = [_slopes(_log_tokens(side), np.array([[point.loss for point in side]])) for side in sides]
    by_seed: tuple[float, ...] = ()
    if len({len(point.loss_sums) for point in points}) == 1:
        first, second = (_slopes(_log_tokens(side), _seed_losses(side)) for side in sides)
        by_seed = tuple((first - second).tolist())
    return Estimate(float((whole[0] - whole[1])[0]), percentile_interval(one - other), by_seed, no_difference=0.0)


def _check_pairs(points: Sequence[ScalingPoint], others: Sequence[ScalingPoint]) -> None:
    seeds = [[len(point.loss_sums) for point in side] for side in (points, others)]
    if seeds[0] != seeds[1]:
        raise ScalingError(
            f"paired points must have the same sizes and seeds, given points of {seeds[0]} and of {seeds[1]} seeds"
        )
    if any(not np.array_equal(one.token_counts, other.token_counts) for one, other in zip(points, others)):
        raise ScalingError("paired points must be judged on the same conversations: their token counts differ")


def _log_tokens(points: Sequence[ScalingPoint]) -> Floats:
    """[1, num_points]"""
    return np.log([[point.tokens for point in points]])


def _seed_losses(points: Sequence[ScalingPoint]) -> Floats:
    """Nats per token of points with as many seeds each: [num_seeds, num_points]."""
    return np.stack([point.loss_sums.sum(axis=1) / point.token_counts.sum() for point in points], axis=1)


def _slopes(log_tokens: Floats, loss: Floats) -> Floats:
    """Least-squares slope of each row; the loss in nats is log PPL."""
    centred = log_tokens - log_tokens.mean(axis=1, keepdims=True)
    return (centred * loss).sum(axis=1) / np.square(centred).sum(axis=1)


def percentile_interval(values: Floats) -> Interval | None:
    """The middle 95 % of ``values`` [n]; None for n < 100."""
    if len(values) < MIN_USED:
        return None
    low, high = np.quantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


def draw_resamples(
    points: Sequence[ScalingPoint], num_resamples: int, seed: int, levels: Sequence[str], min_distinct: int
) -> Resamples:
    """``num_resamples`` draws; those with fewer than ``min_distinct`` distinct sizes are left out.

    With one ``seed`` two lists of points with as many sizes, conversations and seeds get the same draws.
    Raises ScalingError for too few points, sizes that do not increase, points judged on different conversations, an
    unknown level, and fewer than 100 resamples.
    """
    _check_draw(points, num_resamples, levels, min_distinct)
    rng = np.random.default_rng(seed)
    slots = _drawn_slots(rng, num_resamples, len(points), "points" in levels)
    run_losses = _run_losses(rng, points, num_resamples, "conversations" in levels)
    losses = _mean_over_drawn_seeds(rng, points, slots, run_losses, "seeds" in levels)
    ordered = np.sort(slots, axis=1)
    used = 1 + (np.diff(ordered, axis=1) > 0).sum(axis=1) >= min_distinct
    log_tokens = np.log([point.tokens for point in points])
    return Resamples(log_tokens[slots[used]], losses[used], num_resamples)


def _check_draw(points: Sequence[ScalingPoint], num_resamples: int, levels: Sequence[str], min_distinct: int) -> None:
    checked_points([p.tokens for p in points], [p.loss for p in points], "loss", above=0.0, min_points=min_distinct)
    if num_resamples < MIN_USED:
        raise ScalingError(f"expected at least {MIN_USED} resamples, given {num_resamples}")
    if not levels or set(levels) - set(LEVELS):
        raise ScalingError(f"levels: expected some of {', '.join(LEVELS)}, given {list(levels)}")
    for point in points:
        if not np.array_equal(point.token_counts, points[0].token_counts):
            raise ScalingError(
                f"points must be judged on the same conversations: token counts at {point.tokens:g} and "
                f"{points[0].tokens:g} tokens differ"
            )


def _drawn_slots(rng: np.random.Generator, num_resamples: int, num_points: int, resample: bool) -> NDArray[np.int64]:
    """Which point fills each slot: [num_resamples, num_points]."""
    if resample:
        return rng.integers(num_points, size=(num_resamples, num_points))
    return np.tile(np.arange(num_points), (num_resamples, 1))


def _run_losses(
    rng: np.random.Generator, points: Sequence[ScalingPoint], num_resamples: int, resample: bool
) -> list[Floats]:
    """Loss of every run on each drawn validation text: per point [num_resamples, num_seeds], nats per token."""
    counts = points[0].token_counts
    num_conversations = len(counts)
    weights = np.ones((num_resamples, num_conversations))
    if resample:
        equal = np.full(num_conversations, 1 / num_conversations)
        weights = rng.multinomial(num_conversations, equal, num_resamples).astype(np.float64)
    drawn_tokens = (weights @ counts)[:, None]
    return [(weights @ point.loss_sums.T) / drawn_tokens for point in points]


def _mean_over_drawn_seeds(
    rng: np.random.Generator,
    points: Sequence[ScalingPoint],
    slots: NDArray[np.int64],
    run_losses: Sequence[Floats],
    resample: bool,
) -> Floats:
    """Mean loss of each slot over its seeds, drawn anew for every slot: [num_resamples, num_points]."""
    losses = np.empty(slots.shape)
    for index, point in enumerate(points):
        rows, columns = np.nonzero(slots == index)
        of_slots = run_losses[index][rows]
        if resample:
            num_seeds = len(point.loss_sums)
            drawn = rng.integers(num_seeds, size=(len(rows), num_seeds))
            of_slots = np.take_along_axis(of_slots, drawn, axis=1)
        losses[rows, columns] = of_slots.mean(axis=1)
    return losses
