"""The scaling law of perplexity: sample sizes, sliding windows, the power-law fit and how far it can be trusted.

``PPL = A · tokens^α`` by least squares in log-log space; docs/method.md, section 6. A figure comes with its interval,
and two figures whose intervals overlap are called "not distinguishable". One size gives one point: the runs of several
seeds are averaged first (``mean_over_seeds``), because they share their training text and would otherwise be counted
as independent deviations from the line.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from newllm_core.config.hyperparameters import ScalingConfig
from newllm_core.intervals import Floats, Interval, t_margin

Numbers = Sequence[float] | Floats
Point = TypeVar("Point")

POWER_LAW_PARAMETERS = 2  # log A and α


class ScalingError(ValueError):
    """Points that no law can be fitted to; the message says what was expected and what was given."""


@dataclass(frozen=True)
class PowerLawFit:
    """``PPL = A · tokens^α``. The interval and the standard error are None for two points, which leave no residual."""

    alpha: float
    A: float  # perplexity at one token
    r_squared: float  # of log PPL
    alpha_interval: Interval | None  # 95 % t-interval, num_points - 2 degrees of freedom
    alpha_standard_error: float | None
    log_A: float
    num_points: int

    def predict(self, tokens: float) -> float:
        """Perplexity of the fitted law at ``tokens``."""
        return math.exp(self.log_A + self.alpha * math.log(tokens))


@dataclass(frozen=True)
class ExtrapolatedPoint:
    """A size that the fit did not see. The interval is None when the fit had two points."""

    tokens: float
    perplexity: float
    predicted_perplexity: float
    error_percent: float  # (predicted - measured) / measured · 100
    prediction_interval: Interval | None  # 95 %, for one new measurement, in perplexity


@dataclass(frozen=True)
class Extrapolation:
    """The law fitted without the largest sizes, and what it says about them."""

    fit: PowerLawFit
    points: tuple[ExtrapolatedPoint, ...]


def sample_sizes(init: int, multiplier: float, window_size: int, num_windows: int) -> list[int]:
    """``init · multiplier^k`` rounded to whole samples, k = 0 … window_size + num_windows - 2.

    Source: docs/method.md, section 6.

    Raises ConfigError for a value outside ScalingConfig's ranges, ScalingError when two sizes round to the same one
    or a size is not finite. Both are ValueErrors.
    """
    ScalingConfig(init, multiplier, window_size, num_windows)
    try:
        sizes = [round(init * float(multiplier) ** k) for k in range(window_size + num_windows - 1)]
    except (OverflowError, ValueError) as error:
        raise ScalingError(
            f"sample sizes must be finite, given init={init}, multiplier={multiplier}, window_size={window_size}, "
            f"num_windows={num_windows}"
        ) from error
    for smaller, larger in zip(sizes, sizes[1:]):
        if larger <= smaller:
            raise ScalingError(
                f"sample sizes must be strictly increasing, given {smaller} then {larger} in {sizes} "
                f"(init={init}, multiplier={multiplier}): raise one of the two"
            )
    return sizes


def sliding_windows(points: Sequence[Point], window_size: int) -> list[Sequence[Point]]:
    """All runs of ``window_size`` neighbouring points, first to last.

    Raises ScalingError when a window is smaller than two points or there are fewer points than a window.
    """
    if window_size < POWER_LAW_PARAMETERS:
        raise ScalingError(f"a window needs at least {POWER_LAW_PARAMETERS} points, given window_size={window_size}")
    if len(points) < window_size:
        raise ScalingError(f"fewer points than a window: {len(points)} points, window_size={window_size}")
    return [points[first : first + window_size] for first in range(len(points) - window_size + 1)]


def fit_power_law(tokens: Numbers, perplexity: Numbers) -> PowerLawFit:
    """Least squares of log PPL on log tokens, with the 95 % t-interval of α. docs/method.md, section 6.

    ``tokens`` [num_points], strictly increasing; ``perplexity`` [num_points], above 1. The interval takes the
    deviations from the line as independent and of equal size in log PPL; curvature of the true law is not in it.

    Raises ScalingError for fewer than two points, different lengths, sizes that are not positive and strictly
    increasing, a perplexity that is missing, not finite, not above 1, or the same at every size.
    """
    sizes, values = checked_points(tokens, perplexity, "perplexity", above=1.0, min_points=POWER_LAW_PARAMETERS)
    if np.ptp(np.log(values)) == 0:
        raise ScalingError(f"perplexity is {values[0]:g} at every size: R² is undefined; was one run read twice?")
    line = stats.linregress(np.log(sizes), np.log(values))
    error = float(line.stderr) if len(sizes) > POWER_LAW_PARAMETERS else None
    return PowerLawFit(
        alpha=float(line.slope),
        A=_scale(float(line.intercept), sizes),
        r_squared=float(line.rvalue) ** 2,
        alpha_interval=None if error is None else _t_interval(float(line.slope), error, len(sizes)),
        alpha_standard_error=error,
        log_A=float(line.intercept),
        num_points=len(sizes),
    )


def _scale(log_scale: float, sizes: Floats) -> float:
    smallest, largest = math.log(sys.float_info.min), math.log(sys.float_info.max)
    if not smallest < log_scale < largest:
        raise ScalingError(f"A = exp({log_scale:.1f}) is not representable: sizes {sizes.tolist()} are too close")
    return math.exp(log_scale)


def _t_interval(centre: float, standard_error: float, num_points: int) -> Interval:
    half_width = t_margin(standard_error, num_points - POWER_LAW_PARAMETERS)
    return centre - half_width, centre + half_width


def extrapolate(tokens: Numbers, perplexity: Numbers, holdout: int = 2) -> Extrapolation:
    """Fit without the ``holdout`` largest sizes, predict them, report the error of each.

    Arguments as in ``fit_power_law``. Raises ScalingError for what it refuses, for ``holdout`` below 1, and when
    fewer than two points are left to fit.
    """
    sizes, values = checked_points(tokens, perplexity, "perplexity", above=1.0, min_points=POWER_LAW_PARAMETERS)
    if holdout < 1:
        raise ScalingError(f"holdout: expected at least 1 point to predict, given {holdout}")
    if len(sizes) - holdout < POWER_LAW_PARAMETERS:
        raise ScalingError(
            f"extrapolation needs {POWER_LAW_PARAMETERS} points to fit beside the {holdout} held out, "
            f"given {len(sizes)} points"
        )
    seen, seen_values = sizes[:-holdout], values[:-holdout]
    fit = fit_power_law(seen, seen_values)
    points = (
        _extrapolated_point(fit, seen, seen_values, float(size), float(value))
        for size, value in zip(sizes[-holdout:], values[-holdout:])
    )
    return Extrapolation(fit, tuple(points))


def _extrapolated_point(
    fit: PowerLawFit, seen: Floats, seen_values: Floats, size: float, value: float
) -> ExtrapolatedPoint:
    predicted = fit.predict(size)
    half_width = _prediction_half_width(fit, seen, seen_values, size)
    interval = None
    if half_width is not None:
        interval = (predicted * math.exp(-half_width), predicted * math.exp(half_width))
    return ExtrapolatedPoint(
        tokens=size,
        perplexity=value,
        predicted_perplexity=predicted,
        error_percent=100.0 * (predicted - value) / value,
        prediction_interval=interval,
    )


def _prediction_half_width(fit: PowerLawFit, seen: Floats, seen_values: Floats, size: float) -> float | None:
    """Half the 95 % prediction interval of log PPL of one new point, as for any simple regression."""
    if fit.num_points == POWER_LAW_PARAMETERS:
        return None
    log_seen = np.log(seen)
    residuals = np.log(seen_values) - (fit.log_A + fit.alpha * log_seen)
    variance = float(residuals @ residuals) / (fit.num_points - POWER_LAW_PARAMETERS)
    leverage = (math.log(size) - log_seen.mean()) ** 2 / np.square(log_seen - log_seen.mean()).sum()
    error = math.sqrt(variance * (1.0 + 1.0 / fit.num_points + float(leverage)))
    return t_margin(error, fit.num_points - POWER_LAW_PARAMETERS)


def mean_over_seeds(perplexity: Numbers) -> float:
    """Geometric mean of the perplexities of one size's seeds: exp of their mean loss.

    Raises ScalingError when there is none, or one is missing, not finite or not above 1.
    """
    values = checked_values(perplexity, "perplexity of a size's seeds", above=1.0)
    if not len(values):
        raise ScalingError("expected the perplexity of at least one seed, given none")
    return float(stats.gmean(values)) if len(values) > 1 else float(values[0])


def checked_points(tokens: Numbers, values: Numbers, name: str, above: float, min_points: int) -> tuple[Floats, Floats]:
    """``tokens`` and ``values`` as float64 arrays [num_points]. Raises ScalingError as ``fit_power_law`` documents."""
    sizes, checked = checked_values(tokens, "tokens", above=0.0), checked_values(values, name, above)
    if len(sizes) != len(checked):
        raise ScalingError(f"expected one {name} per size, given {len(sizes)} tokens and {len(checked)} of {name}")
    if len(sizes) < min_points:
        raise ScalingError(f"a fit needs at least {min_points} points, given {len(sizes)}")
    # Of the logarithms, which are what is fitted: two neighbouring doubles can share one.
    steps = np.flatnonzero(np.diff(np.log(sizes)) <= 0)
    if len(steps):
        first = int(steps[0])
        raise ScalingError(
            f"tokens must be strictly increasing, given {sizes[first]:.17g} then {sizes[first + 1]:.17g}"
        )
    return sizes, checked


def checked_values(values: Numbers, name: str, above: float) -> Floats:
    """``values`` as a float64 array [n]. Raises ScalingError for one missing, not finite or not above ``above``."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ScalingError(f"{name}: expected one row of numbers, given shape {list(array.shape)}")
    for index, value in enumerate(array):
        if math.isnan(value):
            raise ScalingError(f"{name}[{index}] is missing (None or NaN)")
        if math.isinf(value) or value <= above:
            raise ScalingError(f"{name}[{index}]: expected a finite number above {above:g}, given {value:g}")
    return array
