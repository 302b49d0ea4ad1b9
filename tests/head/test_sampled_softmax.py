"""The sampled softmax: nothing is lost when all is kept, and on average nothing is lost otherwise."""

import itertools
import math

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, phase2_config, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.config.schema import ConfigError
from newllm_core.head.cross_entropy import Head
from newllm_core.head.sampled_softmax import VocabularySample, sample_vocabulary
from newllm_core.training.phase1 import finish_phase1
from newllm_core.training.phase2 import train_phase2


@given(st.lists(st.integers(0, 19), min_size=1, max_size=30), st.integers(1, 25), st.integers(0, 9))
@settings(deadline=None)
def test_every_seen_token_is_kept_and_places_are_the_inverse_of_ids(text: list[int], unseen: int, seed: int) -> None:
    sample = sample_vocabulary(torch.tensor(text), 20, unseen, rng(seed))
    ids, seen = sample.ids.tolist(), set(text)
    assert seen <= set(ids) and ids == sorted(set(ids))
    assert len(ids) == len(seen) + min(unseen, 20 - len(seen))
    assert all(
        sample.places[token] == ids.index(token) if token in ids else sample.places[token] == -1 for token in range(20)
    )
    assert all(weight == 0 for token, weight in zip(ids, sample.log_weights.tolist(), strict=True) if token in seen)


def test_the_sum_over_the_vocabulary_is_right_on_average() -> None:
    """Over all draws of two of four unseen tokens, the weighted sum of exponentials is the whole one."""
    head, hidden = torch.randn(6, 3, generator=rng(1)).double(), torch.randn(3, generator=rng(2)).double()
    exponentials = (head @ hidden).exp()
    sums = []
    for drawn in itertools.combinations(range(2, 6), 2):
        ids = torch.tensor([0, 1, *drawn])
        log_weights = torch.tensor([0.0, 0.0, math.log(2), math.log(2)]).double()
        sample = VocabularySample(ids, log_weights, torch.full((6,), -1))
        row = sample.hidden(hidden[None], 3)
        sums.append(float((row @ sample.weight(head, None).T).exp().sum()))
    assert sum(sums) / len(sums) == pytest.approx(float(exponentials.sum()), rel=1e-3)  # the weights pass bfloat16


@pytest.mark.parametrize("with_bias", [False, True])
def test_keeping_all_is_the_whole_softmax(with_bias: bool) -> None:
    tokens = torch.tensor([3, 5, 5, 9])
    head, hidden = torch.randn(12, 4, generator=rng(1)), torch.randn(4, 4, generator=rng(2))
    bias = torch.randn(12, generator=rng(3)) if with_bias else None
    sample = sample_vocabulary(tokens, 12, 100, rng(4))
    logits = hidden @ head.T + (0 if bias is None else bias)
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    rows = sample.hidden(hidden, 4)
    found = Head(sample.weight(head, bias), "blocks").loss(rows, sample.places[tokens]).mean_nats
    torch.testing.assert_close(found, expected)


def test_training_that_keeps_all_is_training_with_the_whole_vocabulary() -> None:
    train, validation = make_tokens(200), make_tokens(60, seed=2)
    found = []
    for unseen in (None, VOCAB_SIZE):
        model = make_model()
        config = phase2_config(unseen_sample=unseen)
        result = train_phase2(model, finish_phase1(model, train, validation, None), train, validation, config, seed=1)
        found.append([epoch.validation_loss for epoch in result.epochs])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="num_unseen of at least 1, given 0"):
        sample_vocabulary(torch.tensor([1]), 5, 0, rng(1))
    train = make_tokens(50)
    model = make_model(tie_weights=False)
    with pytest.raises(ConfigError, match="unseen_sample: expected a frozen head"):
        train_phase2(model, finish_phase1(model, train, train, None), train, train, phase2_config(unseen_sample=4), 1)
