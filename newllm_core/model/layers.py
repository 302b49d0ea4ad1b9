"""ContextLayer and TokenLayer, and the blocks that stack them (docs/method.md, section 2).

A Linear of a concatenation is the sum of two Linears, so each layer holds one per input:
`Linear([c; e]) = from_context(c) + from_token(e)`. The token half does not depend on the recurrence and can be
computed for many tokens at once; `contexts/shooting.py` lives on that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.config.hyperparameters import INITIAL_GAINS, ModelConfig


class _TwoInputLayer(nn.Module):
    """`LayerNorm(R(x) + GELU(from_context(c) + from_token(e)))`; R is the identity where widths agree.

    Without a ``token_dim`` there is no token half.
    """

    def __init__(self, context_dim: int, token_dim: int | None, residual_dim: int, output_dim: int) -> None:
        super().__init__()
        self.from_context = nn.Linear(context_dim, output_dim)
        self.from_token = None if token_dim is None else nn.Linear(token_dim, output_dim, bias=False)
        same_width = residual_dim == output_dim
        self.residual: nn.Module = nn.Identity() if same_width else nn.Linear(residual_dim, output_dim)
        self.norm = nn.LayerNorm(output_dim)


class ContextLayer(_TwoInputLayer):
    """`c_i = LayerNorm(R(g ⊙ c_{i-1}) + GELU(Linear([c_{i-1}; e])))` (docs/method.md, section 2).

    g is 1, or with ``time_scales`` a learned gain of each component, spread over INITIAL_GAINS at first: components
    with a small one forget sooner.

    Args:
        input_dim: width of the incoming context.
        token_dim: width of the token input, `E · T`; None for a layer that does not read the token.
        output_dim: width of the outgoing context.
    """

    def __init__(self, input_dim: int, token_dim: int | None, output_dim: int, time_scales: bool = False) -> None:
        super().__init__(input_dim, token_dim, input_dim, output_dim)
        self.gain = nn.Parameter(torch.linspace(*INITIAL_GAINS, input_dim)) if time_scales else None

    def token_part(self, token_embeds: Tensor) -> Tensor:
        """The half that does not need the context. `[..., token_dim]` -> `[..., output_dim]`."""
        bias = self.from_context.bias
        if self.from_token is None:
            return bias.expand(*token_embeds.shape[:-1], -1)
        return functional.linear(token_embeds, self.from_token.weight, bias)

    def from_token_part(self, context: Tensor, token_part: Tensor) -> Tensor:
        """`[n, input_dim], [n, output_dim]` -> `[n, output_dim]`."""
        pre_activation = torch.addmm(token_part, context, self.from_context.weight.T)
        kept = context if self.gain is None else context * self.gain
        normed: Tensor = self.norm(self.residual(kept) + functional.gelu(pre_activation))
        return normed

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """`[n, input_dim], [n, token_dim]` -> `[n, output_dim]`."""
        return self.from_token_part(context, self.token_part(token_embeds))


class TokenLayer(_TwoInputLayer):
    """`t_i = LayerNorm(R(t_{i-1}) + g · GELU(Linear([c_i; t_{i-1}])))` (docs/method.md, section 2).

    g is 1, or with ``gated`` `sigmoid(Linear([c_i; t_{i-1}]))`.

    Args:
        context_dim: width of the context of the same layer.
        input_dim: width of the incoming token vector.
        output_dim: width of the outgoing token vector.
    """

    def __init__(self, context_dim: int, input_dim: int, output_dim: int, gated: bool = False) -> None:
        super().__init__(context_dim, input_dim, input_dim, output_dim)
        self.gate = nn.Linear(context_dim + input_dim, output_dim) if gated else None

    def forward(self, context: Tensor, token: Tensor) -> Tensor:
        """`[n, context_dim], [n, input_dim]` -> `[n, output_dim]`."""
        assert self.from_token is not None
        added = functional.gelu(self.from_context(context) + self.from_token(token))
        if self.gate is not None:
            added = torch.sigmoid(self.gate(torch.cat([context, token], dim=-1))) * added
        normed: Tensor = self.norm(self.residual(token) + added)
        return normed


class ContextBlock(nn.Module):
    """L context layers; the token enters at every one of them, or at the first alone.

    Args:
        context_dim: C.
        embed_dim: E.
        num_layers: L.
        num_input_tokens: T; the token input is `[E · T]` wide, oldest token first.
        token_input: "every-layer" or "first-layer".
        time_scales: whether the layers have learned gains.
        generator: that the initial weights are drawn from; None: torch's global one.
    """

    def __init__(
        self, context_dim: int, embed_dim: int, num_layers: int = 1, num_input_tokens: int = 1,
        token_input: str = "every-layer", time_scales: bool = False, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.context_dim = context_dim
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_input_tokens = num_input_tokens
        self.layers = nn.ModuleList(
            ContextLayer(
                context_dim,
                embed_dim * num_input_tokens if number == 0 or token_input == "every-layer" else None,
                context_dim,
                time_scales,
            )
            for number in range(num_layers)
        )
        initialise_normal(self, ModelConfig.weight_std, ModelConfig.bias_std, generator)

    def token_parts(self, token_embeds: Tensor) -> list[Tensor]:
        """Each layer's token half. `[..., E·T]` -> L × `[..., C]`."""
        return [layer.token_part(token_embeds) for layer in self.context_layers()]

    def forward_from_token_parts(self, context: Tensor, token_parts: Sequence[Tensor]) -> list[Tensor]:
        """All layers' contexts from precomputed token halves. `[n, C]`, L × `[n, C]` -> L × `[n, C]`."""
        outputs = []
        for layer, part in zip(self.context_layers(), token_parts, strict=True):
            context = layer.from_token_part(context, part)
            outputs.append(context)
        return outputs

    def forward_with_intermediates(self, context: Tensor, token_embeds: Tensor) -> list[Tensor]:
        """`[n, C], [n, E·T]` -> `[context_1 … context_L]`, each `[n, C]`."""
        return self.forward_from_token_parts(context, self.token_parts(token_embeds))

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """The next context: the last layer's. `[n, C], [n, E·T]` -> `[n, C]`."""
        return self.forward_with_intermediates(context, token_embeds)[-1]

    def context_layers(self) -> list[ContextLayer]:
        """The layers, from the token input upwards."""
        return list(self.layers)  # type: ignore[arg-type]


