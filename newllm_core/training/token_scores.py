"""Log probabilities of given texts, token by token, with the model's continuous cache and counted n-grams, if it has
them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.head.mixture import mixed_nats
from newllm_core.model import NewLLM
from newllm_core.model.reading import Reader
from newllm_core.training.evaluation import evaluation_head
from newllm_core.training.phase1 import all_contexts

_TOGETHER = 64  # texts read side by side
_LONG = 512  # tokens from which a text is read alone, its contexts in parallel
_ROWS = 4096  # hidden states scored at once


class TextScores:
    """One text `[N]`, N >= 2, read once from the zero context.

    Attributes:
        nats: `[N - 1]`, float64, of the targets ``tokens[1:]``; cache and counts are mixed in.
    """

    def __init__(self, model: NewLLM, tokens: Tensor, hidden: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.states = hidden[:, : model.config.embed_dim]  # without the unit columns of an output bias
        head = evaluation_head(model, "blocks")
        figures = [head.token_figures(*rows) for rows in zip(hidden.split(_ROWS), tokens[1:].split(_ROWS), strict=True)]
        plain = torch.cat([one.nats for one in figures]).double().cpu()
        self.nats = mixed_nats(plain, tokens, model.continuous_cache, model.ngrams, lambda: self.states)
        self._plain_greedy = torch.cat([one.correct for one in figures])

    def greedy_from(self, first: int) -> bool:
        """Whether greedy writing after the first ``first`` tokens, >= 1, gives the rest of the text."""
        if self.model.continuous_cache is None and self.model.ngrams is None:
            return bool(self._plain_greedy[first - 1 :].all())
        return all(self._mixed_best(row) == int(self.tokens[row + 1]) for row in range(first - 1, len(self.states)))

    @torch.no_grad()
    def _mixed_best(self, row: int) -> int:
        """The most probable token after token ``row``, cache and counts included."""
        cache, ngrams = self.model.continuous_cache, self.model.ngrams
        # Without unit columns: ``NewLLM.logits`` adds the bias itself.
        probabilities = self.model.logits(self.states[row : row + 1])[0].double().softmax(dim=0)
        oldest = row if cache is None else max(0, row - cache.num_cached)
        if cache is not None and oldest < row:
            keys = functional.normalize(self.states[oldest : row + 1], dim=1)
            ages = torch.arange(row - oldest, 0, -1, device=keys.device)
            shares = cache.scores(keys[:-1] @ keys[-1], ages).softmax(dim=0)
            probabilities *= 1 - cache.weight
            probabilities.index_add_(0, self.tokens[oldest + 1 : row + 1], cache.weight * shares.double())
        if ngrams is not None:
            history = self.tokens[max(0, row + 2 - ngrams.counts.order) : row + 1]
            probabilities = ngrams.mixed(probabilities[None], history[None])[0]
        return int(probabilities.argmax())


@torch.no_grad()
def score_texts(model: NewLLM, texts: Sequence[Tensor]) -> Iterator[tuple[int, TextScores]]:
    """Number and scores of each of ``texts``, token ids `[N]` each, N >= 2; the short ones first, by length.

    Raises ValueError for a shorter text.
    """
    for number, tokens in enumerate(texts):
        if len(tokens) < 2:
            raise ValueError(f"expected texts of at least 2 tokens, given {len(tokens)} in text {number}")
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    short = [number for number in order if len(texts[number]) < _LONG]
    for first in range(0, len(short), _TOGETHER):
        numbers = short[first : first + _TOGETHER]
        group = [texts[number].to(model.device) for number in numbers]
        for number, tokens, hidden in zip(numbers, group, _read_together(model, group), strict=True):
            yield number, TextScores(model, tokens, hidden[: len(tokens) - 1])
    for number in order[len(short) :]:
        tokens = texts[number].to(model.device)
        contexts = all_contexts(model, tokens)[:-1]
        pairs = zip(contexts.split(_ROWS), tokens[:-1].split(_ROWS), strict=True)
        hidden = torch.cat([model.hidden(some.to(model.device), ids) for some, ids in pairs])
        yield number, TextScores(model, tokens, hidden)


def _read_together(model: NewLLM, texts: Sequence[Tensor]) -> Tensor:
    """Hidden states before each target, `[B, T, E]`; what follows the end of a text is arbitrary."""
    padded = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    reader, hidden = Reader(model, len(texts), mixes=False), []
    for tokens in padded[:, :-1].unbind(1):
        reader.read(tokens)
        assert reader.hidden is not None
        hidden.append(reader.hidden)
    return torch.stack(hidden, dim=1)
