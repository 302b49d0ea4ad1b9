"""What is measured on contexts and predictions; each figure carries the counts it rests on."""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from newllm_core.contexts import start_distances
from newllm_core.model.layers import ContextBlock
from newllm_core.runs import derived_generator

NATS_PER_BIT = math.log(2)
FORGETTING_FACTOR = 1e-6  # design section 3


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of `[n, d]`, falling, `[min(n, d)]` float64, from the smaller Gram matrix.

    About nine times faster than the SVD at 10,000 × 500. Values below the Gram matrix's rounding, relative to the
    largest about 1e-7, come out as zero. Raises ValueError when the matrix is empty or not finite.
    """
    if matrix.ndim != 2 or not matrix.numel() or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"singular values: expected a finite matrix [n, d], given {list(matrix.shape)}")
    wide = matrix.double()
    gram = wide.T @ wide if len(wide) >= wide.shape[1] else wide @ wide.T
    squares = torch.linalg.eigvalsh(gram).flip(0)
    return above_rounding(squares, float(squares[0]) * max(matrix.shape) * torch.finfo(torch.float64).eps).sqrt()


def above_rounding(squares: Tensor, rounding: float) -> Tensor:
    """Eigenvalues with those that rounding alone can make set to zero."""
    return torch.where(squares > rounding, squares, 0.0)


def entropy_rank_of(sigma: Tensor) -> float | None:
    """`exp(H(p))`, `p = σ / Σσ`, of singular values `[k]`; None when all are zero."""
    share = sigma[sigma > 0] / sigma.sum()
    return math.exp(float(-(share * share.log()).sum())) if len(share) else None


def effective_rank(contexts: Tensor) -> float:
    """`exp(H(p))`, `p = σ / Σσ`, σ the singular values of the *uncentred* matrix (Roy & Vetterli 2007).

    `[n, d]`, every row used; 1 … min(n, d). It is biased low when n is not much larger than d, so quote n beside
    it, or use `calibrated_effective_rank`. Raises ValueError for a matrix of zeros, where it is undefined.
    """
    rank = entropy_rank_of(singular_values(contexts))
    if rank is None:
        raise ValueError("effective rank: undefined for a matrix of zeros")
    return rank


def calibrated_effective_rank(contexts: Tensor) -> float:
    """Effective rank over that of white noise of the same shape, times d: 0 … d, in the unit of `effective_rank`.

    `[n, d]`. Removes most of the bias of few tokens for n >= d; white noise itself comes out at d.
    """
    num_tokens, context_dim = contexts.shape
    return min(effective_rank(contexts) / noise_effective_rank(num_tokens, context_dim), 1.0) * context_dim


@lru_cache(maxsize=64)
def noise_effective_rank(num_tokens: int, context_dim: int) -> float:
    """Effective rank of white noise `[num_tokens, context_dim]`, drawn with a fixed seed."""
    noise = torch.randn(num_tokens, context_dim, generator=derived_generator("noise", num_tokens, context_dim))
    return effective_rank(noise)


@dataclass(frozen=True)
class StreamRank:
    """Effective rank of a stream's contexts, with the tokens it was measured on."""

    value: float
    context_dim: int
    num_tokens: int

    @property
    def share(self) -> float:
        """0 … 1 of the context width."""
        return self.value / self.context_dim

    def __str__(self) -> str:
        return f"{self.value:.2f}/{self.context_dim} = {self.share:.1%} ({self.num_tokens:,} tokens)"

    def record(self) -> dict[str, float]:
        return {"value": self.value, "share": self.share, "context_dim": self.context_dim, "tokens": self.num_tokens}


def stream_rank(contexts: Tensor, max_tokens: int) -> StreamRank:
    """Effective rank of the first ``max_tokens`` contexts `[N, C]`, the stream's last excluded (spec section 6)."""
    measured = contexts[:-1][:max_tokens]
    return StreamRank(effective_rank(measured), contexts.shape[1], len(measured))


