"""How the contexts of a sentence reach their fixed point when all tokens step at once: to be looked at.

`exact_contexts` gets there faster; this is the plain iteration that both the notes' training and the proof rest on.
"""

import torch
from torch import Tensor

from newllm_core.model.layers import ContextBlock


@torch.no_grad()
def parallel_sweeps(block: ContextBlock, token_embeds: Tensor, initial: Tensor) -> Tensor:
    """`c_i^(k) = block(c_{i-1}^(k-1), e_i)` for all tokens i at once, from `c^(0) = 0`, for k = 0 … n.

    Args:
        token_embeds: `[n, E·T]`.
        initial: `[C]`, the context before the first token.

    Returns `[n + 1, n, C]`. After k sweeps the first k contexts are the loop's, so after n of them all are; those of a
    block that forgets get near much sooner.
    """
    contexts = initial.new_zeros(len(token_embeds), block.context_dim)
    sweeps = [contexts]
    for _ in range(len(token_embeds)):
        contexts = block(torch.cat([initial.unsqueeze(0), contexts[:-1]]), token_embeds)
        sweeps.append(contexts)
    return torch.stack(sweeps)
