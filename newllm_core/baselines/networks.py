"""The networks between frozen embeddings and the tied head: PyTorch's GRU, LSTM and transformer layers, and minGRU.

All read `[B, T, E]` and a state from the segment before, and give `[B, T, E]` and the next state: None, or tensors
whose first dimension is B, in lists and tuples.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, repeat
from typing import Any, Protocol

import torch
from minGRU_pytorch import minGRU
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.baselines.config import BaselineConfig


class SequenceNetwork(Protocol):
    def __call__(self, embeds: Tensor, state: Any) -> tuple[Tensor, Any]: ...


class RecurrentNetwork(nn.Module):
    """Dropout before each of PyTorch's GRU or LSTM layers, dropout, and a Linear to the embeddings' width."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], config: BaselineConfig) -> None:
        super().__init__()
        widths = [config.embed_dim, *[config.width] * config.num_layers]
        self.recurrences = nn.ModuleList(kind(*pair, batch_first=True) for pair in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)
        self.to_head = nn.Linear(config.width, config.embed_dim)

    def forward(self, embeds: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`[B, T, E]` and the state after the token before (None: zeros) -> `[B, T, E]` for the head, and the state."""
        stream, states = embeds, []
        for recurrence, before in zip(self.recurrences, state or [None] * len(self.recurrences), strict=True):
            stream, after = recurrence(self.dropout(stream), mapped_state(before, _swapped))
            states.append(mapped_state(after, _swapped))
        return self.to_head(self.dropout(stream)), states


gru_network, lstm_network = partial(RecurrentNetwork, nn.GRU), partial(RecurrentNetwork, nn.LSTM)


class MinGruNetwork(nn.Module):
    """Blocks of minGRU and MLP with pre-LayerNorm and residuals (Feng et al. 2024, arXiv:2410.01201)."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width, embed_dim = config.width, config.embed_dim
        self.from_embeds, self.to_head = nn.Linear(embed_dim, width), nn.Linear(width, embed_dim)
        self.recurrences = nn.ModuleList(minGRU(width) for _ in range(config.num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.num_layers))
        self.mlps = nn.ModuleList(_mlp(width, config.mlp_ratio, config.dropout) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.last_norm = nn.LayerNorm(width)

    def forward(self, embeds: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`[B, T, E]` and the state after the token before (None: zeros) -> `[B, T, E]` for the head, and the state."""
        stream, states = self.from_embeds(self.dropout(embeds)), []
        earlier = state or [None] * len(self.recurrences)
        for recurrence, norm, mlp, before in zip(self.recurrences, self.norms, self.mlps, earlier, strict=True):
            outputs, after = recurrence(norm(stream), before, return_next_prev_hidden=True)
            stream = stream + self.dropout(outputs)
            stream = stream + mlp(stream)
            states.append(after.detach())
        return self.to_head(self.dropout(self.last_norm(stream))), states


class GptNetwork(nn.Module):
    """nanoGPT's shape between two Linears: learned positions, pre-LayerNorm, causal attention, GELU. No state."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width, embed_dim = config.width, config.embed_dim
        self.from_embeds, self.to_head = nn.Linear(embed_dim, width), nn.Linear(width, embed_dim)
        self.positions = nn.Parameter(torch.zeros(config.segment_tokens, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.num_heads, config.mlp_ratio * width, config.dropout, functional.gelu,
                batch_first=True, norm_first=True, bias=False,
            )
            for _ in range(config.num_layers)
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        self.last_norm = nn.LayerNorm(width)

    def forward(self, embeds: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`[B, T, E]` -> `[B, T, E]` for the head, and no state: every segment is read by itself."""
        length = embeds.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=embeds.device)
        stream = self.dropout(self.from_embeds(embeds) + self.positions[:length])
        for block in self.blocks:
            stream = block(stream, src_mask=mask, is_causal=True)
        return self.to_head(self.dropout(self.last_norm(stream))), None


def _swapped(state: Tensor) -> Tensor:
    """A layer's state `[B, 1, W]` as `[1, B, W]`, and back; no gradient passes."""
    return state.detach().transpose(0, 1).contiguous()


def mapped_state(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state whose tensors are changed; None stays."""
    if state is None or isinstance(state, Tensor):
        return state if state is None else change(state)
    return type(state)(mapped_state(part, change) for part in state)


def split_state(state: Any, size: int) -> Iterator[Any]:
    """A recurrent state for ``size`` streams after ``size`` streams; None again and again for none."""
    if state is None:
        return repeat(None)
    if isinstance(state, Tensor):
        return iter(state.split(size))
    return map(type(state), zip(*(split_state(part, size) for part in state), strict=True))


def joined_states(states: list[Any]) -> Any:
    """What ``split_state`` was given."""
    first = states[0]
    if first is None or isinstance(first, Tensor):
        return first if first is None else torch.cat(states)
    return type(first)(joined_states(list(parts)) for parts in zip(*states, strict=True))


def _mlp(width: int, ratio: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width),
        nn.Dropout(dropout),
    )  # fmt: skip
