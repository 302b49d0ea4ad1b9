"""What Phase 1 minimises: the fixed-point term and the diversity terms.

A diversity loss takes contexts `[num_tokens, context_dim]` and returns its terms by name, each a scalar; their sum
is the loss. A new one is one function and one entry in DIVERSITY_ALGORITHMS and ALGORITHM_DESCRIPTIONS.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

DiversityLoss = Callable[[Tensor], Tensor]

VICREG_TARGET_STD = 1.0
VICREG_EPSILON = 1e-4
VICREG_COVARIANCE_WEIGHT = 0.04  # 1/25, as in VICReg (Bardes et al. 2022, section 4.2: 25 · variance + 1 · covariance)


def cvfp_loss(contexts: Tensor, previous: Tensor) -> Tensor:
    """Context-vector fixed point: mean squared difference of raw values, never normalised (spec section 4).

    Both `[num_tokens, context_dim]`; a scalar >= 0.
    """
    return functional.mse_loss(contexts, previous)


def mcdl_loss(contexts: Tensor) -> Tensor:
    """Mean-centred dispersion loss, `-‖X - mean(X)‖_F / n`, O(nd) (spec section 4).

    `[n, d]`; a scalar <= 0. It does not see rank: see `tests/test_losses.py`.
    """
    return -torch.linalg.vector_norm(contexts - contexts.mean(dim=0)) / contexts.shape[0]


def odcm_terms(contexts: Tensor) -> dict[str, Tensor]:
    """The two terms of `odcm_loss`: `variance` (hinge, 0 … 1) and `covariance` (weighted, >= 0).

    Raises ValueError for fewer than two tokens, where the unbiased covariance is undefined.
    """
    num_tokens, context_dim = contexts.shape
    if num_tokens < 2:
        raise ValueError(f"odcm_loss: expected at least 2 tokens, given {num_tokens}")
    centred = contexts - contexts.mean(dim=0)
    covariance = centred.T @ centred / (num_tokens - 1)
    variance = covariance.diagonal()
    hinge = functional.relu(VICREG_TARGET_STD - torch.sqrt(variance + VICREG_EPSILON)).mean()
    off_diagonal = (covariance.square().sum() - variance.square().sum()) / context_dim
    return {"variance": hinge, "covariance": VICREG_COVARIANCE_WEIGHT * off_diagonal}


def odcm_loss(contexts: Tensor) -> Tensor:
    """Off-diagonal covariance minimisation, O(nd²) (spec section 4; VICReg, Bardes et al. 2022).

    `mean_j relu(1 - sqrt(var_j + 1e-4)) + 0.04 · Σ_{i≠j} Cov_ij² / d`, unbiased. `[n, d]`; a scalar >= 0.
    """
    terms = odcm_terms(contexts)
    return terms["variance"] + terms["covariance"]


DIVERSITY_ALGORITHMS: dict[str, DiversityLoss] = {"MCDL": mcdl_loss, "ODCM": odcm_loss}

ALGORITHM_DESCRIPTIONS: dict[str, str] = {
    "MCDL": "mean-centred dispersion: pushes contexts away from their mean, O(nd)",
    "ODCM": "off-diagonal covariance minimisation: unit variances, no correlations, as in VICReg, O(nd²)",
}


def diversity_loss(name: str) -> DiversityLoss:
    """The algorithm of that name. Raises ValueError that lists the known ones."""
    if name not in DIVERSITY_ALGORITHMS:
        raise ValueError(f"unknown diversity algorithm {name!r}; known: {', '.join(DIVERSITY_ALGORITHMS)}")
    return DIVERSITY_ALGORITHMS[name]
