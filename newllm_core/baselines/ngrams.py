"""Counts as a baseline: interpolated modified Kneser-Ney of five tokens, all alone."""

from typing import Any

from torch import Tensor

from newllm_core.baselines.config import NGRAM_ORDER
from newllm_core.head.kneser_ney import fit_kneser_ney


def kneser_ney_baseline(train: Tensor, validation: Tensor, vocab_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Nats of the targets `[M - 1]` of ``validation`` `[M]` by counts of ``train`` `[N]`."""
    counts = fit_kneser_ney(train.cpu(), vocab_size, NGRAM_ORDER)
    return -counts.log_probabilities(validation.cpu()), {"counted_ngrams": counts.num_ngrams}
