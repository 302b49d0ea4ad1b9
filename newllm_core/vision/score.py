"""The score of the NKAT line: accuracy over the logarithm of the amount of theory (docs/method.md, section 12.2).

Called `tpe_score` throughout, for "TPE" alone is Optuna's sampler. What is undefined is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from newllm_core.vision.model.nkat import nkat_scalars

# docs/method.md, section 12.1, by the names of the complete data sets.
TARGET_ACCURACIES: Mapping[str, float] = {"mnist": 0.91, "fashion-mnist": 0.87, "emnist-letters": 0.75, "cifar10": 0.60}
TARGET_SCORES: Mapping[str, float] = {"mnist": 0.69, "fashion-mnist": 0.67, "emnist-letters": 0.60, "cifar10": 0.45}
TARGET_GLOBAL = 0.70
TARGET_CONSISTENCY = 0.80  # of consistency_relative
TARGET_ROBUSTNESS = 0.75  # of min_over_mean


class ScoreError(ValueError):
    """Figures that a score cannot be computed from."""


def tpe_score(accuracy: float, theory: float) -> float | None:
    """`accuracy / log10(1 + λ)`, accuracy in 0 … 1; None at λ = 0. Raises ScoreError for figures out of range."""
    if not 0 <= accuracy <= 1:
        raise ScoreError(f"tpe_score: expected an accuracy in 0 … 1, given {accuracy}")
    if not 0 <= theory < math.inf:
        raise ScoreError(f"tpe_score: expected a finite λ of at least 0, given {theory}")
    # log1p: below λ = 1e-16, 1 + λ would be 1 and the score infinite.
    return accuracy * math.log(10) / math.log1p(theory) if theory else None


def attainable_maximum(theory: float) -> float | None:
    """The score of accuracy 1."""
    return tpe_score(1.0, theory)


def largest_theory(accuracy: float, score: float) -> float:
    """The λ at which ``accuracy`` gives ``score``; above it the score is out of reach. Both above 0."""
    if not 0 < accuracy <= 1 or not score > 0:
        raise ScoreError(f"largest_theory: expected 0 < accuracy <= 1 and score > 0, given {accuracy} and {score}")
    return math.expm1(math.log(10) * accuracy / score)


def theory_scalars(model: nn.Module) -> int:
    """λ of `tpe_scalar`: learnable NKAT scalars, by the modules' own declaration."""
    return sum(parameter.numel() for parameter in nkat_scalars(model).values())


def theory_params(model: nn.Module) -> float:
    """λ of `tpe_params`: millions of parameters."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def consistency_absolute(scores: Sequence[float]) -> float | None:
    """`1 - std` (population): the notes' figure. None for fewer than two scores, which agree with nothing."""
    return 1 - _mean_and_std(scores)[1] if len(scores) > 1 else None


def consistency_relative(scores: Sequence[float]) -> float | None:
    """`1 - std / mean`, which does not rise when all scores shrink. None for fewer than two scores, or mean 0."""
    if len(scores) < 2:
        return None
    mean, std = _mean_and_std(scores)
    return 1 - std / mean if mean > 0 else None


def min_over_mean(scores: Sequence[float]) -> float | None:
    """The weakest score over the mean, 0 … 1. None for fewer than two scores, or mean 0."""
    if len(scores) < 2:
        return None
    mean = _mean_and_std(scores)[0]
    return min(scores) / mean if mean > 0 else None


def completion_rate(ran: Mapping[str, Any], names: Sequence[str]) -> float:
    """Share of the named data sets that ran, 0 … 1: the notes' robustness of 1.00, which says nothing of scores."""
    _check_names(names)
    return sum(name in ran for name in names) / len(names)


def global_score(scores: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """Mean over the named data sets; None when one of their scores is undefined.

    Raises ScoreError when a named data set is missing, and when none or one twice is named.
    """
    values = list(_named(scores, names, "score").values())
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if len(defined) == len(values) else None


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ScoreError(f"expected a list of one or more data sets, each named once, given {names!r}")


def _named(figures: Mapping[str, Any], names: Sequence[str], kind: str) -> dict[str, Any]:
    _check_names(names)
    missing = [name for name in names if name not in figures]
    if missing:
        raise ScoreError(
            f"no {kind} for {', '.join(missing)}: expected one for each of {', '.join(names)}, "
            f"given {', '.join(figures) or 'none'}. Run what is missing or name fewer data sets."
        )
    return {name: figures[name] for name in names}


@dataclass(frozen=True)
class ScoreCard:
    """All figures of docs/method.md, section 12.2, over the named data sets; what is undefined is None.

    Attributes:
        data_sets: what the means are over.
        theory, accuracy, score, maximum: by data set; maximum is the score at accuracy 1.
        global_score, global_maximum: means of score and maximum.
    """

    data_sets: tuple[str, ...]
    theory: dict[str, float]
    accuracy: dict[str, float]
    score: dict[str, float | None]
    maximum: dict[str, float | None]
    global_score: float | None
    global_maximum: float | None
    consistency_absolute: float | None
    consistency_relative: float | None
    completion_rate: float
    min_over_mean: float | None

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"data_sets": list(self.data_sets)}


def score_card(accuracy: Mapping[str, float], theory: Mapping[str, float], names: Sequence[str]) -> ScoreCard:
    """The card of one system, for one of the two λ.

    Args:
        accuracy: by data set, 0 … 1; data sets that are not named are left out.
        theory: λ of the model that ran on each data set.
        names: data sets that Global is over.

    Raises ScoreError when a named data set is missing from either.
    """
    reached, amounts = _named(accuracy, names, "accuracy"), _named(theory, names, "λ")
    scores = {name: tpe_score(reached[name], amounts[name]) for name in names}
    maximum = {name: attainable_maximum(amounts[name]) for name in names}
    values = [score for score in scores.values() if score is not None]
    # Figures over some of the named data sets would pass for figures over all.
    complete = values if len(values) == len(names) else []
    return ScoreCard(
        data_sets=tuple(names),
        theory=amounts,
        accuracy=reached,
        score=scores,
        maximum=maximum,
        global_score=global_score(scores, names),
        global_maximum=global_score(maximum, names),
        consistency_absolute=consistency_absolute(complete),
        consistency_relative=consistency_relative(complete),
        completion_rate=completion_rate(accuracy, names),
        min_over_mean=min_over_mean(complete),
    )
