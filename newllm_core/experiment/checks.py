"""The three checks after Phase 1, validation convergence, and the stale contexts held against the exact ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.contexts.shooting import TokenEmbeds, exact_contexts
from newllm_core.metrics.convergence import Convergence, count_converged
from newllm_core.metrics.rank import StreamRank
from newllm_core.model.layers import ContextBlock

# docs/method.md, section 6.
RANK_FAILURE_SHARE = 0.30
IDENTITY_MIN_DISTANCE = 0.1
IDENTITY_MAX_COSINE = 0.95
ATTRACTOR_MIN_DEVIATION = 0.1
CVFP_PASS, CVFP_FAILURE = 1e-3, 1e-2
# Mean squared differences below this are rounding of float32 contexts, and neither grow nor shrink.
ROUNDING_DIFFERENCE = 1e-10
SLOPE_LIMIT, SPREAD_LIMIT = 0.001, 0.01


@dataclass(frozen=True)
class RepeatedPasses:
    """Passes over the same text, each from the last context of the pass before.

    Attributes:
        differences: mean squared difference between successive passes, one fewer than passes.
        convergence: tokens that moved by less than the threshold between the last two passes.
        slope: linear trend of the differences, per pass.
        spread: their standard deviation.
        verdict: CONVERGING, CONVERGED, DIVERGING or UNSTABLE (docs/method.md, section 6).
    """

    differences: list[float]
    convergence: Convergence
    slope: float
    spread: float
    verdict: str

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "convergence": self.convergence.record()}


def repeated_passes(block: ContextBlock, token_embeds: TokenEmbeds, passes: int, threshold: float) -> RepeatedPasses:
    """Validation convergence over ``passes`` >= 2 passes from the zero context (docs/method.md, section 6)."""
    context = next(block.parameters()).new_zeros(block.context_dim)
    differences = []
    previous: Tensor | None = None
    converged = 0
    for _ in range(passes):
        result = exact_contexts(block, token_embeds, context)
        context = result.end
        if previous is not None:
            differences.append(float(functional.mse_loss(result.contexts, previous)))
            converged = int(count_converged(result.contexts, previous, threshold))
        previous = result.contexts
    slope, spread = _trend(differences)
    return RepeatedPasses(
        differences, Convergence(converged, len(token_embeds)), slope, spread, convergence_verdict(slope, spread)
    )


def _trend(values: list[float]) -> tuple[float, float]:
    """(slope per step, standard deviation); a single value has neither trend nor spread: (0, 0)."""
    series = torch.tensor(values, dtype=torch.float64)
    if len(series) < 2:
        return 0.0, 0.0
    steps = torch.arange(len(series), dtype=torch.float64)
    centred = steps - steps.mean()
    return float((centred * series).sum() / centred.square().sum()), float(series.std(correction=0))


def convergence_verdict(slope: float, spread: float) -> str:
    """The verdict word of docs/method.md, section 6; always shown beside its figures."""
    if slope < -SLOPE_LIMIT:
        return "CONVERGING"
    if slope > SLOPE_LIMIT:
        return "DIVERGING"
    return "CONVERGED" if abs(slope) < SLOPE_LIMIT and spread < SPREAD_LIMIT else "UNSTABLE"


@dataclass(frozen=True)
class Check:
    """One of the three checks: PASS, FAIL or (for figures in between) UNDECIDED, and the figures behind it."""

    verdict: str
    figures: Mapping[str, float | None]


def rank_check(rank: StreamRank) -> Check:
    """(1) Effective rank; below 30 % of what so many tokens can reach is a failure.

    Few tokens bound the rank whatever the contexts: white noise `[120, 500]` has 23 % of the width.
    """
    verdict = "FAIL" if rank.share_of_ceiling < RANK_FAILURE_SHARE else "PASS"
    figures = {"share": rank.share, "share_of_ceiling": rank.share_of_ceiling, "failure_below": RANK_FAILURE_SHARE}
    return Check(verdict, figures)


def identity_check(contexts: Tensor, token_embeds: Tensor) -> Check:
    """(2) Contexts are neither zero, nor the token's own embedding, nor all the same.

    `contexts [n, C], token_embeds [n, E]`. Mean distance from the zero context (root mean square of a context's
    components) > 0.1, mean cosine to the token embedding < 0.95 (null where C != E), and mean deviation from
    the mean context (root mean square) > 0.1.
    """
    distance = float(contexts.square().mean(dim=1).sqrt().mean())
    deviation = float((contexts - contexts.mean(dim=0)).square().mean(dim=1).sqrt().mean())
    same_width = contexts.shape[1] == token_embeds.shape[1]
    cosine = float(functional.cosine_similarity(contexts, token_embeds).mean()) if same_width else None
    passed = distance > IDENTITY_MIN_DISTANCE and deviation > ATTRACTOR_MIN_DEVIATION
    passed = passed and (cosine is None or cosine < IDENTITY_MAX_COSINE)
    figures = {
        "distance_from_zero": distance, "cosine_to_token": cosine, "deviation_from_mean": deviation,
        "tokens": len(contexts),
    }  # fmt: skip
    return Check("PASS" if passed else "FAIL", figures)


def fixed_point_check(passes: RepeatedPasses) -> Check:
    """(3) Last difference of the repeated passes < 1e-3 and not growing; > 1e-2 is a failure.

    It says that the block forgets its starting context, not that training found a fixed point: docs/method.md,
    section 6.
    """
    last = passes.differences[-1]
    growing = len(passes.differences) > 1 and last > max(passes.differences[-2], ROUNDING_DIFFERENCE)
    passed = last < CVFP_PASS and not growing
    # Written so that nan fails.
    verdict = "PASS" if passed else "UNDECIDED" if last <= CVFP_FAILURE else "FAIL"
    return Check(verdict, {"last_difference": last, "slope": passes.slope})


@dataclass(frozen=True)
class StaleComparison:
    """Contexts of one stale parallel step against the exact ones."""

    mean_cosine: float
    min_cosine: float
    mse: float
    num_tokens: int


@torch.no_grad()
def compare_stale(block: ContextBlock, token_embeds: Tensor, stale_before: Tensor, exact: Tensor) -> StaleComparison:
    """What the notes used as a cache, one parallel step from the previous pass's contexts, held against exact ones.

    Args:
        token_embeds: `[n, E·T]` of the first n tokens.
        stale_before: `[n, C]`, the contexts that token i - 1 had in the pass before, row i.
        exact: `[n, C]`.
    """
    stale = block(stale_before, token_embeds)
    cosine = functional.cosine_similarity(stale, exact)
    mse = float(functional.mse_loss(stale, exact))
    return StaleComparison(float(cosine.mean()), float(cosine.min()), mse, len(exact))
