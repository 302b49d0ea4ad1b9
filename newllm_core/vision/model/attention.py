"""Attention that keeps few keys per query, and the NKAT term (docs/method.md, section 12.3)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.vision.config import SPLIT_HEAD_STREAMS, VisionModelConfig


def strongest_keys(logits: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Values and indices of the `min(top_k, n)` largest of `[..., n]`, falling; of all n when ``top_k`` is None."""
    num_keys = logits.shape[-1]
    return logits.topk(num_keys if top_k is None else min(top_k, num_keys), dim=-1)


def nucleus(falling_logits: Tensor, top_p: float) -> Tensor:
    """True for the shortest prefix whose softmax mass is above ``top_p`` (Holtzman et al. 2020).

    `[..., k]` falling -> bool `[..., k]`; the first is always kept, and with ``top_p`` 1 all are.
    """
    if top_p >= 1:
        return torch.ones_like(falling_logits, dtype=torch.bool)
    mass = functional.softmax(falling_logits, dim=-1, dtype=torch.float32).cumsum(dim=-1)
    # A key is kept while the mass before it is not yet above top_p.
    return functional.pad(mass[..., :-1], (1, 0)) <= top_p


@dataclass(frozen=True)
class KeptKeys:
    """Attention over the keys that passed both filters; the others weigh zero.

    Attributes:
        weights: `[..., k]`, rows sum to 1, zero outside the nucleus.
        indices: `[..., k]` of the keys.
        tokens_kept: `[...]` int64, keys in the nucleus.
    """

    weights: Tensor
    indices: Tensor
    tokens_kept: Tensor


def filtered_softmax(logits: Tensor, top_k: int | None, top_p: float) -> KeptKeys:
    """Top-k, then the nucleus of what is left, then softmax. `[..., n]`."""
    values, indices = strongest_keys(logits, top_k)
    keep = nucleus(values.detach(), top_p)
    weights = functional.softmax(values.masked_fill(~keep, -torch.inf), dim=-1)
    return KeptKeys(weights, indices, keep.sum(dim=-1))


def spread(kept: KeptKeys, num_keys: int) -> Tensor:
    """The whole rows: `[..., k]` -> `[..., num_keys]`."""
    rows = kept.weights.new_zeros(*kept.weights.shape[:-1], num_keys)
    return rows.scatter(-1, kept.indices, kept.weights)


@dataclass(frozen=True)
class AttentionRecord:
    """What one block attended to, without dropout.

    Attributes:
        attention: `[B, heads, N, N]`, queries × keys after both filters; rows sum to 1. N counts CLS, which is 0.
        tokens_kept: `[B, heads, N]` keys per query.
        theta: `[B, heads, N]`, θ of each token; None with nkat="off".
        strength: s · d^l. With nkat="literal", row i entered the block times `1 + strength · theta_i`.
    """

    attention: Tensor
    tokens_kept: Tensor
    theta: Tensor | None
    strength: float

    @property
    def entropy(self) -> Tensor:
        """Nats, `[B, heads, N]`, 0 … log(tokens kept)."""
        return torch.special.entr(self.attention).sum(dim=-1)


class NkatTerm(nn.Module):
    """`θ_i = α·tanh(mean x_i) + β·sigmoid(var x_i)`, mean and variance over the channels of token i."""

    NKAT_SCALARS: ClassVar = ("alpha", "beta")

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, tokens: Tensor) -> Tensor:
        """`[..., width]` -> `[...]`."""
        variance, mean = torch.var_mean(tokens, dim=-1, correction=0)
        return self.alpha * mean.tanh() + self.beta * variance.sigmoid()


class NkatAttention(nn.Module):
    """Multi-head attention of one block: temperature, both filters, NKAT term, dropout; QKV without bias.

    With Split-Head the first quarter of the heads reads the R tokens, the next G, the next B, the last the fused
    tokens: queries, keys, values and θ all come from the head's own stream.

    Args:
        config: of the model.
        layer: l, from 0.
        streams: 4 with Split-Head, else 1.
    """

    def __init__(self, config: VisionModelConfig, layer: int, streams: int = 1) -> None:
        super().__init__()
        if streams not in (1, SPLIT_HEAD_STREAMS):
            raise ValueError(f"NkatAttention: expected 1 or {SPLIT_HEAD_STREAMS} streams, given {streams}")
        self.config = config
        self.streams = streams
        self.strength = config.nkat_strength * config.nkat_decay**layer
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.term = None if config.nkat == "off" else NkatTerm(config.nkat_alpha, config.nkat_beta)
        self.dropout = nn.Dropout(config.attention_dropout)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, normed: Tensor, raw: Tensor, records: list[AttentionRecord] | None = None) -> Tensor:
        """`[B, streams, N, width]` after and before LayerNorm -> `[B, N, width]`; appends to ``records`` if given."""
        query, key, value = self._project(normed)
        logits = query @ key.mT * (query.shape[-1] ** -0.5 / self.config.temperature)
        theta = self._theta(normed, raw)
        if theta is not None and self.config.nkat == "key_bias":
            logits = logits + self.strength * theta.unsqueeze(-2)
        kept = filtered_softmax(logits, self.config.top_k, self.config.top_p)
        if records is not None:
            whole = spread(kept, logits.shape[-1])
            records.append(AttentionRecord(whole, kept.tokens_kept, theta, self.strength))
        dropped = KeptKeys(self.dropout(kept.weights), kept.indices, kept.tokens_kept)
        mixed = spread(dropped, logits.shape[-1]).to(value.dtype) @ value
        if theta is not None and self.config.nkat == "literal":
            # Scaling a row of the attention is scaling what it gives.
            mixed = mixed * (1 + self.strength * theta.unsqueeze(-1))
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each stream through its heads' rows of QKV: `[B, streams, N, width]` -> 3 × `[B, heads, N, head width]`."""
        rows = self.qkv.weight.unflatten(0, (3, self.streams, -1))
        parts = []
        for stream in range(self.streams):
            projected = functional.linear(normed[:, stream], rows[:, stream].flatten(0, 1))
            parts.append(projected.unflatten(-1, (3, self.config.heads // self.streams, -1)))
        query, key, value = torch.cat(parts, dim=3).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _theta(self, normed: Tensor, raw: Tensor) -> Tensor | None:
        """`[B, heads, N]`: literal reads the tokens after LayerNorm, key_bias those before it."""
        if self.term is None:
            return None
        theta: Tensor = self.term(normed if self.config.nkat == "literal" else raw)
        return theta.repeat_interleave(self.config.heads // self.streams, dim=1)
