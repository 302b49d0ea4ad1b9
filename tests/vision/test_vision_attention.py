"""The filters against their definitions, the NKAT term's two forms, and what a block records."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from newllm_core.vision.config import model_preset
from newllm_core.vision.model import filters
from newllm_core.vision.model.attention import AttentionRecord, NkatAttention, NkatTerm
from newllm_core.vision.model.filters import KeptKeys, filtered_softmax, largest_places, nucleus, spread

WIDTH, TOKENS = 32, 12
LOGITS = st.lists(st.floats(-8, 8), min_size=1, max_size=20).map(torch.tensor)


def attention(layer: int = 0, streams: int = 1, **changes: Any) -> NkatAttention:
    torch.manual_seed(0)
    config = model_preset(**{"width": WIDTH, "heads": 4, "attention_dropout": 0.0, **changes})
    return NkatAttention(config, layer, streams)


def tokens(streams: int = 1) -> Tensor:
    return torch.randn(2, streams, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


def layer_norm(raw: Tensor) -> Tensor:
    return functional.layer_norm(raw, raw.shape[-1:])


def kept_keys(logits: Tensor, top_k: int | None, top_p: float) -> KeptKeys:
    """Both filters on rows of logits `[..., n]`."""
    indices = largest_places(logits, len(logits) if top_k is None else min(top_k, len(logits)))
    return filtered_softmax(logits.gather(-1, indices), indices, top_p)


def run(module: NkatAttention, raw: Tensor) -> tuple[Tensor, AttentionRecord]:
    records: list[AttentionRecord] = []
    output = module(layer_norm(raw), raw, records=records)
    return output, records[0]


@given(LOGITS, st.integers(1, 25))
@settings(deadline=None)
def test_top_k_keeps_exactly_the_smaller_of_k_and_tokens_even_when_logits_are_equal(logits: Tensor, k: int) -> None:
    for row in (logits, torch.zeros_like(logits)):
        kept = kept_keys(row, k, 1.0)
        assert int(kept.tokens_kept) == len(set(kept.indices.tolist())) == min(k, len(row))


@given(LOGITS, st.integers(1, 25))
@settings(deadline=None)
def test_no_key_outside_the_top_k_is_larger_than_one_inside(logits: Tensor, k: int) -> None:
    indices = largest_places(logits, min(k, len(logits)))
    others = logits[[i for i in range(len(logits)) if i not in indices.tolist()]]
    rounding = 2**-15 * float(logits.abs().max())
    assert bool((logits[indices].diff() <= rounding).all()), "falling"
    assert not len(others) or others.max() <= logits[indices].min() + rounding


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_sorted_places_are_those_of_topk(kind: torch.dtype) -> None:
    logits = torch.randn(7, 3, 300, generator=torch.Generator().manual_seed(2)).to(kind)
    assert torch.equal(largest_places(logits, 6), logits.topk(6).indices)


@given(LOGITS, st.floats(0.01, 0.99))
@settings(deadline=None)
def test_nucleus_is_the_shortest_prefix_above_p(logits: Tensor, p: float) -> None:
    mass = functional.softmax(logits.sort(descending=True).values, dim=0)
    size = int(nucleus(mass, p).sum())
    assert bool(nucleus(mass, p)[:size].all())
    before = mass.double().cumsum(0)
    rounding = 1e-5
    assert size == len(mass) or before[size - 1] > p - rounding
    assert size == 1 or before[size - 2] <= p + rounding


def test_nucleus_by_hand() -> None:
    mass = torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert nucleus(mass, 0.5).tolist() == [True, True, False, False], "0.5 is not above 0.5"
    assert nucleus(mass, 0.49).tolist() == [True, False, False, False]
    assert nucleus(mass, 0.8).tolist() == [True, True, True, False]
    assert nucleus(mass, 1.0).all()


def test_nucleus_reads_the_mass_that_top_k_left() -> None:
    # Four equal keys: two left by top-k have 0.5 each, so the first is not above 0.6 and both stay; of all four, three.
    assert int(kept_keys(torch.zeros(4), 2, 0.6).tokens_kept) == 2
    assert int(kept_keys(torch.zeros(4), None, 0.6).tokens_kept) == 3


@given(LOGITS, st.one_of(st.none(), st.integers(1, 25)), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_filtered_rows_are_the_softmax_restricted_to_the_kept_keys(logits: Tensor, k: int | None, p: float) -> None:
    kept = kept_keys(logits, k, p)
    row = spread(kept.weights, kept.indices, len(logits))
    inside = torch.zeros(len(logits), dtype=torch.bool)
    inside[kept.indices[: int(kept.tokens_kept)]] = True
    assert torch.allclose(row, functional.softmax(logits.masked_fill(~inside, -torch.inf), dim=0), atol=1e-6)


def test_without_filters_nkat_and_temperature_it_is_plain_attention() -> None:
    module = attention(top_k=None, top_p=1.0, nkat="off", temperature=1.0)
    raw = tokens()
    query, key, value = (
        part.unflatten(-1, (4, -1)).transpose(1, 2) for part in module.qkv(layer_norm(raw)[:, 0]).chunk(3, dim=-1)
    )
    expected = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    assert torch.allclose(run(module, raw)[0], module.output(expected), atol=1e-5)


def test_lower_temperature_sharpens() -> None:
    raw = tokens()
    entropies = [run(attention(temperature=t, top_k=None, top_p=1.0), raw)[1].entropy.mean() for t in (0.5, 1.0, 2.0)]
    assert entropies == sorted(entropies)


@pytest.mark.parametrize("nkat", ["key_bias", "literal", "off"])
def test_filters_are_alike_in_training_and_evaluation(nkat: str) -> None:
    module, raw = attention(nkat=nkat), tokens()
    trained, evaluated = run(module.train(), raw), run(module.eval(), raw)
    assert torch.equal(trained[0], evaluated[0])
    assert torch.equal(trained[1].attention, evaluated[1].attention)
    assert bool((evaluated[1].tokens_kept < TOKENS).all()), "the filters are on in evaluation too"


def test_dropout_acts_in_training_alone_and_is_not_in_the_record() -> None:
    module, raw = attention(attention_dropout=0.5), tokens()
    trained, evaluated = run(module.train(), raw), run(module.eval(), raw)
    assert not torch.allclose(trained[0], evaluated[0])
    assert torch.equal(trained[1].attention, evaluated[1].attention)


def test_theta_by_hand() -> None:
    # Mean 2, population variance 1: 0.1 · tanh(2) + 0.05 · sigmoid(1).
    theta = NkatTerm(0.1, 0.05)(torch.tensor([1.0, 3.0])).detach()
    assert float(theta) == pytest.approx(0.1 * math.tanh(2) + 0.05 / (1 + math.exp(-1)), abs=1e-6)


def test_literal_factor_is_one_within_a_thousandth_for_every_row() -> None:
    _, record = run(attention(nkat="literal"), tokens() * 5 + 3)
    assert record.theta is not None
    factor = 1 + record.strength * record.theta
    assert bool(((factor - 1).abs() < 1e-3).all())
    # docs/method.md, section 12.3: 1.00009 for every row, from s · (α·tanh 0 + β·sigmoid 1).
    assert torch.allclose(factor, torch.tensor(1.00009), atol=5e-6)


def test_literal_multiplies_each_row_and_leaves_the_weights() -> None:
    raw = tokens()
    plain, literal = attention(nkat="off"), attention(nkat="literal", nkat_strength=100.0)
    literal.load_state_dict(plain.state_dict(), strict=False)
    plain_output, plain_record = run(plain, raw)
    output, record = run(literal, raw)
    assert torch.equal(record.attention, plain_record.attention)
    assert record.theta is not None
    factor = 1 + 100.0 * record.theta[:, 0, :, None]
    bias = plain.output.bias
    assert torch.allclose(output - bias, (plain_output - bias) * factor, atol=1e-5)


def test_key_bias_adds_to_the_logits_of_a_key() -> None:
    raw = tokens()
    options: dict[str, Any] = {"top_k": None, "top_p": 1.0}
    plain, biased = attention(nkat="off", **options), attention(nkat_strength=50.0, **options)
    biased.load_state_dict(plain.state_dict(), strict=False)
    record = run(biased, raw)[1]
    assert record.theta is not None
    expected = functional.softmax(run(plain, raw)[1].attention.log() + 50.0 * record.theta.unsqueeze(-2), dim=-1)
    assert torch.allclose(record.attention, expected, atol=1e-5)


def test_key_bias_reads_the_tokens_before_layer_norm() -> None:
    raw = tokens()
    theta, shifted = (run(attention(), each)[1].theta for each in (raw, raw + 1))
    assert theta is not None and shifted is not None
    assert bool((shifted > theta).all()), "LayerNorm would have removed the shift"


def test_strength_zero_and_off_give_the_same_output() -> None:
    raw = tokens()
    outputs = [run(attention(**changes), raw)[0] for changes in ({"nkat": "off"}, {"nkat_strength": 0.0})]
    assert torch.allclose(*outputs, atol=1e-6)


def test_strength_decays_by_layer() -> None:
    assert [attention(layer=layer).strength for layer in range(3)] == pytest.approx(
        [0.0024, 0.0024 * 0.99, 0.0024 * 0.99**2]
    )


def test_nkat_scalars_receive_gradients() -> None:
    for nkat in ("key_bias", "literal"):
        module, raw = attention(nkat=nkat), tokens()
        run(module, raw)[0].square().sum().backward()
        assert module.term is not None
        for scalar in (module.term.alpha, module.term.beta):
            assert scalar.grad is not None and bool(torch.isfinite(scalar.grad))
        assert float(module.term.beta.grad) != 0


def test_gradients_agree_with_finite_differences() -> None:
    module = attention(width=8, heads=4, nkat_strength=1.0).double()
    raw = tokens()[:1, :, :5, :8].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(layer_norm(x), x), raw)


@pytest.mark.parametrize("nkat", ["key_bias", "literal", "off"])
def test_fewer_queries_are_the_first_rows_of_all(nkat: str) -> None:
    module, raw = attention(nkat=nkat, nkat_strength=1.0), tokens()
    gain = torch.tensor(0.5)
    whole, first = module(layer_norm(raw), raw), module(layer_norm(raw), raw, gain, 2)
    assert torch.allclose(first, gain * whole[:, :2], atol=1e-6)


def test_heads_computed_apart_are_those_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    module, raw = attention(nkat_strength=1.0), tokens()
    given = raw.clone().requires_grad_()
    results = []
    for logits_at_once in (2**18, TOKENS**2):
        monkeypatch.setattr(filters, "_CACHED_LOGITS", logits_at_once)
        output = module(layer_norm(given), given)
        results.append((output, *torch.autograd.grad(output.square().sum(), [given, module.term.alpha])))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*results, strict=True))


def test_qkv_has_no_bias() -> None:
    assert attention().qkv.bias is None


def test_record_holds_entropy_and_tokens_kept() -> None:
    record = run(attention(top_k=5, top_p=0.9), tokens())[1]
    assert torch.equal(record.tokens_kept, (record.attention > 0).sum(dim=-1))
    assert torch.allclose(record.attention.sum(dim=-1), torch.ones(()), atol=1e-6)
    rows = record.attention.reshape(-1, TOKENS)
    by_hand = [-sum(weight * math.log(weight) for weight in row if weight) for row in rows.tolist()]
    assert torch.allclose(record.entropy.flatten(), torch.tensor(by_hand), atol=1e-5)
    assert bool((record.entropy <= record.tokens_kept.log() + 1e-6).all())


@pytest.mark.parametrize("changed", range(4))
@pytest.mark.parametrize("nkat", ["key_bias", "literal"])
def test_a_stream_is_read_by_its_own_heads_alone(changed: int, nkat: str) -> None:
    module = attention(streams=4, heads=8, nkat=nkat)
    first = tokens(streams=4)
    second = first.clone()
    second[:, changed] = torch.randn(2, TOKENS, WIDTH)
    (_, before), (_, after) = run(module, first), run(module, second)
    assert before.theta is not None and after.theta is not None
    for head in range(8):
        same = head // 2 != changed
        assert torch.equal(before.attention[:, head], after.attention[:, head]) == same
        if nkat == "key_bias":
            assert torch.equal(before.theta[:, head], after.theta[:, head]) == same


def test_equal_streams_are_attention_without_split_head() -> None:
    split, plain = attention(streams=4), attention()
    assert torch.allclose(run(split, tokens().expand(-1, 4, -1, -1))[0], run(plain, tokens())[0], atol=1e-5)


def test_other_numbers_of_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 or 4 streams, given 3"):
        attention(streams=3)
