"""The continuous cache against its definition."""

import math

import pytest
import torch
from core_helpers import make_model, make_tokens, phase2_config, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from newllm_core.head import continuous_cache
from newllm_core.head.continuous_cache import ContinuousCache, cached_nats
from newllm_core.head.cross_entropy import Head
from newllm_core.training.phase1 import finish_phase1
from newllm_core.training.phase2 import train_phase2


def by_definition(nats: Tensor, states: Tensor, tokens: Tensor, cache: ContinuousCache) -> list[float]:
    found = [float(nats[0])]
    for place in range(1, len(nats)):
        past = range(max(0, place - cache.num_cached), place)
        cosines = [float(torch.cosine_similarity(states[place], states[one], dim=0)) for one in past]
        faded = [0.0 if cache.horizon is None else (place - one) / cache.horizon for one in past]
        similar = [math.exp(cache.scale * cosine - fade) for cosine, fade in zip(cosines, faded)]
        hits = sum(value for value, one in zip(similar, past) if tokens[one + 1] == tokens[place + 1])
        probability = (1 - cache.weight) * math.exp(-float(nats[place])) + cache.weight * hits / sum(similar)
        found.append(-math.log(probability))
    return found


CACHES = st.builds(
    ContinuousCache, st.floats(0, 0.9), st.floats(0.1, 20), st.integers(1, 15), st.none() | st.floats(1, 50)
)


@given(st.integers(1, 12), CACHES, st.sampled_from([1, 3, 512]))
@settings(deadline=None)
def test_the_cache_is_its_definition(length: int, cache: ContinuousCache, rows: int) -> None:
    generator = rng(length)
    tokens = torch.randint(3, (length + 1,), generator=generator)
    nats = torch.rand(length, generator=generator, dtype=torch.float64) * 3 + 0.1
    states = torch.randn(length, 4, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous_cache, "_ROWS", rows)
        found = cached_nats(nats, states, tokens, cache)
    assert found.tolist() == pytest.approx(by_definition(nats, states, tokens, cache), abs=1e-9)


def test_with_a_horizon_the_last_tokens_count_most() -> None:
    """One state for all: without a horizon the two tokens that occurred once each weigh the same."""
    tokens, states, nats = torch.tensor([0, 1, 2, 2]), torch.ones(3, 4), torch.full((3,), math.log(10))
    even, faded = (cached_nats(nats, states, tokens, ContinuousCache(0.5, 5.0, 10, horizon)) for horizon in (None, 1.0))
    assert float(even[2].exp()) == pytest.approx(1 / (0.05 + 0.25))
    assert float(faded[2].exp()) == pytest.approx(1 / (0.05 + 0.5 / (1 + math.exp(-1))))


def test_only_the_past_is_read() -> None:
    tokens, nats, states = (
        torch.randint(3, (30,), generator=rng(1)),
        torch.ones(29),
        torch.randn(29, 4, generator=rng(2)),
    )
    other = tokens.clone()
    other[20:] = (other[20:] + 1) % 3
    cache = ContinuousCache(0.3, 5.0, 100, 20.0)
    found, changed = (cached_nats(nats, states, text, cache) for text in (tokens, other))
    assert torch.equal(found[:19], changed[:19]) and not torch.equal(found[19:], changed[19:])


def test_evaluation_mixes_the_cache_in_and_helps_where_text_repeats() -> None:
    train, validation = make_tokens(200), make_tokens(20, seed=9).repeat(6)
    losses = {}
    for weight in (0.0, 0.3):
        model = make_model()
        config = phase2_config(cache_weight=weight, cache_scale=20.0)
        contexts = finish_phase1(model, train, validation, None)
        result = train_phase2(model, contexts, train, validation, config, seed=1)
        losses[weight] = result.best.validation_loss
        assert result.validation.mean_nats == losses[weight]
    assert losses[0.3] < losses[0.0]


def test_states_of_the_cache_are_hidden_states_without_a_biass_unit_columns() -> None:
    train, validation = make_tokens(200), make_tokens(40, seed=9)
    model, config = (
        make_model(),
        phase2_config(cache_weight=0.3, cache_scale=20.0, cache_horizon=50.0, unigram_bias=True, max_epochs=1),
    )
    contexts = finish_phase1(model, train, validation, None)
    found = train_phase2(model, contexts, train, validation, config, seed=1).validation.nats
    with torch.no_grad():
        hidden = model.hidden(contexts.validation_contexts[:-1], validation[:-1])
    plain = Head(model.output_weight().detach(), "blocks").token_figures(hidden, validation[1:]).nats
    assert torch.equal(hidden[:, -2:], torch.ones(len(hidden), 2))
    mixed = cached_nats(plain, hidden[:, :-2], validation, ContinuousCache(0.3, 20.0, config.cache_tokens, 50.0))
    torch.testing.assert_close(found, mixed)
