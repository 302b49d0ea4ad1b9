"""The unigram: token frequencies, smoothed. A baseline, and the fixed output bias of the regularised readout."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Additive counts tried, by leave-one-out on the training tokens.
UNIGRAM_ADDED = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Unigram:
    """``log_probabilities`` `[V]`, and the ``added`` count per token that was chosen."""

    log_probabilities: Tensor
    added: float


def fit_unigram(tokens: Tensor, vocab_size: int) -> Unigram:
    """Additive smoothing, whose count is the best of `UNIGRAM_ADDED` when each training token is left out in turn.

    Tokens `[N]` -> log probabilities `[V]`, float64, on the CPU, natural logarithms.
    """
    counts = torch.bincount(tokens.cpu(), minlength=vocab_size).double()
    seen = counts[counts > 0]

    def left_out_nats(added: float) -> float:
        return -float((seen * ((seen - 1 + added) / (len(tokens) - 1 + added * vocab_size)).log()).sum())

    added = min(UNIGRAM_ADDED, key=left_out_nats)
    return Unigram(((counts + added) / (len(tokens) + added * vocab_size)).log(), added)
