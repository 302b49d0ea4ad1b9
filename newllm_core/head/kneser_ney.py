"""Interpolated modified Kneser-Ney (Chen & Goodman 1999): how often tokens followed one another, smoothed.

The probability of a token after a history is its discounted share of what followed that history in the training text,
and what the discounts freed goes to the history that is one token shorter:
`p(w | h) = max(c(hw) - D, 0) / c(h) + γ(h) · p(w | h')`. All but the longest n-grams count by how many different tokens
stood before them. The shortest share with the uniform distribution, so no token has probability 0. The discounts of
counts 1, 2, and 3 or more come from the counts themselves: nothing is chosen on held-out text.

An n-gram is known by one integer, made of the number of its first n - 1 tokens and its last token, and found in a
sorted list: all is done by whole tensors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, for counts that are too few to tell them


@dataclass(frozen=True)
class NGrams:
    """All n-grams of one length, K of them, whose histories are the G ones of one token less.

    Attributes:
        keys: `[K]` int64, sorted: number of the history · V + last token.
        shares: `[K]` float64: what the discount leaves of each count, over the counts of its history.
        freed: `[G]` float64: what is left for shorter histories; 1 where nothing follows.
    """

    keys: Tensor
    shares: Tensor
    freed: Tensor


class KneserNey:
    """Counts of n-grams with 1 … n tokens, ready to be asked.

    Attributes:
        vocab_size: V.
        orders: one for each length.
    """

    def __init__(self, vocab_size: int, orders: list[NGrams]) -> None:
        self.vocab_size, self.orders = vocab_size, orders

    @property
    def order(self) -> int:
        return len(self.orders)

    @property
    def num_ngrams(self) -> int:
        """How many there are, of all lengths."""
        return sum(len(one.keys) for one in self.orders)

    def tensors(self) -> dict[str, Tensor]:
        """All that there is, by name; ``from_tensors`` reads it again."""
        return {
            f"{length}.{name}": tensor
            for length, one in enumerate(self.orders, 1)
            for name, tensor in vars(one).items()
        }

    @classmethod
    def from_tensors(cls, vocab_size: int, tensors: Mapping[str, Tensor]) -> "KneserNey":
        """Raises KeyError for a name that is missing."""
        lengths = range(1, 1 + max(int(name.split(".")[0]) for name in tensors))
        names = [field.name for field in fields(NGrams)]
        return cls(vocab_size, [NGrams(*(tensors[f"{length}.{name}"] for name in names)) for length in lengths])

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """Of each target given up to n - 1 tokens before it, in nats. `[M]` -> float64 `[M - 1]`."""
        tokens = tokens.long()
        found = torch.full((len(tokens) - 1,), 1 / self.vocab_size, dtype=torch.float64, device=tokens.device)
        history = torch.zeros_like(tokens)  # the number of the n-gram that ends here; of none of 0 tokens there is one
        for one in self.orders:
            number = self._found(one, history[:-1], tokens[1:])
            shared = torch.where(history[:-1] < 0, 1.0, one.freed[history[:-1].clamp(min=0)])
            found = torch.where(number < 0, 0.0, one.shares[number.clamp(min=0)]) + shared * found
            # The text's first token has nothing before it, but is itself a history.
            first = self._found(one, history.new_full((1,), 0 if one is self.orders[0] else -1), tokens[:1])
            history = torch.cat([first, number])
        return found.log()

    def probabilities(self, histories: Tensor) -> Tensor:
        """Of every token after the last tokens of each text. `[B, m]`, m >= 0, -1 before a text's start -> `[B, V]`."""
        shape, device = (len(histories), self.vocab_size), histories.device
        found = torch.full(shape, 1 / self.vocab_size, dtype=torch.float64, device=device)
        for one, history in zip(self.orders, self._histories(histories)):
            known = history.clamp(min=0)
            first, last = (torch.searchsorted(one.keys, (known + step) * self.vocab_size) for step in (0, 1))
            followers = torch.where(history < 0, 0, last - first)
            rows = torch.arange(len(history), device=device).repeat_interleave(followers)
            before = (followers.cumsum(0) - followers).repeat_interleave(followers)
            places = first.repeat_interleave(followers) + torch.arange(len(rows), device=device) - before
            found *= torch.where(history < 0, 1.0, one.freed[known])[:, None]
            found[rows, one.keys[places] % self.vocab_size] += one.shares[places]
        return found

    def _histories(self, histories: Tensor) -> Iterator[Tensor]:
        """Numbers `[B]` of the last 0, 1, … n - 1 tokens, -1 for what was never seen."""
        for length in range(self.order):
            number = torch.zeros(len(histories), dtype=torch.int64, device=histories.device)
            if length > histories.shape[1]:
                number -= 1
            elif length:
                for one, tokens in zip(self.orders, histories[:, -length:].unbind(1)):
                    number = self._found(one, number, tokens)
            yield number

    def _found(self, ngrams: NGrams, histories: Tensor, tokens: Tensor) -> Tensor:
        """Number of the n-gram of each history's number and token, -1 for what was never seen."""
        keys = histories * self.vocab_size + tokens
        places = torch.searchsorted(ngrams.keys, keys).clamp(max=len(ngrams.keys) - 1)
        known = (ngrams.keys[places] == keys) & (histories >= 0) & (tokens >= 0)
        return torch.where(known, places, -1)


