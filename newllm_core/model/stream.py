"""A stream of tokens as the ContextBlock reads it: embeddings slice by slice, and token halves by token type.

A text has far fewer types than tokens (5,732 of 57,173), so a layer's token half is a table with one row per type
and each token an index into it; its gradient is gathered by type before it is led through the product.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.model.layers import ContextBlock
from newllm_core.model.llm import NewLLM


class StreamEmbeddings:
    """The ContextBlock's token input `[N, E·T]` of a stream, computed slice by slice.

    A stream of a million tokens would need gigabytes at once; ``embeddings[a:b]`` computes rows a … b-1: the last
    T normalised embeddings up to each token, oldest first, zeros before the start.
    """

    def __init__(self, model: NewLLM, tokens: Tensor) -> None:
        self.model = model
        self.tokens = tokens

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tokens), self.model.config.embed_dim * self.model.config.num_input_tokens

    def __len__(self) -> int:
        return len(self.tokens)

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(len(self.tokens))
        if step != 1:
            raise ValueError(f"StreamEmbeddings: expected a slice of step 1, given {step}")
        earlier = self.model.config.num_input_tokens - 1
        first = max(start - earlier, 0)
        embedded = self.model.embed_for_contexts(self.tokens[first:stop])
        missing = earlier - (start - first)
        padded = functional.pad(embedded, (0, 0, missing, 0))
        return torch.cat([padded[lag : lag + stop - start] for lag in range(earlier + 1)], dim=1)

    @cached_property
    def types(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the K token types of the text and, last, of the place before the start, `[K + 1, E]`; and the
        row of each token id in it, `[V]`, K for the others."""
        seen = torch.bincount(self.tokens, minlength=len(self.model.embedding)) > 0
        found = seen.nonzero()[:, 0]
        row_of = torch.full_like(seen, len(found), dtype=torch.int64)
        row_of[found] = torch.arange(len(found), device=row_of.device)
        return functional.pad(self.model.embed_for_contexts(found), (0, 0, 0, 1)), row_of

    def rows(self, tokens: slice) -> Tensor:
        """The row in ``types`` of each of the T input tokens, oldest first, of some consecutive tokens: `[T, n]`."""
        embeds, row_of = self.types
        earlier = self.model.config.num_input_tokens - 1
        first = max(tokens.start - earlier, 0)
        known = row_of[self.tokens[first : tokens.stop]]
        before = known.new_full((earlier - (tokens.start - first),), len(embeds) - 1)
        return torch.cat([before, known]).unfold(0, tokens.stop - tokens.start, 1)


class TokenParts(Protocol):
    """Each layer's token half of N tokens, taken where it is needed."""

    def __len__(self) -> int: ...

    def take(self, layer: int, positions: Tensor, out: Tensor) -> None:
        """Those of ``positions``, int64 `[n]`, into ``out`` `[n, C]`."""


class PartsByToken:
    """Token halves of each token, L × `[N, C]`."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def take(self, layer: int, positions: Tensor, out: Tensor) -> None:
        torch.index_select(self.parts[layer], 0, positions, out=out)


class PartsByType:
    """Token halves of each token type, L × T tables `[K + 1, C]`, of a block's weights as they are now.

    Layers without a token half have no table, only their bias. Tokens are taken from the places that ``at`` was given.
    """

    @torch.no_grad()
    def __init__(self, block: ContextBlock, stream: StreamEmbeddings) -> None:
        self.embeds, self.stream = stream.types[0], stream
        self.rows: Tensor | None = None  # `[T, n]` of the chosen places; None: not chosen yet
        self.block, width = block, self.embeds.shape[1]
        self.tables: list[list[Tensor]] = []
        for layer in block.context_layers():
            bias = layer.from_context.bias
            weights = [] if layer.from_token is None else layer.from_token.weight.split(width, dim=1)
            tables = [self.embeds @ weight.T for weight in weights]
            # The token itself is always there, so its table carries the bias.
            self.tables.append([*tables[:-1], tables[-1] + bias] if tables else [bias.detach().clone().unsqueeze(0)])

    def __len__(self) -> int:
        return len(self.stream) if self.rows is None else self.rows.shape[1]

    def at(self, places: Sequence[slice]) -> "PartsByType":
        """The same tables for the tokens at some places, one behind the other."""
        part, chosen = copy.copy(self), self.rows
        part.rows = torch.cat(
            [self.stream.rows(place) if chosen is None else chosen[:, place] for place in places], dim=1
        )
        return part

    @property
    def chosen(self) -> Tensor:
        assert self.rows is not None, "PartsByType: take tokens from `at(places)`"
        return self.rows

    def take(self, layer: int, positions: Tensor, out: Tensor) -> None:
        tables = self.tables[layer]
        if len(tables[-1]) == 1:
            out.copy_(tables[0].expand_as(out))
            return
        torch.index_select(tables[-1], 0, self.chosen[-1, positions], out=out)
        for table, rows in zip(tables[:-1], self.chosen):
            out.add_(table.index_select(0, rows[positions]))

    def zero_gradients(self) -> list[list[Tensor]]:
        """For ``add_gradient``, of the tables' shapes."""
        return [[torch.zeros_like(table) for table in tables] for tables in self.tables]

    def add_gradient(self, gradients: list[list[Tensor]], layer: int, gradient: Tensor) -> None:
        """A gradient `[n, C]` of the token halves of all chosen tokens to the tables' ones, type by type."""
        found = gradients[layer]
        if len(found[-1]) == 1:
            found[0].add_(gradient.sum(dim=0))
            return
        for table, types in zip(found, self.chosen):
            table.index_add_(0, types, gradient)

    def weight_gradients(self, gradients: list[list[Tensor]]) -> list[tuple[Tensor | None, Tensor]]:
        """Per layer, those of `from_token.weight` `[C, E·T]`, None where there is none, and of the bias `[C]`."""
        led = []
        for layer, found in zip(self.block.context_layers(), gradients, strict=True):
            weight = None if layer.from_token is None else torch.cat([table.T @ self.embeds for table in found], dim=1)
            led.append((weight, found[-1].sum(dim=0)))
        return led
