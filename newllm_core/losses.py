"""What Phase 1 minimises: the fixed-point term and the diversity terms.

A diversity loss takes contexts `[num_tokens, context_dim]` and returns a scalar. A new one is one function and one
entry in DIVERSITY_ALGORITHMS and ALGORITHM_DESCRIPTIONS; from a notebook, `register_diversity_loss`. Those of the
project see the other ranks' contexts through ``Sums``, the user's through all rows.

MCDL and ODCM are the notes'. Neither sees rank as such: with unit gain after LayerNorm MCDL is the same for two points
as for an isotropic cloud, and ODCM's hinge is content with any variances above 1. The others see it.
"""

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from newllm_core.config.schema import ConfigError

DiversityLoss = Callable[..., Tensor]  # of contexts, those of the project of ``Sums`` too

VICREG_TARGET_STD = 1.0
VICREG_EPSILON = 1e-4
RANK_LOSS_FLOOR = 1e-3
LOG_DET_WEIGHT, LOG_DET_EPSILON = 1.0, 1e-3  # γ: the variance of every direction at the minimum, but for ε
SIGREG_KNOTS, SIGREG_RANGE, SIGREG_SLICES = 17, 5.0, 256  # LeJEPA's values
VICREG_COVARIANCE_WEIGHT = 0.04  # 1/25, as in VICReg (Bardes et al. 2022, section 4.2: 25 · variance + 1 · covariance)