@dataclass(frozen=True)
class Convergence:
    """Tokens whose context moved by less than the threshold between two iterations."""

    converged: int
    total: int

    @property
    def rate(self) -> float:
        return self.converged / self.total

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.converged}/{self.total})"

    def record(self) -> dict[str, float]:
        return {"rate": self.rate, "converged": self.converged, "total": self.total}


def count_converged(contexts: Tensor, previous: Tensor, threshold: float) -> Tensor:
    """Tokens with a mean squared change below ``threshold``; both `[n, C]`, a scalar int64 on their device."""
    return ((contexts - previous).square().mean(dim=1) < threshold).sum()


def perplexity(mean_nats: float) -> float:
    """`exp` of the mean cross-entropy; inf where that overflows, as at the start of a run that diverges."""
    return math.inf if mean_nats > 700 else math.exp(mean_nats)


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """Cross-entropy per byte of the predicted text: comparable across tokenizers."""
    return total_nats / NATS_PER_BIT / num_bytes


@torch.no_grad()
def contraction_rate(block: ContextBlock, token_embeds: Tensor, max_tokens: int = 4096) -> float:
    """Largest Lyapunov exponent of the recurrence, in nats per token; below 0 the block forgets its start.

    Benettin's method (1980) in float64: two trajectories 1e-7 apart, the distance reset after every token, its log
    growth averaged. Eight stretches of the first ``max_tokens`` tokens run at once; the first quarter of each
    (200 tokens at most) lets trajectory and direction settle.

    Args:
        token_embeds: `[N, E·T]`, N >= 64.
    """
    stretches, distance = 8, 1e-7
    steps = min(len(token_embeds), max_tokens) // stretches
    if steps < 8:
        raise ValueError(f"contraction_rate: expected at least 64 tokens, given {len(token_embeds)}")
    settle = min(steps // 4, 200)
    wide = copy.deepcopy(block).double()
    embeds = token_embeds[: stretches * steps].double().reshape(stretches, steps, -1)
    parts = wide.token_parts(embeds)
    context = torch.zeros(stretches, block.context_dim, dtype=torch.float64, device=embeds.device)
    direction = torch.randn(context.shape, generator=derived_generator("lyapunov"), dtype=torch.float64).to(context)
    growth = torch.zeros(stretches, dtype=torch.float64, device=embeds.device)
    for step in range(steps):
        direction = direction / direction.norm(dim=1, keepdim=True)
        pair = torch.cat([context, context + distance * direction])
        moved = wide.forward_from_token_parts(pair, [part[:, step].repeat(2, 1) for part in parts])[-1]
        context, direction = moved[:stretches], (moved[stretches:] - moved[:stretches]) / distance
        if step >= settle:
            growth += direction.norm(dim=1).log()
    return float(growth.mean()) / (steps - settle)


@dataclass(frozen=True)
class Forgetting:
    """How trajectories from unlike starts approach each other.

    Attributes:
        distances: largest component-wise distance after each token, from about 3 downwards.
        horizon: tokens until it fell by the factor asked for; None when it did not within the tokens given.
    """

    distances: list[float]
    horizon: int | None


def forgetting_horizon(
    block: ContextBlock, token_embeds: Tensor, factor: float = FORGETTING_FACTOR, streams: int = 4
) -> Forgetting:
    """Tokens until the difference between two starts falls by ``factor`` (design section 3), in float64.

    Args:
        token_embeds: `[N, E·T]`; ``streams`` stretches of it run at once, and the slowest one counts.
    """
    steps = len(token_embeds) // streams
    if steps < 1:
        raise ValueError(f"forgetting_horizon: expected at least {streams} tokens, given {len(token_embeds)}")
    embeds = token_embeds[: streams * steps].double().reshape(streams, steps, -1)
    # The starts are a zero context and unit normal components: their distance is of order one.
    distances = start_distances(copy.deepcopy(block).double(), embeds, stop_below=factor * 1e-3)
    below = [step for step, distance in enumerate(distances, start=1) if distance <= factor * distances[0]]
    return Forgetting(distances, below[0] if below else None)
