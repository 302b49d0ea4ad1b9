"""Baselines: counts against their definitions, networks against their own segments, training against a planted text."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_helpers import trained_and_judged
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from newllm_core.baselines import judge as judge_module
from newllm_core.baselines import train as train_module
from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.gpt2 import gpt2_nats
from newllm_core.baselines.judge import NetworkReader
from newllm_core.baselines.registry import BASELINES, baseline_config, build_network
from newllm_core.baselines.rows_drawn import rows_drawn
from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError
from newllm_core.gpu_memory import DeviceBatch
from newllm_core.head.cross_entropy import Head, with_output_bias, with_unit_columns
from newllm_core.head.kneser_ney import count_ngrams
from newllm_core.head.unigram_bias import UNIGRAM_ADDED, fit_unigram
from newllm_core.losses import NotFiniteError
from newllm_core.model import NewLLM
from newllm_core.model.dropout import RowsOf
from newllm_core.runs.reproducibility import generator_states

VOCABULARY, EMBED_DIM = 12, 8
TEXTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=12, max_size=60)


def small_model() -> NewLLM:
    matrix = torch.randn(VOCABULARY, EMBED_DIM, generator=torch.Generator().manual_seed(0))
    return NewLLM(ModelConfig(context_dim=4, embed_dim=EMBED_DIM), matrix)


def cycle(length: int) -> Tensor:
    """A text whose next token is certain: 0, 1, … 11, 0, …"""
    return torch.arange(length) % VOCABULARY


def small_config(network: str, **changes: object) -> BaselineConfig:
    values = {
        "embed_dim": EMBED_DIM,
        "width": 16,
        "num_layers": 1,
        "dropout": 0.0,
        "num_streams": 4,
        "segment_tokens": 8,
        "max_epochs": 3,
    }
    return BaselineConfig(network=network, **{**values, **changes})  # type: ignore[arg-type]


# --- GPT-2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 7, 16, 17, 40])
def test_gpt2_predicts_each_target_from_half_a_window_or_more(length: int, tmp_path: Path) -> None:
    """The real model needs a network: a small one in the same files, against one call for each target."""
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    tokens = cycle(length)
    expected = []
    for target in range(1, length):
        block = (target - 1) // 8 * 8
        with torch.no_grad():
            logits = model(tokens[None, max(0, block - 8) : target]).logits[0, -1]
        expected.append(functional.cross_entropy(logits[None], tokens[target][None]))
    torch.testing.assert_close(gpt2_nats(tokens, str(tmp_path)).float(), torch.stack(expected))


def test_gpt2_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gpt2 needs a network"):
        gpt2_nats(cycle(5), str(tmp_path / "nothing"))


# --- counts ---------------------------------------------------------------------------------------------------------


@given(TEXTS)
@settings(deadline=None)
def test_unigram_is_a_distribution_and_its_added_count_is_the_best_when_each_token_is_left_out(text: list[int]) -> None:
    tokens = torch.tensor(text)
    found = fit_unigram(tokens, VOCABULARY)
    assert found.log_probabilities.exp().sum() == pytest.approx(1)

    def left_out(added: float) -> float:
        others = [[*text[:place], *text[place + 1 :]] for place in range(len(text))]
        return -sum(
            math.log((rest.count(word) + added) / (len(rest) + added * VOCABULARY)) for rest, word in zip(others, text)
        )

    assert left_out(found.added) == pytest.approx(min(map(left_out, UNIGRAM_ADDED)))


# --- head with a bias -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "tolerance"), [("direct", 1e-5), ("blocks", 1e-5), ("blocks-bf16", 2e-2)])
def test_a_bias_in_two_columns_is_added_to_the_logits(method: str, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(5, EMBED_DIM, generator=generator), torch.randn(40, EMBED_DIM, generator=generator)
    bias, targets = -10 * torch.rand(40, generator=generator), torch.arange(5)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets)
    found = Head(with_output_bias(weight, bias), method).loss(with_unit_columns(hidden), targets).mean_nats
    assert found == pytest.approx(float(expected), abs=tolerance)


def test_the_bias_keeps_sixteen_bits_where_products_are_rounded() -> None:
    bias = torch.linspace(-12, -3, 1001)
    kept = with_output_bias(torch.zeros(1001, 1), bias)[:, 1:].to(torch.bfloat16).float().sum(dim=1)
    assert (kept - bias).abs().max() < 1e-4


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, one in BASELINES.items() if one.kind == "network"])
def test_a_baseline_has_1_05_million_parameters_within_10_percent(name: str) -> None:
    count = sum(parameter.numel() for parameter in build_network(baseline_config(name)).parameters())
    assert count == pytest.approx(1.05e6, rel=0.1)


@pytest.mark.parametrize("name", ["gru", "lstm", "mingru"])
def test_segments_with_their_state_equal_the_whole(name: str) -> None:
    network = build_network(baseline_config(name, width=16, embed_dim=EMBED_DIM)).eval()
    embeds = torch.randn(2, 20, EMBED_DIM)
    whole, _ = network(embeds, None)
    first, state = network(embeds[:, :7], None)
    second, state = network(embeds[:, 7:8], state)
    third, _ = network(embeds[:, 8:], state)
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole, atol=2e-5, rtol=0)


def test_a_gpt_does_not_see_what_follows() -> None:
    network = build_network(baseline_config("gpt", width=16, embed_dim=EMBED_DIM)).eval()
    embeds = torch.randn(1, 20, EMBED_DIM)
    changed = embeds.clone()
    changed[:, 12:] = 0
    torch.testing.assert_close(network(embeds, None)[0][:, :12], network(changed, None)[0][:, :12])


def test_windows_judge_every_target_once_and_in_order() -> None:
    tokens = torch.randint(VOCABULARY, (101,))
    config = small_config("gpt")
    reader = NetworkReader(build_network(config).eval(), small_model(), config)
    judged = [(hidden, targets) for hidden, targets in reader.windows(tokens)]
    torch.testing.assert_close(torch.cat([targets for _, targets in judged]), tokens[1:])
    assert all(len(hidden) == len(targets) for hidden, targets in judged)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["gru", "lstm", "mingru", "gpt"])
def test_training_finds_a_text_without_surprise(network: str) -> None:
    config = small_config(network, max_epochs=12, learning_rate=0.02)
    result = trained_and_judged(small_model(), cycle(400), cycle(100), config, seed=1)
    assert result.nats.shape == (99,) and result.nats.dtype == torch.float64
    assert result.nats[20:].mean() < 0.3 < math.log(VOCABULARY)
    assert result.trained.epochs[result.trained.best_epoch - 1].validation_loss == min(
        row.validation_loss for row in result.trained.epochs
    )
    assert result.trained.seconds.cpu > 0 and result.trained.record()["trainable_parameters"] > 0


def test_the_same_seed_gives_the_same_figures_and_another_seed_others() -> None:
    config = small_config("gru", max_epochs=2)
    first, again, other = (
        trained_and_judged(small_model(), cycle(200), cycle(60), config, seed=n).nats for n in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_training_stops_when_validation_does_not_improve() -> None:
    config = small_config("gru", max_epochs=50, patience=2, learning_rate=0.05)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(VOCABULARY, (300,), generator=generator)
    result = trained_and_judged(small_model(), noise[:200], noise[200:], config, seed=1)
    assert result.trained.best_epoch == len(result.trained.epochs) - 2 < 48


def test_a_loss_that_is_not_finite_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        judge_module, "with_unit_columns", lambda hidden: torch.full((len(hidden), EMBED_DIM + 2), math.nan)
    )
    with pytest.raises((NotFiniteError, RuntimeError), match="training loss is nan|grad"):
        trained_and_judged(small_model(), cycle(200), cycle(60), small_config("gru"), seed=1)


def test_too_short_a_text_and_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="num_streams · segment_tokens = 32 tokens, given 20"):
        trained_and_judged(small_model(), cycle(20), cycle(60), small_config("gru"), seed=1)
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        baseline_config("gpt", width=33)
    with pytest.raises(ConfigError, match="Did you mean 'gru'"):
        baseline_config("gur")


def test_the_continuous_cache_is_mixed_in_when_the_network_is_judged() -> None:
    """On a text that repeats, and with the same weights: only the last judgement differs."""
    tokens = torch.randint(VOCABULARY, (60,), generator=torch.Generator().manual_seed(1)).repeat(4)
    plain, cached = (
        trained_and_judged(small_model(), cycle(200), tokens, small_config("gru", cache_weight=weight), seed=1)
        for weight in (0.0, 0.3)
    )
    assert [epoch.validation_loss for epoch in plain.trained.epochs] == [
        epoch.validation_loss for epoch in cached.trained.epochs
    ]
    assert cached.nats.mean() < plain.nats.mean() and cached.nats[0] == plain.nats[0]


def test_counted_ngrams_are_mixed_in_when_the_network_is_judged() -> None:
    tokens = cycle(60)
    alone, mixed = (
        trained_and_judged(
            small_model(), cycle(200), tokens, small_config("gru", ngram_weight=weight, ngram_order=3), seed=1
        )
        for weight in (0.0, 0.4)
    )
    counts = count_ngrams(cycle(200), VOCABULARY, 0.4, 3)
    assert (
        counts is not None
        and mixed.judged.counted_ngrams == counts.counts.num_ngrams > alone.judged.counted_ngrams == 0
    )
    assert torch.equal(mixed.nats, counts.mixed_nats(alone.nats, tokens)) and mixed.nats.mean() < alone.nats.mean()


def test_a_sampled_vocabulary_that_keeps_all_changes_nothing() -> None:
    whole, sampled = (
        trained_and_judged(small_model(), cycle(200), cycle(60), small_config("gru", unseen_sample=unseen), seed=1)
        for unseen in (None, VOCABULARY)
    )
    assert [e.validation_loss for e in whole.trained.epochs] == pytest.approx(
        [e.validation_loss for e in sampled.trained.epochs], rel=1e-4
    )


def test_dropout_is_the_same_however_many_streams_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times out of memory: a stream at a time, in recurrent layers and in attention."""
    for network, layers in (("lstm", 2), ("gpt", 1)):
        config = small_config(network, num_layers=layers, dropout=0.5, max_epochs=1, num_streams=5, unigram_bias=False)
        whole = trained_and_judged(small_model(), cycle(200), cycle(60), config, seed=1).nats
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "DeviceBatch", lambda device, size: DeviceBatch(device, 1))
            parts = trained_and_judged(small_model(), cycle(200), cycle(60), config, seed=1).nats
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_draws_that_ranks_cannot_share_are_refused() -> None:
    two_of_four = RowsOf(0, 4), 2, generator_states(torch.device("cpu")), torch.device("cpu")
    with pytest.raises(ValueError, match=r"expected values \[2 streams, ...\]"), rows_drawn(*two_of_four):
        functional.dropout(torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected dropout of PyTorch's"), rows_drawn(*two_of_four):
        torch.rand(2)