class Sums:
    """What a loss reads of a batch's tokens together; here all of them are in one process."""

    def count(self, rows: Tensor) -> int:
        return len(rows)

    def total(self, values: Tensor) -> Tensor:
        """Of sums over rows."""
        return values

    def part_of_mean(self, rows: Tensor) -> Tensor:
        """What these rows `[n, d]` add to the mean, `[d]`; their ``total`` is the mean."""
        return rows.mean(dim=0)

    def centred(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(dim=0)


class SumsOverRanks(Sums):
    """The same where each rank holds ``rows`` of a batch's ``num_tokens``; every rank has the same loss, and the
    gradient of its own rows. ``add_up``: over ranks (`World.total`)."""

    def __init__(self, num_tokens: int, add_up: Callable[[Tensor], Tensor]) -> None:
        self.num_tokens, self._add_up = num_tokens, add_up

    def count(self, rows: Tensor) -> int:
        return self.num_tokens

    def total(self, values: Tensor) -> Tensor:
        return self._add_up(values)

    def part_of_mean(self, rows: Tensor) -> Tensor:
        return rows.sum(dim=0) / self.num_tokens

    def centred(self, rows: Tensor) -> Tensor:
        # What is read of centred rows, squares and products, does not change with the mean to first order.
        return rows - self.total(self.part_of_mean(rows.detach()))


_ALONE = Sums()


class NotFiniteError(RuntimeError):
    """A loss became infinite or not a number; the message names the term, and the training loop says where."""


def refuse_not_finite(terms: Mapping[str, float]) -> None:
    """Raises NotFiniteError for the first of the named figures that is not finite."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} is {value}")


def cvfp_loss(contexts: Tensor, previous: Tensor) -> Tensor:
    """Context-vector fixed point: mean squared difference of raw values, never normalised (docs/method.md, section 4).

    Both `[num_tokens, context_dim]`; a scalar >= 0.
    """
    return functional.mse_loss(contexts, previous)


def mcdl_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """Mean-centred dispersion loss, `-‖X - mean(X)‖_F / n`, O(nd) (docs/method.md, section 4).

    `[n, d]`; a scalar <= 0. It does not see rank: see `tests/test_losses.py`.
    """
    dispersion: Tensor = _Dispersion.apply(contexts, sums)  # type: ignore[no-untyped-call]
    return dispersion


class _Dispersion(torch.autograd.Function):
    """MCDL with its gradient in one pass, `-(X - mean(X)) / (n ‖X - mean(X)‖)`: autograd goes through the mean again,
    where rows that sum to zero give nothing, and takes four times as long."""

    @staticmethod
    def forward(ctx: Any, contexts: Tensor, sums: Sums) -> Tensor:
        centred = sums.centred(contexts)
        norm = torch.linalg.vector_norm(centred)
        if sums is not _ALONE:
            norm = sums.total(norm.square()).sqrt()
        ctx.save_for_backward(centred, norm)
        ctx.count = sums.count(contexts)
        return -norm / ctx.count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, led: Tensor) -> tuple[Tensor, None]:
        centred, norm = ctx.saved_tensors
        # Where all contexts are the same there is no direction, and nothing to push along.
        scale = torch.where(norm > 0, -led / (ctx.count * norm), 0.0)
        return centred * scale, None


def odcm_terms(contexts: Tensor, sums: Sums = _ALONE) -> dict[str, Tensor]:
    """The two terms of `odcm_loss` of `[n, d]`: `variance` (hinge, 0 … 1) and `covariance` (weighted, >= 0), scalars.

    Raises ValueError for fewer than two tokens, where the unbiased covariance is undefined.
    """
    num_tokens, context_dim = sums.count(contexts), contexts.shape[1]
    if num_tokens < 2:
        raise ValueError(f"odcm_loss: expected at least 2 tokens, given {num_tokens}")
    centred = sums.centred(contexts)
    covariance = sums.total(centred.T @ centred) / (num_tokens - 1)
    variance = covariance.diagonal()
    hinge = functional.relu(VICREG_TARGET_STD - torch.sqrt(variance + VICREG_EPSILON)).mean()
    off_diagonal = (covariance.square().sum() - variance.square().sum()) / context_dim
    return {"variance": hinge, "covariance": VICREG_COVARIANCE_WEIGHT * off_diagonal}


def odcm_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """Off-diagonal covariance minimisation, O(nd²) (docs/method.md, section 4; VICReg, Bardes et al. 2022).

    `mean_j relu(1 - sqrt(var_j + 1e-4)) + 0.04 · Σ_{i≠j} Cov_ij² / d`, unbiased. `[n, d]`; a scalar >= 0.
    """
    terms = odcm_terms(contexts, sums)
    return terms["variance"] + terms["covariance"]


def participation_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """Minus the log of the participation ratio of the covariance, `log‖C‖²_F - 2 log tr C`, O(nd²).

    The participation ratio `(tr C)² / ‖C‖²_F` counts directions, 1 … d (Gao et al. 2017). `[n, d]`; `-log d … 0`, and
    0, the worst, for contexts that are all the same.
    """
    centred = sums.centred(contexts)
    covariance = sums.total(centred.T @ centred) / sums.count(contexts)
    # The same tiny number on both sides: it cancels where there is no variance at all.
    tiny = torch.finfo(contexts.dtype).tiny
    squares, trace = covariance.square().sum(), covariance.diagonal().sum()
    return torch.log(squares + tiny) - 2 * torch.log(trace + math.sqrt(tiny))


def effective_rank_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """Minus the log of the effective rank itself, `-H(p)`, `p = σ / Σσ`, from the Gram matrix, O(nd² + d³).

    σ are the singular values of the uncentred contexts, as in `metrics.effective_rank` (Roy & Vetterli 2007); those
    below a thousandth of the root mean square count as that, so that the gradient stays finite. `[n, d]`; about
    `-log d … 0`, and 0, the worst, for contexts on one line through zero.
    """
    gram = sums.total(contexts.T @ contexts)
    # The gradient of a function of eigenvalues needs no gaps between them, unlike one of eigenvectors.
    squares = torch.linalg.eigvalsh(gram)
    floor = squares.detach().mean().clamp_min(torch.finfo(contexts.dtype).tiny) * RANK_LOSS_FLOOR**2
    sigma = squares.clamp_min(floor).sqrt()
    share = sigma / sigma.sum()
    return (share * share.log()).sum()


def sigreg_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """SIGReg: distance of random one-dimensional projections from a standard normal, O(nd · slices).

    Per slice the Epps–Pulley statistic, the weighted squared difference of characteristic functions, by the trapezoid
    rule on 17 knots in [-5, 5] (LeJEPA, Balestriero & LeCun 2025), here without its factor n so that it does not depend
    on the batch; mean over 256 slices. `[n, d]`; a scalar >= 0. Slices are drawn anew at each call from torch's global
    generator, which a run seeds: fixed ones would leave directions unseen.
    """
    slices = functional.normalize(torch.randn(contexts.shape[1], SIGREG_SLICES, dtype=contexts.dtype), dim=0)
    projected = contexts @ slices.to(contexts.device)
    # Both characteristic functions are symmetric in t, so half of the knots do, at twice their weight.
    knots = torch.linspace(0, SIGREG_RANGE, (SIGREG_KNOTS + 1) // 2, dtype=contexts.dtype, device=contexts.device)
    statistic = contexts.new_zeros(SIGREG_SLICES)
    spacing = SIGREG_RANGE / (len(knots) - 1)
    parts = []
    for knot in knots:
        phase = projected * knot
        parts += [sums.part_of_mean(phase.cos()), sums.part_of_mean(phase.sin())]
    means = sums.total(torch.stack(parts)).unflatten(0, (len(knots), 2))
    for number, (knot, (cosine, sine)) in enumerate(zip(knots, means, strict=True)):
        normal = torch.exp(-0.5 * knot.square())
        difference = (cosine - normal).square() + sine.square()
        ends = 0.5 if number in (0, len(knots) - 1) else 1.0
        statistic = statistic + 2 * spacing * ends * normal * difference
    return statistic.mean()


def log_det_loss(contexts: Tensor, sums: Sums = _ALONE) -> Tensor:
    """`(tr C - γ log det(C + ε I)) / d` of the covariance, O(nd² + d³): the regulariser of λ-JEPA (2026), over d.

    A Gaussian's distance from the standard normal (Kullback–Leibler, twice and up to a constant) but for the mean.
    `[n, d]`; least, near 1 with γ = 1, at equal variances of γ - ε in all directions; `-γ log ε` for contexts that are
    all the same.
    """
    centred = sums.centred(contexts)
    covariance = sums.total(centred.T @ centred) / sums.count(contexts)
    shift = torch.full_like(covariance.diagonal(), LOG_DET_EPSILON).diag()
    trace, log_det = covariance.diagonal().sum(), torch.linalg.slogdet(covariance + shift).logabsdet
    return (trace - LOG_DET_WEIGHT * log_det) / len(covariance)


DIVERSITY_ALGORITHMS: dict[str, DiversityLoss] = {
    "MCDL": mcdl_loss,
    "ODCM": odcm_loss,
    "PR": participation_loss,
    "SIGReg": sigreg_loss,
    "ER": effective_rank_loss,
    "LogDet": log_det_loss,
}

ALGORITHM_DESCRIPTIONS: dict[str, str] = {
    "MCDL": "mean-centred dispersion: pushes contexts away from their mean, O(nd)",
    "ODCM": "off-diagonal covariance minimisation: unit variances, no correlations, as in VICReg, O(nd²)",
    "PR": "minus log participation ratio: as many directions of equal variance as possible, O(nd²)",
    "SIGReg": "random projections like a standard normal, as in LeJEPA, O(nd · 256)",
    "ER": "minus log effective rank itself, O(nd² + d³)",
    "LogDet": "trace minus log determinant of the covariance, as in λ-JEPA, O(nd² + d³)",
}


_BUILT_IN = frozenset(DIVERSITY_ALGORITHMS)
# They draw nothing, so that a batch's loss does not depend on which batches the same process has had before.
WITHOUT_DRAWS = _BUILT_IN - {"SIGReg"}
_fingerprints: dict[str, str] = {}  # of registered losses, taken when they were registered


def register_diversity_loss(name: str, description: str, loss: DiversityLoss) -> None:
    """Make a loss of your own known under ``name``, e.g. from a notebook; a second call replaces the first.

    Runs made with it carry the hash of its source, and a run folder made with another source is refused.
    Raises ValueError for a built-in name, one that cannot be part of a file name, a function without source, or one
    that uses variables of an enclosing function, whose values its source does not tell.
    """
    if name in _BUILT_IN:
        raise ValueError(f"diversity algorithm {name!r} is built in; choose another name")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"diversity algorithm: expected a name of letters, digits, '_', '.', '-', given {name!r}")
    _fingerprints[name] = _fingerprint(name, loss)
    DIVERSITY_ALGORITHMS[name], ALGORITHM_DESCRIPTIONS[name] = loss, description


def user_loss_fingerprint(name: str) -> str | None:
    """SHA-256 of the source of a registered loss; None for a built-in one. Raises ValueError as `diversity_loss`."""
    diversity_loss(name)
    return _fingerprints.get(name)


def _fingerprint(name: str, loss: DiversityLoss) -> str:
    if getattr(loss, "__closure__", None):
        raise ValueError(
            f"diversity algorithm {name!r}: uses variables of an enclosing function, so that its source does not say "
            "what it computes; write their values into it"
        )
    try:
        source = inspect.getsource(loss)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"diversity algorithm {name!r}: expected a function whose source can be read, written in a notebook cell "
            f"or a file ({error})"
        ) from error
    return hashlib.sha256(f"{source}{getattr(loss, '__defaults__', None)}".encode()).hexdigest()


def diversity_loss(name: str) -> DiversityLoss:
    """The algorithm of that name. Raises ConfigError that lists the known ones."""
    if name not in DIVERSITY_ALGORITHMS:
        raise ConfigError(f"unknown diversity algorithm {name!r}; known: {', '.join(DIVERSITY_ALGORITHMS)}")
    return DIVERSITY_ALGORITHMS[name]


def diversity_over_ranks(
    name: str, num_tokens: int, add_up: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]
) -> DiversityLoss:
    """The algorithm of that name for a rank's rows of a batch of ``num_tokens``: the loss of the whole batch.

    Args:
        add_up: sums over ranks.
        gather: from a rank's rows to all of the batch, for a registered loss, which knows nothing of ranks.
    """
    loss = diversity_loss(name)
    if name in _BUILT_IN:
        return partial(loss, sums=SumsOverRanks(num_tokens, add_up))
    return lambda contexts: loss(gather(contexts))
