"""Attention that keeps few keys per query, and the NKAT term (docs/method.md, section 12.3)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from newllm_core.model.dropout import dropout
from newllm_core.vision.config import SPLIT_HEAD_STREAMS, VisionModelConfig
from newllm_core.vision.model.filters import filtered_softmax, spread, strongest_keys, weighted_sum

_EPSILON = 1e-5  # of the variance, as LayerNorm's: rounding stays finite where all channels are equal


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


class _ChannelMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        # LayerNorm's are a fifth of the time of torch.var_mean on a CPU (torch 2.13).
        _, mean, deviation = torch.native_layer_norm(tokens, tokens.shape[-1:], None, None, _EPSILON)
        ctx.save_for_backward(tokens, mean)
        return mean.squeeze(-1), (deviation.pow(-2) - _EPSILON).squeeze(-1)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        tokens, mean = ctx.saved_tensors
        of_mean, of_variance = (gradient.unsqueeze(-1) / tokens.shape[-1] for gradient in upstream)
        return torch.addcmul(of_mean - 2 * of_variance * mean, tokens, 2 * of_variance)


def channel_moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the channels: `[..., width]` -> `[...]` each."""
    mean, variance = _ChannelMoments.apply(tokens)  # type: ignore[no-untyped-call]
    return mean, variance


class NkatTerm(nn.Module):
    """`θ_i = α·tanh(mean x_i) + β·sigmoid(var x_i)`, mean and variance over the channels of token i."""

    NKAT_SCALARS: ClassVar = ("alpha", "beta")

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.beta = nn.Parameter(torch.tensor(beta))

    def forward(self, tokens: Tensor) -> Tensor:
        """`[..., width]` -> `[...]`."""
        mean, variance = channel_moments(tokens)
        return self.alpha * mean.tanh() + self.beta * variance.sigmoid()


def gained(layer: nn.Linear, inputs: Tensor, gain: Tensor | float) -> Tensor:
    """``gain`` times what the layer gives: its weights are multiplied, which are far fewer than what it gives."""
    return functional.linear(inputs, gain * layer.weight, gain * layer.bias)


class _Heads(torch.autograd.Function):
    """Queries, keys and values of the heads, `[B, N, 3, heads, width]` -> 3 × `[B, heads, N, width]`, in float32 at
    least: one copy each way."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> tuple[Tensor, ...]:
        ctx.kind = projected.dtype
        kind = torch.promote_types(projected.dtype, torch.float32)
        # Moved first and widened then: both at once take three times as long.
        return projected.permute(2, 0, 3, 1, 4).contiguous().to(kind).unbind(0)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        batch, heads, tokens, width = upstream[0].shape
        gradient = upstream[0].new_empty(batch, tokens, 3, heads, width, dtype=ctx.kind)
        for place, arrived in zip(gradient.unbind(2), upstream, strict=True):
            place.copy_(arrived.transpose(1, 2))
        return gradient


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
        self.output = nn.Linear(config.width, config.width)

    def forward(
        self,
        normed: Tensor,
        raw: Tensor,
        gain: Tensor | float = 1.0,
        queries: int | None = None,
        records: list[AttentionRecord] | None = None,
    ) -> Tensor:
        """``gain`` times what the first ``queries`` tokens (None: all) attend to; appends to ``records`` if given.

        ``normed``, ``raw`` `[B, streams, N, width]`, after and before LayerNorm -> `[B, queries, width]`.
        """
        projected = self._project(normed)
        # The filters compare logits of float32, whatever products elsewhere are of.
        with torch.autocast(normed.device.type, enabled=False):
            mixed = self._mixed(projected, self._theta(normed, raw), queries, records)
        return gained(self.output, mixed, gain)

    def _project(self, normed: Tensor) -> Tensor:
        """Each stream through its heads' rows of QKV: `[B, streams, N, width]` -> `[B, N, 3, heads, head width]`."""
        heads = self.config.heads // self.streams
        if self.streams == 1:
            whole: Tensor = self.qkv(normed[:, 0])
            return whole.unflatten(-1, (3, heads, -1))
        rows = self.qkv.weight.unflatten(0, (3, self.streams, -1))
        parts = [functional.linear(normed[:, i], rows[:, i].flatten(0, 1)) for i in range(self.streams)]
        return torch.cat([part.unflatten(-1, (3, heads, -1)) for part in parts], dim=3)

    def _mixed(
        self, projected: Tensor, theta: Tensor | None, queries: int | None, records: list[AttentionRecord] | None
    ) -> Tensor:
        """The heads' values, weighed and side by side: `[B, queries, width]`."""
        config, batch = self.config, len(projected)
        query, key, value = (part.flatten(0, 1) for part in _Heads.apply(projected))  # type: ignore[no-untyped-call]
        bias = None if theta is None or config.nkat != "key_bias" else (self.strength * theta).flatten(0, 1)
        scale = query.shape[-1] ** -0.5 / config.temperature
        query = query[:, :queries]
        kept = filtered_softmax(*strongest_keys(query, key, bias, scale, config.top_k), config.top_p)
        if records is not None:
            whole = spread(kept.weights, kept.indices, key.shape[1])
            whole, counts = (part.unflatten(0, (batch, -1)) for part in (whole, kept.tokens_kept))
            records.append(AttentionRecord(whole, counts, theta, self.strength))
        weights = kept.weights
        if self.training:  # drawn in the order in which they lie in memory
            weights = dropout(weights.movedim(-1, 0), config.attention_dropout).movedim(0, -1)
        mixed = weighted_sum(weights, kept.indices, value).unflatten(0, (batch, -1))
        if theta is not None and config.nkat == "literal":
            # Scaling a row of the attention is scaling what it gives.
            mixed = mixed * (1 + self.strength * theta[:, :, :queries].unsqueeze(-1))
        return mixed.transpose(1, 2).flatten(2)

    def _theta(self, normed: Tensor, raw: Tensor) -> Tensor | None:
        """`[B, heads, N]`: literal reads the tokens after LayerNorm, key_bias those before it."""
        if self.term is None:
            return None
        theta: Tensor = self.term(normed if self.config.nkat == "literal" else raw)
        return theta.repeat_interleave(self.config.heads // self.streams, dim=1)
