"""The scaling law with a floor, ``L = E + B · D^-β``: loss L in nats per token, D tokens, E the loss that stays.

Fitted as in Hoffmann et al. 2022 (arXiv:2203.15556, approach 3): Huber loss, delta 1e-3, on log L, L-BFGS from
several starts. Few sizes over a short span often fit as well without a floor; then the result says so in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from newllm_core.intervals import CONFIDENCE, Floats, Interval, interval_text
from newllm_core.scaling.bootstrap import LEVELS, NUM_RESAMPLES, ScalingPoint, draw_resamples, percentile_interval
from newllm_core.scaling.law import Numbers, checked_points

FLOOR_PARAMETERS = 3  # E, B, β
HUBER_DELTA = 1e-3  # of log loss; Hoffmann et al. 2022
MAX_BETA = 5.0  # at this bound B · D^-β vanishes from one size to the next
# Shares of the smallest loss tried as E; each gives B and β by a straight line through log(L - E).
START_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)
BOOTSTRAP_SHARES = np.linspace(0.0, 0.98, 50)
NOT_IDENTIFIED = "E is not identified by these data"


@dataclass(frozen=True)
class FloorFit:
    """``L = E + B · D^-β``. When E is not identified, E and β trade against each other: quote neither."""

    E: float  # nats per token, 0 … largest loss
    B: float  # nats per token, at D = 1
    beta: float  # 0 … 5
    log_B: float
    objective: float  # summed Huber loss of log L, divided by delta
    success: bool  # the optimizer's verdict
    floor_p_value: float | None  # F-test of this law against the one with E = 0; None for three points
    E_identified: bool
    statement: str
    num_points: int

    def predict(self, tokens: float) -> float:
        """Loss of the fitted law at ``tokens``, nats per token."""
        return self.E + math.exp(self.log_B - self.beta * math.log(tokens))


@dataclass(frozen=True)
class FloorBootstrap:
    """Percentile intervals of the three parameters; None when fewer than 100 draws could be used."""

    fit: FloorFit
    E_interval: Interval | None
    B_interval: Interval | None
    beta_interval: Interval | None
    E_identified: bool  # by the fit's test and by this interval
    statement: str
    num_resamples: int
    num_used: int
    num_failed: int  # draws with enough sizes whose optimizer gave up
    levels: tuple[str, ...]


@dataclass(frozen=True)
class _Minimum:
    """(E, b, β) of ``L = E + exp(b - β x)``, x the centred log tokens, which keeps b and β apart."""

    parameters: Floats
    objective: float
    success: bool


def fit_floor_law(tokens: Numbers, loss: Numbers) -> FloorFit:
    """Fit E, B and β to ``tokens`` [num_points], strictly increasing, and ``loss`` [num_points], nats per token.

    E counts as identified when all of these hold:
    1. there are more points than parameters, the optimizer succeeded, and E and β are inside their bounds;
    2. without a floor, the deviations (RMS of log loss) exceed delta, below which the Huber loss sees only noise;
    3. the F-test of the two nested least-squares fits of log loss, with and without E, rejects E = 0 at 5 %.

    Raises ScalingError for fewer than three points, different lengths, sizes that are not positive and strictly
    increasing, a loss that is missing, not finite or not above 0.
    """
    sizes, losses = checked_points(tokens, loss, "loss", above=0.0, min_points=FLOOR_PARAMETERS)
    log_tokens, log_loss = np.log(sizes), np.log(losses)
    centre = float(log_tokens.mean())
    x = log_tokens - centre
    best = _best([_minimise(start, x, log_loss) for start in _starts(x, losses)])
    floor, log_scale, beta = map(float, best.parameters)
    p_value = _floor_p_value(best, x, log_loss)
    objection = _objection(best, p_value, x, log_loss)
    return FloorFit(
        E=floor,
        B=math.exp(log_scale + beta * centre),
        beta=beta,
        log_B=log_scale + beta * centre,
        objective=best.objective,
        success=best.success,
        floor_p_value=p_value,
        E_identified=objection is None,
        statement=_statement(f"E = {floor:.3f} nats per token", objection),
        num_points=len(sizes),
    )


def bootstrap_floor_law(
    points: Sequence[ScalingPoint], num_resamples: int = NUM_RESAMPLES, seed: int = 42, levels: Sequence[str] = LEVELS
) -> FloorBootstrap:
    """95 % percentile intervals of E, B and β over resampled points, seeds and conversations.

    Draws with fewer than three distinct sizes are left out. E counts as identified when the fit says so and its
    interval stays away from 0 by more than ``delta`` times the smallest loss, and from its upper bound.
    Raises ScalingError for what ``draw_resamples`` and ``fit_floor_law`` refuse.
    """
    tokens, losses = [point.tokens for point in points], [point.loss for point in points]
    fit = fit_floor_law(tokens, losses)
    draws = draw_resamples(points, num_resamples, seed, levels, min_distinct=FLOOR_PARAMETERS)
    centre = float(np.log(tokens).mean())
    x = draws.log_tokens - centre
    full = np.array([fit.E, fit.log_B - fit.beta * centre, fit.beta])
    starts = _profile_starts(x, draws.loss)
    minima = [_minimise_draw(start, full, *row) for start, *row in zip(starts, x, np.log(draws.loss))]
    found = np.array([minimum.parameters for minimum in minima if minimum.success]).reshape(-1, FLOOR_PARAMETERS)
    floor_interval = percentile_interval(found[:, 0])
    log_scale_interval = percentile_interval(found[:, 1] + found[:, 2] * centre)
    objection = _interval_objection(fit, floor_interval, min(losses), max(losses))
    return FloorBootstrap(
        fit=fit,
        E_interval=floor_interval,
        B_interval=log_scale_interval and (math.exp(log_scale_interval[0]), math.exp(log_scale_interval[1])),
        beta_interval=percentile_interval(found[:, 2]),
        E_identified=fit.E_identified and objection is None,
        statement=_statement(fit.statement, objection) if fit.E_identified else fit.statement,
        num_resamples=num_resamples,
        num_used=len(found),
        num_failed=len(minima) - len(found),
        levels=tuple(levels),
    )


def _objective(parameters: Floats, x: Floats, log_loss: Floats) -> tuple[float, Floats]:
    """Huber loss divided by delta, and its gradient; divided, so that the optimizer's tolerances bite."""
    power = np.exp(parameters[1] - parameters[2] * x)
    law = parameters[0] + power
    residual = np.log(law) - log_loss
    size = np.abs(residual)
    huber = np.where(size <= HUBER_DELTA, 0.5 * size * size / HUBER_DELTA, size - 0.5 * HUBER_DELTA)
    slope = np.clip(residual / HUBER_DELTA, -1.0, 1.0) / law
    scaled = slope * power
    return float(huber.sum()), np.array([slope.sum(), scaled.sum(), -(scaled @ x)])


