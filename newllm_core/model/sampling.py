"""Which token comes next: scores are reshaped as everybody does it, and one token is drawn from what is left.

In the order of transformers' generation: repetition penalty, temperature, top-k, top-p, min-p.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.config.hyperparameters import GenerationConfig


def penalise_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Positive scores of seen tokens divided by ``penalty``, negative ones multiplied (Keskar et al. 2019, CTRL).

    `[n, V], [n, V]` (whether each token has occurred) -> `[n, V]`.
    """
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def likeliest(scores: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Probabilities of the tokens that may be drawn, the most probable first, and their ids. `[n, V]` -> `[n, k]`.

    Those that top-p and min-p leave out have probability 0.
    """
    best, ids = scores.topk(min(config.top_k or scores.shape[1], scores.shape[1]))
    probabilities = functional.softmax(best / config.temperature, dim=1)
    kept = torch.ones_like(probabilities, dtype=torch.bool)
    if config.top_p < 1:
        # The smallest set whose probability reaches top_p: one is out once those before it have reached it.
        kept &= probabilities.cumsum(dim=1) - probabilities < config.top_p
    if config.min_p > 0:
        # The threshold is a share of the largest probability of what top-p has left, which is the same one.
        kept &= probabilities >= config.min_p * probabilities[:, :1]
    kept[:, 0] = True
    return probabilities * kept, ids


def choose(scores: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """One token for each row, drawn with the row's own generator (on the CPU). `[n, V]` -> `[n]`."""
    if config.temperature == 0:
        return scores.argmax(dim=1)
    probabilities, ids = likeliest(scores, config)
    rows = zip(probabilities.cpu(), generators, strict=True)
    drawn = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return ids.gather(1, drawn.to(ids.device)[:, None])[:, 0]
