"""What is mixed into a model's losses when it is judged: first the continuous cache, then the counted n-grams."""

from collections.abc import Callable

from torch import Tensor

from newllm_core.head.continuous_cache import ContinuousCache, cached_nats
from newllm_core.head.kneser_ney import CountedNGrams


def mixed_nats(
    nats: Tensor,
    tokens: Tensor,
    cache: ContinuousCache | None,
    ngrams: CountedNGrams | None,
    states: Callable[[], Tensor],
) -> Tensor:
    """The losses `[N - 1]` of a model on the text `[N]` with both mixed in, as far as there are any.

    ``states``: called for the model's `[N - 1, D]` hidden states, which only a cache needs.
    """
    if cache is not None:
        nats = cached_nats(nats, states(), tokens, cache)
    return nats if ngrams is None else ngrams.mixed_nats(nats, tokens)
