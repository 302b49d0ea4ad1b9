"""Pieces of a text that are read side by side, for truncated back-propagation."""

from collections.abc import Iterator

import torch
from torch import Tensor


def ring_segments(
    num_tokens: int, num_streams: int, segment_tokens: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Token positions `[B, T]` of one pass, segment by segment; the target of position i is the token at i + 1.

    The text is a ring that is cut at a place drawn from ``generator`` and read as ``num_streams`` streams side by side,
    so that no two passes cut it alike. Positions are 0 … num_tokens - 1; a last segment can be shorter.
    """
    shift = int(torch.randint(num_tokens, (), generator=generator))
    length = num_tokens // num_streams
    starts = torch.arange(num_streams).unsqueeze(1) * length + shift
    for first in range(0, length - 1, segment_tokens):
        yield (starts + torch.arange(first, min(first + segment_tokens, length - 1))) % num_tokens