class TokenBlock(nn.Module):
    """L token layers; layer i reads the context of layer i of the ContextBlock ("plan E").

    Args:
        context_dim: C.
        embed_dim: E, the width of every token vector.
        num_layers: L.
        gated: whether the layers have gates.
        generator: that the initial weights are drawn from; None: torch's global one.
    """

    def __init__(
        self, context_dim: int, embed_dim: int, num_layers: int = 1, gated: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(TokenLayer(context_dim, embed_dim, embed_dim, gated) for _ in range(num_layers))
        initialise_normal(self, ModelConfig.weight_std, ModelConfig.bias_std, generator)

    def forward_with_contexts(self, context_list: Sequence[Tensor], token_embeds: Tensor) -> Tensor:
        """`L × [n, C], [n, E]` -> `t_L` `[n, E]`. Raises ValueError unless there is one context per layer."""
        if len(context_list) != len(self.layers):
            raise ValueError(
                f"TokenBlock: expected {len(self.layers)} contexts, one per layer, given {len(context_list)}"
            )
        token = token_embeds
        for layer, context in zip(self.layers, context_list, strict=True):
            token = layer(context, token)
        return token


def initialise_normal(module: nn.Module, weight_std: float, bias_std: float, generator: torch.Generator | None) -> None:
    """Every Linear of ``module``: weights ~ N(0, weight_std²), biases ~ N(0, bias_std²) (docs/method.md, section 2)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=weight_std, generator=generator)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=bias_std, generator=generator)
