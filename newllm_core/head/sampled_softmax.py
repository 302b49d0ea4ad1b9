"""A softmax over the tokens that occur and a sample of those that do not, for training against a large vocabulary.

Of 50,257 tokens the embedded corpus's training text uses some 4,000. All of these are kept; of the others a few are
drawn anew each time and stand for the rest with the weight 1 / share in the softmax's sum (importance sampling, Bengio
& Senécal 2008). Losses that are reported are never sampled.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from newllm_core.head.cross_entropy import Head, HeadLoss, with_output_bias, with_unit_columns
from newllm_core.runs.reproducibility import derived_generator


@dataclass(frozen=True)
class VocabularySample:
    """``ids`` `[K]` of the kept tokens, ``log_weights`` `[K]` to add to their logits, ``places`` `[V]` of each token in
    ``ids``, -1 where it was not kept."""

    ids: Tensor
    log_weights: Tensor
    places: Tensor

    def weight(self, head_weight: Tensor, bias: Tensor | None) -> Tensor:
        """The head of the kept tokens, its bias the given one and their weights: `[V, E]`, `[V]` -> `[K, E + 2]`."""
        kept = self.log_weights if bias is None else self.log_weights + bias[self.ids]
        return with_output_bias(head_weight[self.ids], kept)

    def hidden(self, hidden: Tensor, embed_dim: int) -> Tensor:
        """Hidden states `[n, E]` or `[n, E + 2]` for that head."""
        return with_unit_columns(hidden) if hidden.shape[1] == embed_dim else hidden


class SampledHead:
    """In training's place of a `head.Head`: takes the same hidden states and targets of the whole vocabulary."""

    def __init__(self, sample: VocabularySample, head_weight: Tensor, bias: Tensor | None, method: str) -> None:
        self._sample, self._embed_dim = sample, head_weight.shape[1]
        self._head = Head(sample.weight(head_weight, bias), method)

    def loss(self, hidden: Tensor, targets: Tensor) -> HeadLoss:
        """`hidden [n, E] or [n, E + 2], targets [n]`, as `Head.loss`; every target has to be a kept token."""
        return self._head.loss(self._sample.hidden(hidden, self._embed_dim), self._sample.places[targets])


def epochs_head(
    head_weight: Tensor, bias: Tensor | None, method: str, train_tokens: Tensor, num_unseen: int, seed: int, epoch: int
) -> SampledHead:
    """An epoch's softmax: over all tokens seen in ``train_tokens`` `[N]`, and other unseen ones than the last epoch's.

    ``head_weight`` `[V, E]`, ``bias`` `[V]`.
    """
    generator = derived_generator("unseen", seed, epoch)
    sample = sample_vocabulary(train_tokens, len(head_weight), num_unseen, generator)
    return SampledHead(sample, head_weight, bias, method)


def sample_vocabulary(
    train_tokens: Tensor, vocab_size: int, num_unseen: int, generator: torch.Generator
) -> VocabularySample:
    """Every token type of ``train_tokens`` `[N]`, and ``num_unseen`` others drawn without replacement.

    The types stand in the order of their ids. Raises ValueError for a ``num_unseen`` below 1.
    """
    if num_unseen < 1:
        raise ValueError(f"sample_vocabulary: expected num_unseen of at least 1, given {num_unseen}")
    seen = torch.bincount(train_tokens.cpu(), minlength=vocab_size) > 0
    unseen = (~seen).nonzero()[:, 0]
    drawn = unseen[torch.randperm(len(unseen), generator=generator)[:num_unseen]]
    ids = torch.cat([seen.nonzero()[:, 0], drawn]).sort().values
    log_weight = math.log(len(unseen) / len(drawn)) if len(drawn) else 0.0
    log_weights = torch.where(seen[ids], 0.0, log_weight)
    places = torch.full((vocab_size,), -1)
    places[ids] = torch.arange(len(ids))
    device = train_tokens.device
    return VocabularySample(ids.to(device), log_weights.to(device), places.to(device))
