"""Token vectors from co-occurrence counts: positive pointwise mutual information and a truncated SVD.

Levy & Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization"; the square root of the singular values
follows Levy, Goldberg & Dagan 2015, "Improving Distributional Similarity with Lessons Learned from Word Embeddings".
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, svds

from newllm_core.data.errors import DataError

WINDOW = 5  # tokens to each side, all counted alike


@dataclass(frozen=True)
class TypeVectors:
    """``types`` int64 [num_types], ascending token ids; ``vectors`` float64 [num_types, dim]."""

    types: NDArray[np.int64]
    vectors: NDArray[np.float64]


def cooccurrence_counts(ids: NDArray[np.int64], num_types: int, window: int = WINDOW) -> scipy.sparse.csr_matrix:
    """How often two types are at most ``window`` tokens apart in ``ids`` [num_tokens]: [num_types, num_types]."""
    distances = range(1, min(window, len(ids) - 1) + 1)
    rows = np.concatenate([ids[:-distance] for distance in distances])
    columns = np.concatenate([ids[distance:] for distance in distances])
    shape = (num_types, num_types)
    one_sided = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    return scipy.sparse.csr_matrix(one_sided + one_sided.T)


def positive_pmi(counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """max(0, ln(p(a, b) / (p(a) p(b)))) for every pair that occurs, 0 elsewhere; nats."""
    marginals = np.asarray(counts.sum(axis=1)).ravel()
    pairs = counts.tocoo()
    pmi = np.log(pairs.data * marginals.sum() / (marginals[pairs.row] * marginals[pairs.col]))
    result = scipy.sparse.csr_matrix((np.maximum(pmi, 0), (pairs.row, pairs.col)), shape=counts.shape)
    result.eliminate_zeros()
    return result


def ppmi_svd(tokens: NDArray[np.int64], dim: int, max_iterations: int | None = None) -> TypeVectors:
    """U · √S of the positive PMI matrix of ``tokens`` [num_tokens], truncated to the ``dim`` largest singular values.

    ``max_iterations`` limits ARPACK; None is its own limit of ten per type.
    Raises DataError unless 1 <= dim < number of distinct types, and when ARPACK does not converge.
    """
    types, ids = np.unique(tokens, return_inverse=True)
    if not 1 <= dim < len(types):
        raise DataError(
            f"ppmi-svd: expected embed_dim below the number of distinct training types, {len(types)}, given {dim}"
        )
    matrix = positive_pmi(cooccurrence_counts(ids, len(types)))
    # ARPACK starts from a random vector of its own unless given one; the same one gives the same vectors and signs.
    start = np.random.default_rng(0).standard_normal(len(types))
    try:
        left, singular_values, _ = svds(matrix, k=dim, v0=start, maxiter=max_iterations, rng=np.random.default_rng(0))
    except ArpackNoConvergence as error:
        raise DataError(f"ppmi-svd: the singular value decomposition did not converge ({error})") from error
    return TypeVectors(types, left * np.sqrt(singular_values))
