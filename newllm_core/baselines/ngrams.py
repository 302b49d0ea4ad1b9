"""Counts as a baseline: an interpolated Kneser-Ney 5-gram (Chen & Goodman 1999) through NLTK."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nltk.lm.api import LanguageModel
from nltk.lm.models import KneserNeyInterpolated
from nltk.util import everygrams
from torch import Tensor

from newllm_core.baselines.config import KNESER_NEY_DISCOUNTS, KNESER_NEY_HELD_OUT, NGRAM_ORDER

_START = -1  # stands before the first token, so that every context has something in front of it


class _KneserNey(KneserNeyInterpolated):  # type: ignore[misc]  # NLTK has no types
    """NLTK's model with its continuation counts in tables, and unigrams interpolated with the uniform distribution.

    NLTK scans all n-grams for each count, hours here, and gives tokens that were never seen probability 0.
    """

    def __init__(self, order: int, discount: float, vocab_size: int) -> None:
        super().__init__(order, discount=discount)
        self.vocab_size = vocab_size
        self.estimator.unigram_score = self._unigram_score
        self.estimator._continuation_counts = self._continuation_counts

    def index(self) -> "_KneserNey":
        """To be called after ``fit``: which words follow each context after how many distinct predecessors."""
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.totals: Counter[tuple[int, ...]] = Counter()
        for order in range(2, self.order + 1):
            for context, counts in self.counts[order].items():
                words = counts.keys() - {_START}
                self.followers[context[1:]].update(words)
                self.totals[context[1:]] += len(words)
        return self

    def _continuation_counts(self, word: int, context: tuple[int, ...] = ()) -> tuple[int, int]:
        return self.followers[context][word], self.totals[context]

    def _unigram_score(self, word: int) -> float:
        count, total = self._continuation_counts(word)
        kept = max(count - self.estimator.discount, 0.0)
        freed = self.estimator.discount * len(self.followers[()])
        return float((kept + freed / self.vocab_size) / total)


@dataclass(frozen=True)
class KneserNey:
    """A fitted model. ``discount`` was the best of `KNESER_NEY_DISCOUNTS` on the end of the training text."""

    model: LanguageModel
    discount: float
    order: int

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Of each target given up to order - 1 tokens before it. `[N]` -> float64 `[N - 1]`."""
        words = tokens.tolist()
        scores = [
            self.model.unmasked_score(words[place], tuple(words[max(0, place - self.order + 1) : place]))
            for place in range(1, len(words))
        ]
        return torch.tensor(scores, dtype=torch.float64).log()


def fit_kneser_ney(tokens: Tensor, vocab_size: int, order: int = NGRAM_ORDER) -> KneserNey:
    """Choose the discount on the last tenth of ``tokens`` `[N]`, then fit all of them."""
    words = tokens.tolist()
    cut = round(len(words) * (1 - KNESER_NEY_HELD_OUT))

    def held_out_nats(discount: float) -> float:
        part = KneserNey(_fit(words[:cut], order, discount, vocab_size), discount, order)
        return -float(part.log_probabilities(tokens[cut:]).sum())

    discount = min(KNESER_NEY_DISCOUNTS, key=held_out_nats)
    return KneserNey(_fit(words, order, discount, vocab_size), discount, order)


def _fit(words: Sequence[int], order: int, discount: float, vocab_size: int) -> LanguageModel:
    model = _KneserNey(order, discount, vocab_size)
    # Token ids are their own vocabulary; NLTK's would look every word up and mask the unknown ones.
    padded: list[Any] = [_START] * (order - 1) + list(words)
    model.counts.update([everygrams(padded, max_len=order)])
    return model.index()


def kneser_ney_baseline(train: Tensor, validation: Tensor, vocab_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Nats of the targets `[M - 1]` of ``validation`` `[M]` by a model of order `NGRAM_ORDER` of ``train`` `[N]`."""
    counts = fit_kneser_ney(train.cpu(), vocab_size)
    return -counts.log_probabilities(validation.cpu()), {"discount": counts.discount}