def fit_kneser_ney(tokens: Tensor, vocab_size: int, order: int) -> KneserNey:
    """Count a text `[N]` of at least two tokens; n-grams have at most ``order`` >= 1 of them.

    Raises ValueError for less text, another order, or numbers that int64 cannot hold.
    """
    if order < 1 or len(tokens) < 2:
        raise ValueError(f"Kneser-Ney: expected order >= 1 and at least 2 tokens, given {order} and {len(tokens)}")
    if len(tokens) * vocab_size >= 2**63:
        raise ValueError(f"Kneser-Ney: expected tokens · vocab_size < 2^63, given {len(tokens)} · {vocab_size}")
    tokens, lengths = tokens.long(), min(order, len(tokens) - 1)
    keys, ends = list[Tensor](), [torch.zeros_like(tokens)]  # number of the n-gram that ends at each token
    for _ in range(lengths):
        one, numbers = (ends[-1][: len(ends[-1]) - bool(keys)] * vocab_size + tokens[len(keys) :]).unique(
            return_inverse=True
        )
        keys.append(one)
        ends.append(numbers)
    return KneserNey(vocab_size, [_ngrams(keys, ends, length, vocab_size) for length in range(1, lengths + 1)])


def _ngrams(keys: list[Tensor], ends: list[Tensor], length: int, vocab_size: int) -> NGrams:
    """Of the n-grams with ``length`` tokens; of the longest, occurrences count."""
    own, numbers = keys[length - 1], ends[length]
    if length == len(keys):
        counts = numbers.bincount(minlength=len(own))
    else:  # how many different longer n-grams end in each
        longer = ends[length + 1]
        place = torch.zeros_like(keys[length]).scatter_(0, longer, torch.arange(len(longer), device=longer.device))
        counts = numbers[place + 1].bincount(minlength=len(own))
    histories = torch.div(own, vocab_size, rounding_mode="floor")
    size = len(keys[length - 2]) if length > 1 else 1
    discounts = counts.new_tensor((0.0, *_discounts(counts)), dtype=torch.float64)[counts.clamp(max=3)]
    total = torch.zeros(size, dtype=torch.float64, device=own.device).index_add_(0, histories, counts.double())
    freed = torch.zeros_like(total).index_add_(0, histories, discounts)
    followed = total > 0
    shares = (counts - discounts) / total[histories].clamp(min=1)
    return NGrams(own, shares, torch.where(followed, freed / total.clamp(min=1), 1.0))


def _discounts(counts: Tensor) -> tuple[float, float, float]:
    """Of counts 1, 2, and 3 or more (Chen & Goodman 1999, equation 26)."""
    once, twice, three, four = counts.bincount(minlength=5)[1:5].tolist()
    if not (once and twice and three and four):
        return _FALLBACK_DISCOUNTS
    share = once / (once + 2 * twice)
    found = 1 - 2 * share * twice / once, 2 - 3 * share * three / twice, 3 - 4 * share * four / three
    return found if all(0 <= one <= most for one, most in zip(found, (1, 2, 3))) else _FALLBACK_DISCOUNTS


@dataclass(frozen=True)
class CountedNGrams:
    """Counts beside a model: `p = (1 - weight) · p_model + weight · p_counts`, all on the CPU.

    ``weight``: 0 … 1. Nothing is trained.
    """

    weight: float
    counts: KneserNey

    def mixed_nats(self, nats: Tensor, tokens: Tensor) -> Tensor:
        """The losses `[N - 1]` of a model on the text `[N]` with the counts mixed in, float64, on the CPU."""
        counted = self.counts.log_probabilities(tokens.cpu()).exp()
        return -((1 - self.weight) * torch.exp(-nats.double().cpu()) + self.weight * counted).log()

    def mixed(self, probabilities: Tensor, histories: Tensor) -> Tensor:
        """Of every token, `[n, V]`, after the last tokens of each text `[n, m]`; -1 is before its start."""
        counted = self.counts.probabilities(histories.cpu()).to(probabilities.device)
        return (1 - self.weight) * probabilities + self.weight * counted


def count_ngrams(tokens: Tensor, vocab_size: int, weight: float, order: int) -> CountedNGrams | None:
    """Those of a training text `[N]`; None for a weight of 0. Raises as ``fit_kneser_ney``."""
    return CountedNGrams(weight, fit_kneser_ney(tokens.cpu(), vocab_size, order)) if weight else None