def _bounds(log_loss: Floats) -> list[tuple[float, float]]:
    largest = float(log_loss.max())
    # b is the log of the power term at the middle of the sizes: between a 1e-9th and 1e3 times the largest loss.
    return [(0.0, math.exp(largest)), (largest - 20.0, largest + 7.0), (0.0, MAX_BETA)]


def _minimise(start: Floats, x: Floats, log_loss: Floats) -> _Minimum:
    bounds = _bounds(log_loss)
    inside = np.clip(start, [low for low, _ in bounds], [high for _, high in bounds])
    found = optimize.minimize(
        _objective,
        inside,
        args=(x, log_loss),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9},
    )
    return _Minimum(found.x, float(found.fun), bool(found.success))


def _minimise_draw(start: Floats, full: Floats, x: Floats, log_loss: Floats) -> _Minimum:
    """From the draw's own start; from the full fit only when that run gave up."""
    minimum = _minimise(start, x, log_loss)
    return minimum if minimum.success else _minimise(full, x, log_loss)


def _best(minima: Sequence[_Minimum]) -> _Minimum:
    """The lowest of those that succeeded; of all when none did."""
    return min([minimum for minimum in minima if minimum.success] or minima, key=lambda minimum: minimum.objective)


def _line_through_power(x: Floats, loss: Floats, floor: Floats) -> tuple[Floats, Floats]:
    """b and β of log(L - E) = b - β x by least squares over the last axis, for E below every loss."""
    target = np.log(loss - floor)
    centred = x - x.mean(axis=-1, keepdims=True)
    beta = -(centred * target).sum(axis=-1) / np.square(centred).sum(axis=-1)
    return target.mean(axis=-1) + beta * x.mean(axis=-1), beta


