"""Kneser-Ney against its formula, word by word, and the mixture with a model."""

import math
from collections import Counter

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, phase2_config
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm.models import KneserNeyInterpolated
from nltk.util import everygrams

from newllm_core.head import kneser_ney
from newllm_core.head.kneser_ney import CountedNGrams, KneserNey, count_ngrams, fit_kneser_ney
from newllm_core.training.phase1 import finish_phase1
from newllm_core.training.phase2 import train_phase2

VOCABULARY = 6
TEXTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=60)


def by_formula(text: list[int], order: int, word: int, history: list[int]) -> float:
    """Interpolated modified Kneser-Ney as it is written, by counting again for every question."""
    order = min(order, len(text) - 1)
    grams = {n: [tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for n in range(1, order + 2)}
    probability = 1 / VOCABULARY
    for length in range(1, order + 1):
        if length == order:
            counts = Counter(grams[length])
        else:
            counts = Counter({gram: 0 for gram in grams[length]})
            counts.update(gram[1:] for gram in set(grams[length + 1]))
        discounts = (0.0, *kneser_ney._discounts(torch.tensor(list(counts.values()))))
        before = tuple(history[len(history) - length + 1 :]) if length > 1 else ()
        if len(before) < length - 1:
            break
        followers = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == before}
        total = sum(followers.values())
        if total:
            kept = {word: count - discounts[min(count, 3)] for word, count in followers.items()}
            freed = sum(discounts[min(count, 3)] for count in followers.values()) / total
            probability = kept.get(word, 0.0) / total + freed * probability
    return probability


@given(TEXTS, st.integers(1, 4), st.lists(st.integers(0, VOCABULARY - 1), max_size=5))
@settings(deadline=None)
def test_probabilities_are_the_formulas_after_any_history(text: list[int], order: int, history: list[int]) -> None:
    model = fit_kneser_ney(torch.tensor(text), VOCABULARY, order)
    found = model.probabilities(torch.tensor([history], dtype=torch.int64))[0]
    assert found.sum() == pytest.approx(1) and found.min() > 0
    expected = [by_formula(text, order, word, history) for word in range(VOCABULARY)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@given(TEXTS, TEXTS, st.integers(1, 4))
@settings(deadline=None)
def test_a_texts_figures_are_those_of_its_targets_one_by_one(text: list[int], read: list[int], order: int) -> None:
    model = fit_kneser_ney(torch.tensor(text), VOCABULARY, order)
    found = model.log_probabilities(torch.tensor(read))
    for place in range(1, len(read)):
        one = model.probabilities(torch.tensor([read[max(0, place - order + 1) : place]]))[0, read[place]]
        assert found[place - 1] == pytest.approx(math.log(one), abs=1e-12)


@given(TEXTS, st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_what_stands_before_a_texts_start_is_no_history(text: list[int], missing: int) -> None:
    model = fit_kneser_ney(torch.tensor(text), VOCABULARY, 4)
    given_short = model.probabilities(torch.tensor([[3]]))
    assert torch.equal(model.probabilities(torch.tensor([[-1] * missing + [3]])), given_short)


def test_of_one_discount_it_is_nltks() -> None:
    """NLTK knows one discount for all counts, and gives unigrams nothing of the uniform distribution."""
    text = make_tokens(400, seed=5).remainder(VOCABULARY).tolist()
    theirs = KneserNeyInterpolated(3, discount=0.75)
    theirs.counts.update([everygrams(text, max_len=3)])
    theirs.vocab.update(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kneser_ney, "_discounts", lambda counts: (0.75, 0.75, 0.75))
        ours = fit_kneser_ney(torch.tensor(text), VOCABULARY, 3)
    # The shortest n-grams differ by design, so the longer ones are compared: shares and what they free.
    history = tuple(text[10:12])
    alphas = [theirs.estimator.alpha_gamma(word, history) for word in range(VOCABULARY)]
    numbers = list(ours._histories(torch.tensor([history])))
    third = ours.orders[2]
    keys = numbers[2] * VOCABULARY + torch.arange(VOCABULARY)
    found = [float(third.shares[third.keys == key].sum()) for key in keys]
    assert found == pytest.approx([alpha for alpha, _ in alphas])
    assert float(third.freed[numbers[2]]) == pytest.approx(alphas[0][1])


def test_it_learns_a_cycle_and_a_longer_one_needs_a_longer_history() -> None:
    text = torch.tensor([0, 1, 0, 2]).repeat(50)
    short, long = (fit_kneser_ney(text, VOCABULARY, order).log_probabilities(text)[3:].mean() for order in (2, 3))
    assert long.exp() > 0.95 > short.exp()


def test_token_ids_of_32_bits_are_numbers_of_64() -> None:
    """Of two ids and a history a number is made that 32 bits do not hold."""
    text = torch.arange(3000).repeat(2)
    wide, narrow = (fit_kneser_ney(one, 1_000_000, 3) for one in (text, text.int()))
    assert torch.equal(wide.log_probabilities(text), narrow.log_probabilities(text.int()))


def test_discounts_of_counts_are_chen_and_goodmans_and_few_counts_fall_back() -> None:
    counts = torch.tensor([1] * 40 + [2] * 20 + [3] * 10 + [4] * 5)
    assert kneser_ney._discounts(counts) == pytest.approx((0.5, 1.25, 2.0))  # Y = 40 / 80
    assert kneser_ney._discounts(torch.tensor([1, 1, 2])) == (0.5, 1.0, 1.5)


@pytest.mark.parametrize(("length", "order"), [(1, 3), (5, 0)])
def test_too_little_text_and_an_impossible_order_are_refused(length: int, order: int) -> None:
    with pytest.raises(ValueError, match="expected order >= 1 and at least 2 tokens"):
        fit_kneser_ney(make_tokens(length), VOCAB_SIZE, order)


def test_tensors_are_all_that_there_is() -> None:
    model = fit_kneser_ney(make_tokens(100), VOCAB_SIZE, 3)
    again = KneserNey.from_tensors(VOCAB_SIZE, model.tensors())
    text = make_tokens(30, seed=7)
    assert torch.equal(again.log_probabilities(text), model.log_probabilities(text))
    assert again.num_ngrams == model.num_ngrams > 100


def test_no_weight_counts_nothing_and_all_of_it_is_the_counts() -> None:
    text, nats = make_tokens(50), torch.rand(49, dtype=torch.float64)
    assert count_ngrams(text, VOCAB_SIZE, 0.0, 3) is None
    counts = fit_kneser_ney(text, VOCAB_SIZE, 3)
    assert torch.allclose(CountedNGrams(1.0, counts).mixed_nats(nats, text), -counts.log_probabilities(text))
    half = CountedNGrams(0.5, counts).mixed_nats(nats, text)
    assert torch.allclose(half.exp().reciprocal(), 0.5 * ((-nats).exp() + counts.log_probabilities(text).exp()))


def test_evaluation_mixes_the_counts_in_after_the_cache() -> None:
    train, validation = make_tokens(300), make_tokens(40, seed=9)
    losses, nats = {}, {}
    for weight in (0.0, 0.3):
        model = make_model()
        config = phase2_config(cache_weight=0.2, ngram_weight=weight, ngram_order=3)
        contexts = finish_phase1(model, train, validation, None)
        found = train_phase2(model, contexts, train, validation, config, seed=1)
        losses[weight], nats[weight] = found.best.validation_loss, found.validation.nats
    assert model.ngrams is not None
    torch.testing.assert_close(nats[0.3], model.ngrams.mixed_nats(nats[0.0], validation))
    assert losses[0.3] != losses[0.0]
