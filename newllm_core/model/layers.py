"""ContextLayer and TokenLayer, and the blocks that stack them (spec section 2).

A Linear of a concatenation is the sum of two Linears, so each layer holds one per input:
`Linear([c; e]) = from_context(c) + from_token(e)`. The token half does not depend on the recurrence and can be
computed for many tokens at once; `contexts.py` lives on that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class _TwoInputLayer(nn.Module):
    """`LayerNorm(R(x) + GELU(from_context(c) + from_token(e)))`; R is the identity where widths agree."""

    def __init__(self, context_dim: int, token_dim: int, residual_dim: int, output_dim: int) -> None:
        super().__init__()
        self.from_context = nn.Linear(context_dim, output_dim)
        self.from_token = nn.Linear(token_dim, output_dim, bias=False)
        same_width = residual_dim == output_dim
        self.residual: nn.Module = nn.Identity() if same_width else nn.Linear(residual_dim, output_dim)
        self.norm = nn.LayerNorm(output_dim)

    def _combine(self, residual_input: Tensor, pre_activation: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.residual(residual_input) + functional.gelu(pre_activation))
        return normed


class ContextLayer(_TwoInputLayer):
    """`c_i = LayerNorm(R(c_{i-1}) + GELU(Linear([c_{i-1}; e])))` (spec section 2).

    Args:
        input_dim: width of the incoming context.
        token_dim: width of the token input, `E · T`.
        output_dim: width of the outgoing context.
    """

    def __init__(self, input_dim: int, token_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, token_dim, input_dim, output_dim)

    def token_part(self, token_embeds: Tensor) -> Tensor:
        """The half that does not need the context. `[..., token_dim]` -> `[..., output_dim]`."""
        return functional.linear(token_embeds, self.from_token.weight, self.from_context.bias)

    def from_token_part(self, context: Tensor, token_part: Tensor) -> Tensor:
        """`[n, input_dim], [n, output_dim]` -> `[n, output_dim]`."""
        return self._combine(context, torch.addmm(token_part, context, self.from_context.weight.T))

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """`[n, input_dim], [n, token_dim]` -> `[n, output_dim]`."""
        return self.from_token_part(context, self.token_part(token_embeds))


class TokenLayer(_TwoInputLayer):
    """`t_i = LayerNorm(R(t_{i-1}) + GELU(Linear([c_i; t_{i-1}])))` (spec section 2).

    Args:
        context_dim: width of the context of the same layer.
        input_dim: width of the incoming token vector.
        output_dim: width of the outgoing token vector.
    """

    def __init__(self, context_dim: int, input_dim: int, output_dim: int) -> None:
        super().__init__(context_dim, input_dim, input_dim, output_dim)

    def forward(self, context: Tensor, token: Tensor) -> Tensor:
        """`[n, context_dim], [n, input_dim]` -> `[n, output_dim]`."""
        return self._combine(token, self.from_context(context) + self.from_token(token))


class ContextBlock(nn.Module):
    """L context layers; the token enters at every one of them.

    Args:
        context_dim: C.
        embed_dim: E.
        num_layers: L.
        num_input_tokens: T; the token input is `[E · T]` wide, oldest token first.
    """

    def __init__(self, context_dim: int, embed_dim: int, num_layers: int = 1, num_input_tokens: int = 1) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_input_tokens = num_input_tokens
        self.layers = nn.ModuleList(
            ContextLayer(context_dim, embed_dim * num_input_tokens, context_dim) for _ in range(num_layers)
        )

    def token_parts(self, token_embeds: Tensor) -> list[Tensor]:
        """Each layer's token half. `[n, E·T]` -> L × `[n, C]`."""
        return [layer.token_part(token_embeds) for layer in self._context_layers()]

    def forward_from_token_parts(self, context: Tensor, token_parts: Sequence[Tensor]) -> list[Tensor]:
        """All layers' contexts from precomputed token halves. `[n, C]`, L × `[n, C]` -> L × `[n, C]`."""
        outputs = []
        for layer, part in zip(self._context_layers(), token_parts, strict=True):
            context = layer.from_token_part(context, part)
            outputs.append(context)
        return outputs

    def forward_with_intermediates(self, context: Tensor, token_embeds: Tensor) -> list[Tensor]:
        """`[n, C], [n, E·T]` -> `[context_1 … context_L]`, each `[n, C]`."""
        return self.forward_from_token_parts(context, self.token_parts(token_embeds))

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """The next context: the last layer's. `[n, C], [n, E·T]` -> `[n, C]`."""
        return self.forward_with_intermediates(context, token_embeds)[-1]

    def _context_layers(self) -> list[ContextLayer]:
        return list(self.layers)  # type: ignore[arg-type]


class TokenBlock(nn.Module):
    """L token layers; layer i reads the context of layer i of the ContextBlock ("plan E").

    Args:
        context_dim: C.
        embed_dim: E, the width of every token vector.
        num_layers: L.
    """

    def __init__(self, context_dim: int, embed_dim: int, num_layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TokenLayer(context_dim, embed_dim, embed_dim) for _ in range(num_layers))

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


def initialise_normal(module: nn.Module, weight_std: float, bias_std: float, generator: torch.Generator) -> None:
    """Every Linear of ``module``: weights ~ N(0, weight_std²), biases ~ N(0, bias_std²) (spec section 2)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=weight_std, generator=generator)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=bias_std, generator=generator)