def _starts(x: Floats, loss: Floats) -> list[Floats]:
    floors = [share * loss.min() for share in START_SHARES]
    return [np.array([floor, *_line_through_power(x, loss, floor)]) for floor in floors]


def _profile_starts(x: Floats, loss: Floats) -> Floats:
    """Per draw the best of 50 values of E by the Huber objective: x, loss [num_draws, num_points] -> [num_draws, 3]."""
    best, lowest = np.zeros((len(x), FLOOR_PARAMETERS)), np.full(len(x), np.inf)
    for share in BOOTSTRAP_SHARES:
        floor = share * loss.min(axis=1)
        b, beta = _line_through_power(x, loss, floor[:, None])
        law = floor[:, None] + np.exp(b[:, None] - beta[:, None] * x)
        size = np.abs(np.log(law) - np.log(loss))
        huber = np.where(size <= HUBER_DELTA, 0.5 * size * size / HUBER_DELTA, size - 0.5 * HUBER_DELTA).sum(axis=1)
        better = huber < lowest
        lowest[better] = huber[better]
        best[better] = np.column_stack([floor, b, beta])[better]
    return best


def _floor_p_value(best: _Minimum, x: Floats, log_loss: Floats) -> float | None:
    """Chance of so large a gain from E if E were 0. None without a degree of freedom left."""
    freedom = len(x) - FLOOR_PARAMETERS
    if freedom == 0:
        return None

    def residuals(parameters: Floats) -> Floats:
        return np.log(parameters[0] + np.exp(parameters[1] - parameters[2] * x)) - log_loss

    lower, upper = np.array(_bounds(log_loss)).T
    inside = np.clip(best.parameters, lower + 1e-9, upper - 1e-9)
    with_floor = 2.0 * optimize.least_squares(residuals, inside, bounds=(lower, upper), x_scale="jac").cost
    without = _power_law_squares(x, log_loss)
    if with_floor <= 0.0:
        return 0.0 if without > 0.0 else 1.0
    gain = max(without - with_floor, 0.0) / (with_floor / freedom)
    return float(stats.f.sf(gain, 1, freedom))


def _power_law_squares(x: Floats, log_loss: Floats) -> float:
    line = stats.linregress(x, log_loss)
    return float(np.square(log_loss - line.intercept - line.slope * x).sum())


def _objection(best: _Minimum, p_value: float | None, x: Floats, log_loss: Floats) -> str | None:
    """Why E is not identified; None when it is."""
    floor, _, beta = best.parameters
    smallest, largest = math.exp(log_loss.min()), math.exp(log_loss.max())
    if not best.success:
        return "the optimizer did not converge"
    if p_value is None:
        return f"{len(x)} points leave no residual beside {FLOOR_PARAMETERS} parameters"
    if floor <= HUBER_DELTA * smallest or floor >= (1 - HUBER_DELTA) * largest:
        return f"E = {floor:.3g} lies at a bound of 0 … {largest:.3g}"
    if beta <= HUBER_DELTA or beta >= (1 - HUBER_DELTA) * MAX_BETA:
        return f"β = {beta:.3g} lies at a bound of 0 … {MAX_BETA:g}"
    deviation = math.sqrt(_power_law_squares(x, log_loss) / len(x))
    if deviation <= HUBER_DELTA:
        return f"the law without a floor deviates by {deviation:.1e} of the loss, no more than delta = {HUBER_DELTA:g}"
    if p_value >= 1 - CONFIDENCE:
        return f"the law without a floor fits as well, p = {p_value:.2f}"
    return None


def _interval_objection(fit: FloorFit, interval: Interval | None, smallest: float, largest: float) -> str | None:
    if not fit.E_identified:
        return None
    if interval is None:
        return "too few bootstrap draws could be used"
    if interval[0] <= HUBER_DELTA * smallest:
        return f"its bootstrap interval {interval_text(interval)} reaches 0"
    if interval[1] >= (1 - HUBER_DELTA) * largest:
        return f"its bootstrap interval {interval_text(interval)} reaches the largest loss"
    return None


def _statement(figure: str, objection: str | None) -> str:
    return figure if objection is None else f"{NOT_IDENTIFIED}: {objection}"
