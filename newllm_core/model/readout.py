"""What may stand between the blocks and the frozen head: a linear map of the context, a low-rank adapter, a scale."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from newllm_core.config.hyperparameters import INITIAL_TOKEN_SHARE
from newllm_core.model.layers import TokenBlock


class LinearBlock(nn.Module):
    """In place of the TokenBlock: `Linear(c_L)`, what contrastive contexts are trained for, or `Linear(c_L) + s · t_L`.

    Args:
        context_dim: C.
        embed_dim: E.
        token_block: what is added, with a learned scale s; None for the linear map alone, which reads no token.
    """

    def __init__(self, context_dim: int, embed_dim: int, token_block: TokenBlock | None) -> None:
        super().__init__()
        self.from_context = nn.Linear(context_dim, embed_dim)
        self.token_block = token_block
        self.share = None if token_block is None else nn.Parameter(torch.tensor(INITIAL_TOKEN_SHARE))

    def start_at_zero(self) -> None:
        """To be called after the weights are drawn: the linear map says nothing at first."""
        nn.init.zeros_(self.from_context.weight)
        nn.init.zeros_(self.from_context.bias)

    def forward_with_contexts(self, context_list: Sequence[Tensor], token_embeds: Tensor) -> Tensor:
        """`L × [n, C], [n, E]` -> `[n, E]`, as a TokenBlock."""
        hidden: Tensor = self.from_context(context_list[-1])
        if self.token_block is None or self.share is None:
            return hidden
        return hidden + self.share * self.token_block.forward_with_contexts(context_list, token_embeds)


class Readout(nn.Module):
    """`h -> scale · (h + up(down(h)))`, the adapter (Hu et al. 2022, LoRA) and the scale each only where asked for.

    An adapter of the hidden states is one of the head: `W (I + BA) h`. ``up`` starts at zero.

    Args:
        embed_dim: E.
        adapter_rank: r; 0 for none.
        logit_scale: where the learned scale starts, > 0; None for none.
    """

    def __init__(self, embed_dim: int, adapter_rank: int, logit_scale: float | None) -> None:
        super().__init__()
        self.down = nn.Linear(embed_dim, adapter_rank, bias=False) if adapter_rank else None
        self.up = nn.Linear(adapter_rank, embed_dim, bias=False) if adapter_rank else None
        self.log_scale = None if logit_scale is None else nn.Parameter(torch.tensor(logit_scale).log())

    def start_adapter_at_zero(self) -> None:
        """To be called after the weights are drawn."""
        if self.up is not None:
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[n, E]` -> `[n, E]`."""
        if self.down is not None and self.up is not None:
            hidden = hidden + self.up(self.down(hidden))
        return hidden if self.log_scale is None else hidden * self.log_scale.exp()
