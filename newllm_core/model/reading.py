"""A text read token by token: all that a model remembers of it, in memory that does not grow with it.

That is a context, the last T - 1 embeddings, with counted n-grams the last n - 1 tokens, and with a continuous cache
the states before its last tokens.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.head.kneser_ney import CountedNGrams
from newllm_core.model.layers import ContextBlock


class Predictor(Protocol):
    """What reading needs of a model; see ``NewLLM``."""

    config: ModelConfig
    context_block: ContextBlock
    continuous_cache: ContinuousCache | None
    ngrams: CountedNGrams | None

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def embed_for_contexts(self, tokens: Tensor) -> Tensor: ...

    def hidden(self, contexts: Tensor, tokens: Tensor) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Reader:
    """Texts side by side, each from the zero context on.

    Args:
        model: that reads.
        num_texts: B.
        mixes: False: the model's continuous cache and counted n-grams are left out.
    """

    def __init__(self, model: Predictor, num_texts: int, mixes: bool = True) -> None:
        self.model = model
        shape = model.config
        self.context = torch.zeros(num_texts, shape.context_dim, device=model.device)
        # As a text starts: zeros, like the embeddings before its first token (``StreamEmbeddings``).
        earlier = (shape.num_input_tokens - 1) * shape.embed_dim
        self.earlier = torch.zeros(num_texts, earlier, device=model.device)
        self.hidden: Tensor | None = None  # `[B, E]`, or `[B, E + 2]` with an output bias
        cache = model.continuous_cache if mixes else None
        self.cached = None if cache is None else CachedStates(cache, num_texts, shape.embed_dim, model.device)
        self.ngrams = model.ngrams if mixes else None
        # The tokens that the longest n-grams begin with; -1 before the text's start.
        length = 0 if self.ngrams is None else self.ngrams.counts.order - 1
        self.last_tokens = torch.full((num_texts, length), -1, device=model.device)

    @torch.no_grad()
    def read(self, tokens: Tensor) -> None:
        """The next token of each text, `[B]`."""
        if self.cached is not None and self.hidden is not None:
            self.cached.add(self.hidden, tokens)
        self.last_tokens = torch.cat([self.last_tokens, tokens[:, None]], dim=1)[:, 1:]
        embeds = torch.cat([self.earlier, self.model.embed_for_contexts(tokens)], dim=1)
        self.earlier = embeds[:, self.model.config.embed_dim :]
        contexts = self.model.context_block.forward_with_intermediates(self.context, embeds)
        self.context = contexts[-1]
        self.hidden = self.model.hidden(torch.stack(contexts, dim=1), tokens)

    @torch.no_grad()
    def scores(self, rows: Tensor) -> Tensor:
        """Of what may follow in the texts ``rows`` `[n]`: logits, or log probabilities where more is mixed, `[n, V]`.

        Raises RuntimeError before a token was read.
        """
        if self.hidden is None:
            raise RuntimeError("Reader.scores: nothing was read yet; a text has at least one token")
        logits = self.model.logits(self.hidden[rows])
        if self.cached is None and self.ngrams is None:
            return logits
        probabilities = logits.double().softmax(dim=1)
        if self.cached is not None:
            probabilities = self.cached.mixed(probabilities, self.hidden, rows)
        if self.ngrams is not None:
            probabilities = self.ngrams.mixed(probabilities, self.last_tokens[rows])
        return probabilities.log().float()

    def keep(self, rows: Tensor) -> None:
        """Only the texts ``rows`` `[n]` go on."""
        self.context, self.earlier, self.last_tokens = self.context[rows], self.earlier[rows], self.last_tokens[rows]
        self.hidden = None if self.hidden is None else self.hidden[rows]
        if self.cached is not None:
            self.cached.keep(rows)


class CachedStates:
    """The continuous cache of texts that are still being written; ``head.continuous_cache`` says what it is.

    Args:
        cache: what it is like; M tokens.
        num_texts: B.
        width: E, of the states; what they have beyond it (the unit columns of an output bias) does not count.
        device: where they lie.
    """

    def __init__(self, cache: ContinuousCache, num_texts: int, width: int, device: torch.device) -> None:
        self.cache = cache
        self.keys = torch.zeros(num_texts, cache.num_cached, width, device=device)
        self.followed = torch.zeros(num_texts, cache.num_cached, dtype=torch.int64, device=device)
        self.count = 0  # of tokens added; the oldest ones are written over

    def add(self, states: Tensor, tokens: Tensor) -> None:
        """``tokens`` `[B]` followed ``states`` `[B, E]`."""
        place = self.count % self.cache.num_cached
        self.keys[:, place] = self._normalised(states)
        self.followed[:, place] = tokens
        self.count += 1

    def mixed(self, probabilities: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Of model and cache together. `[n, V]` float64, states of all texts `[B, E]`, `[n]` -> `[n, V]`."""
        filled = min(self.count, self.cache.num_cached)
        if not filled:
            return probabilities
        keys, present = self.keys[rows, :filled], self._normalised(states[rows])
        slots = torch.arange(filled, device=keys.device)
        ages = 1 + (self.count - 1 - slots) % self.cache.num_cached
        shares = self.cache.scores(torch.einsum("nme,ne->nm", keys, present), ages).softmax(dim=1)
        weight = self.cache.weight
        return ((1 - weight) * probabilities).scatter_add_(1, self.followed[rows, :filled], weight * shares.double())

    def keep(self, rows: Tensor) -> None:
        self.keys, self.followed = self.keys[rows], self.followed[rows]

    def _normalised(self, states: Tensor) -> Tensor:
        return functional.normalize(states[:, : self.keys.shape[2]], dim=1)
