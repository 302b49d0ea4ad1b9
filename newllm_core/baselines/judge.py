"""How a baseline network reads a text, and how well it predicts it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from newllm_core.baselines.config import BaselineConfig
from newllm_core.head.continuous_cache import configured_cache
from newllm_core.head.cross_entropy import Head, with_output_bias, with_unit_columns
from newllm_core.head.kneser_ney import count_ngrams
from newllm_core.head.mixture import mixed_nats
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.model import NewLLM
from newllm_core.runs.world import current_world

_READ_AT_ONCE = 1024  # tokens, for networks that carry a state


@dataclass(frozen=True)
class NetworkReader:
    """A network between the embeddings of ``model`` and a head."""

    network: nn.Module
    model: NewLLM
    config: BaselineConfig

    def for_head(self, hidden: Tensor) -> Tensor:
        """`[..., E]` -> `[n, E]`, with the unit columns of an output bias where there is one."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return with_unit_columns(flat) if self.config.unigram_bias else flat

    @torch.no_grad()
    def nats(self, tokens: Tensor, head: Head) -> Tensor:
        """Nats of each target of ``tokens`` `[M]`: `[M - 1]`, on the CPU, float64."""
        windows = self._read(tokens)
        nats = [head.token_figures(self.for_head(hidden), targets).nats.double().cpu() for hidden, targets in windows]
        return torch.cat(nats)

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """`[M - 1, E]`, on the CPU: what the network knew before each target of ``tokens`` `[M]`."""
        return torch.cat([hidden.cpu() for hidden, _ in self._read(tokens)])

    def _read(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Hidden states and targets of ``tokens`` `[M]`, window by window."""
        self.network.eval()
        return self.windows(tokens) if self.config.network == "gpt" else self._stateful_windows(tokens)

    def _stateful_windows(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        state = None
        for first in range(0, len(tokens) - 1, _READ_AT_ONCE):
            last = min(first + _READ_AT_ONCE, len(tokens) - 1)
            hidden, state = self.network(self.model.embed(tokens[None, first:last]), state)
            yield hidden[0], tokens[first + 1 : last + 1]

    def windows(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows that overlap by half, of which the later half is judged: no target has less than half a window."""
        width = self.config.segment_tokens
        half = width // 2
        for judged in range(0, len(tokens) - 1, half):
            first, last = max(0, judged + half - width), min(judged + half, len(tokens) - 1)
            hidden, _ = self.network(self.model.embed(tokens[None, first:last]), None)
            yield hidden[0, judged - first :], tokens[judged + 1 : last + 1]


def output_bias_and_weight(model: NewLLM, train_tokens: Tensor, config: BaselineConfig) -> tuple[Tensor | None, Tensor]:
    """Log probabilities `[V]` of the training text's `[N]` unigram, None where ``config`` has no such bias; and what
    the head multiplies: the embeddings `[V, E]`, with the bias's two columns where there is one."""
    weight = model.head_weight.detach()
    if not config.unigram_bias:
        return None, weight
    bias = fit_unigram(train_tokens, len(weight)).log_probabilities.to(weight)
    return bias, with_output_bias(weight, bias)


@dataclass(frozen=True)
class Judgement:
    """``nats`` `[M - 1]` of the judged targets, exact products; ``counted_ngrams``: 0 where none are mixed in."""

    nats: Tensor
    counted_ngrams: int


def judge_network(
    network: nn.Module, model: NewLLM, train_tokens: Tensor, validation_tokens: Tensor, config: BaselineConfig
) -> Judgement:
    """On ``validation_tokens`` `[M]`, M >= 2, with the continuous cache and the n-grams of ``train_tokens`` `[N]` that
    ``config`` asks for; of several ranks the first one judges.

    Raises ValueError for a text whose n-grams cannot be counted (``fit_kneser_ney``).
    """
    _, weight = output_bias_and_weight(model, train_tokens, config)
    exact = Head(weight, "blocks")  # whatever training rounds
    ngrams = count_ngrams(train_tokens, len(model.head_weight), config.ngram_weight, config.ngram_order)
    reader, cache, judges = NetworkReader(network, model, config), configured_cache(config), validation_tokens.cpu()

    def judged() -> Tensor:
        plain = reader.nats(validation_tokens, exact)
        return mixed_nats(plain, judges, cache, ngrams, lambda: reader.states(validation_tokens))

    return Judgement(current_world().from_first(judged), 0 if ngrams is None else ngrams.counts.num_ngrams)
