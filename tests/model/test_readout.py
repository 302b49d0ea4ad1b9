"""The regularised readout, the routes of tokens and contexts, and initial exponents."""

import math
from dataclasses import asdict

import pytest
import torch
from core_helpers import make_model, make_tokens, phase2_config, rng, state_of

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.config.schema import ConfigError
from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.readout import Readout
from newllm_core.report.leaderboard import plot_exponents
from newllm_core.training.initialisation import exponents_by_width, scale_to_exponent
from newllm_core.training.phase1 import all_contexts, finish_phase1
from newllm_core.training.phase2 import Phase2Result, train_phase2

TRAIN, VALIDATION = make_tokens(300, seed=1), make_tokens(120, seed=2)


def trained(model: NewLLM, **values: object) -> Phase2Result:
    contexts = finish_phase1(model, TRAIN, VALIDATION, None)
    return train_phase2(model, contexts, TRAIN, VALIDATION, phase2_config(**values), seed=1)


# --- output ---------------------------------------------------------------------------------------------------------


def test_adapter_and_scale_start_where_they_should() -> None:
    hidden = torch.randn(5, 8, generator=rng(1))
    readout = Readout(8, adapter_rank=2, logit_scale=0.5)
    readout.start_adapter_at_zero()
    torch.testing.assert_close(readout(hidden), 0.5 * hidden)
    assert sum(parameter.numel() for parameter in readout.parameters()) == 2 * 2 * 8 + 1
    assert not list(Readout(8, adapter_rank=0, logit_scale=None).parameters())
    assert torch.equal(Readout(8, 0, None)(hidden), hidden)


def test_an_adapter_of_the_hidden_states_is_one_of_the_head() -> None:
    model = make_model(adapter_rank=3)
    down, up = model.readout.down, model.readout.up
    assert down is not None and up is not None
    torch.nn.init.normal_(up.weight, generator=rng(2))
    contexts, tokens = torch.randn(4, 1, 6, generator=rng(3)), VALIDATION[:4]
    plain = model.token_block.forward_with_contexts(contexts.unbind(1), model.embed(tokens))
    adapted = model.head_weight @ (torch.eye(8) + up.weight @ down.weight)
    torch.testing.assert_close(model.logits(model.hidden(contexts, tokens)), plain @ adapted.T)


def test_the_unigram_bias_is_added_to_the_logits_and_comes_back_with_the_model() -> None:
    model = make_model()
    contexts, tokens = torch.randn(4, 1, 6, generator=rng(3)), VALIDATION[:4]
    before = model.logits(model.hidden(contexts, tokens))
    result = trained(make_model(), unigram_bias=True)
    assert result.epochs
    model.output_bias = fit_unigram(TRAIN, len(model.embedding)).log_probabilities.float()
    after = model.logits(model.hidden(contexts, tokens))
    torch.testing.assert_close(after, before + model.output_bias)


def test_a_bias_starts_training_nearer_to_the_text() -> None:
    """A head whose hidden states are nothing gives the unigram; without a bias it gives the uniform distribution."""
    losses = {}
    for bias in (False, True):
        model = make_model(logit_scale=1e-6)
        losses[bias] = trained(model, unigram_bias=bias, learning_rate=1e-9, max_epochs=1).best.validation_loss
    unigram = fit_unigram(TRAIN, 30).log_probabilities
    assert losses[False] == pytest.approx(math.log(30), abs=1e-3)
    assert losses[True] == pytest.approx(float(-unigram[VALIDATION[1:]].mean()), abs=1e-3)


def test_a_bias_of_a_trained_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="unigram_bias: expected a frozen head"):
        trained(make_model(freeze_embedding=False), unigram_bias=True)


# --- training -------------------------------------------------------------------------------------------------------


def test_dropout_is_drawn_from_the_seed_and_left_out_of_evaluation() -> None:
    models = [make_model() for _ in range(3)]
    results = [trained(model, dropout=dropout) for model, dropout in zip(models, (0.4, 0.4, 0.0), strict=True)]
    first, second, without = (state_of(model.token_block) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], without[name]) for name in first)
    assert results[0].best.train_loss > results[2].best.train_loss


def test_the_cosine_schedule_ends_at_nothing() -> None:
    constant, cosine = make_model(), make_model()
    for model, schedule in ((constant, "constant"), (cosine, "cosine")):
        trained(model, schedule=schedule, max_epochs=1)
    start = state_of(make_model().token_block)["layers.0.from_token.weight"]
    moved = [(state_of(m.token_block)["layers.0.from_token.weight"] - start).norm() for m in (constant, cosine)]
    assert 0 < moved[1] < moved[0]


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    model = make_model(num_layers=1, adapter_rank=2)
    down = model.readout.down
    assert down is not None
    before = down.weight.detach().clone()
    # ``up`` starts at zero, so that ``down`` has no gradient in the first step.
    contexts = finish_phase1(model, TRAIN[:33], VALIDATION, None)
    train_phase2(model, contexts, TRAIN[:33], VALIDATION, phase2_config(weight_decay=0.5, max_epochs=1), seed=1)
    torch.testing.assert_close(down.weight.detach(), before * (1 - 0.5 * 0.001))


# --- routes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_input_tokens", [1, 2])
def test_a_token_that_enters_at_the_first_layer_alone(num_input_tokens: int) -> None:
    model = make_model(num_layers=3, token_input="first-layer", num_input_tokens=num_input_tokens)
    halves = [layer.from_token for layer in model.context_block.layers]
    assert halves[0] is not None and halves[1:] == [None, None]
    embeds = StreamEmbeddings(model, TRAIN)
    zero = torch.zeros(6)
    found = exact_contexts(model.context_block, embeds, zero, segment_length=16).contexts
    expected = sequential_contexts(model.context_block, embeds[0 : len(TRAIN)], zero)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_plan_a_reads_the_final_context_at_every_layer() -> None:
    contexts = torch.randn(4, 3, 6, generator=rng(1))
    others = torch.cat([torch.randn(4, 2, 6, generator=rng(2)), contexts[:, 2:]], dim=1)
    for routing, same in (("final", True), ("per-layer", False)):
        model = make_model(num_layers=3, context_routing=routing)
        found, changed = (model.hidden(one, VALIDATION[:4]) for one in (contexts, others))
        assert torch.equal(found, changed) is same


def test_an_open_gate_changes_nothing_and_a_closed_one_leaves_the_token() -> None:
    gated, plain = make_model(token_gate=True), make_model()
    gated.token_block.load_state_dict(plain.token_block.state_dict(), strict=False)
    contexts, tokens = torch.randn(4, 1, 6, generator=rng(1)), VALIDATION[:4]
    gate = gated.token_block.layers[0].gate
    for bias, expected in ((40.0, plain.hidden(contexts, tokens)), (-40.0, plain.embed_norm(plain.embed(tokens)))):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, bias)
        torch.testing.assert_close(gated.hidden(contexts, tokens), expected, atol=1e-4, rtol=1e-4)


# --- initial exponent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_dim", [16, 64])
@pytest.mark.parametrize("target", [-0.2, -0.1])
def test_recurrent_weights_get_the_exponent_that_was_asked_for(context_dim: int, target: float) -> None:
    model = make_model(context_dim=context_dim, embed_dim=200)
    embeds = StreamEmbeddings(model, make_tokens(1500))
    before = state_of(model.context_block)
    found = scale_to_exponent(model.context_block, embeds, target)
    assert found.success and found.exponent == pytest.approx(target, abs=5e-3)
    assert contraction_rate(model.context_block, embeds[0:1024]) == pytest.approx(found.exponent)
    after = state_of(model.context_block)
    for name in before:
        scale = found.scale if name.endswith("from_context.weight") else 1.0
        torch.testing.assert_close(after[name], before[name] * scale)


def test_exponents_by_width_are_of_new_models_and_can_be_drawn() -> None:
    config, matrix = ModelConfig(embed_dim=200, context_dim=5), torch.randn(30, 200, generator=rng(3))
    found = exponents_by_width(config, matrix, make_tokens(1500), [32, 64], -0.15, seed=1)
    assert [one.context_dim for one in found] == [32, 64] and all(one.scaled.success for one in found)
    model = NewLLM(ModelConfig(embed_dim=200, context_dim=64), matrix, seed=1)
    drawn = contraction_rate(model.context_block, StreamEmbeddings(model, make_tokens(1500))[0:1024])
    assert found[1].drawn == drawn
    (axis,) = plot_exponents([asdict(one) for one in found], -0.15, "made up").axes
    assert [list(line.get_xdata()) for line in axis.get_lines()[:2]] == [[32, 64], [32, 64]]


def test_a_wish_that_no_scale_meets_leaves_the_weights() -> None:
    model = make_model()
    before = all_contexts(model, VALIDATION)
    found = scale_to_exponent(model.context_block, StreamEmbeddings(model, TRAIN), -50.0)
    assert not found.success
    torch.testing.assert_close(all_contexts(model, VALIDATION), before)
    with pytest.raises(ConfigError, match="initial_exponent: expected at most 0"):
        ModelConfig(initial_exponent=0.5)


# --- linear readout and time scales ---------------------------------------------------------------------------------


def test_the_linear_readout_starts_at_the_bias_and_reads_the_last_context_alone() -> None:
    model = make_model(readout="linear", num_layers=2)
    model.output_bias = fit_unigram(TRAIN, len(model.embedding)).log_probabilities.float()
    contexts, tokens = torch.randn(4, 2, 6, generator=rng(1)), VALIDATION[:4]
    torch.testing.assert_close(model.logits(model.hidden(contexts, tokens)), model.output_bias.expand(4, -1))
    linear = model.token_block.from_context
    torch.nn.init.normal_(linear.weight, generator=rng(2))
    expected = contexts[:, 1] @ linear.weight.T @ model.head_weight.T + model.output_bias
    torch.testing.assert_close(model.logits(model.hidden(contexts, tokens)), expected)
    assert model.parameter_counts()["trained_in_phase2"] == 8 * (6 + 1)


def test_the_sum_adds_a_tenth_of_the_token_block() -> None:
    summed, plain = make_model(readout="sum"), make_model()
    summed.token_block.token_block.load_state_dict(plain.token_block.state_dict())
    contexts, tokens = torch.randn(4, 1, 6, generator=rng(1)), VALIDATION[:4]
    torch.testing.assert_close(summed.hidden(contexts, tokens), 0.1 * plain.hidden(contexts, tokens))
    own = plain.parameter_counts()["token_block"]
    assert summed.parameter_counts()["trained_in_phase2"] == own + 8 * (6 + 1) + 1


def test_the_linear_readout_learns() -> None:
    epochs = trained(make_model(readout="linear"), max_epochs=4).epochs
    assert epochs[-1].validation_loss < epochs[0].validation_loss


def test_gains_of_one_are_the_plain_layer_and_exact_contexts_know_them() -> None:
    gained, plain = make_model(time_scales=True), make_model()
    embeds, zero = StreamEmbeddings(plain, TRAIN), torch.zeros(6)
    rows = embeds[0 : len(TRAIN)]
    found = exact_contexts(gained.context_block, embeds, zero, segment_length=16).contexts
    torch.testing.assert_close(found, sequential_contexts(gained.context_block, rows, zero), atol=1e-4, rtol=0)
    torch.nn.init.ones_(gained.context_block.layers[0].gain)
    expected = sequential_contexts(plain.context_block, rows, zero)
    torch.testing.assert_close(sequential_contexts(gained.context_block, rows, zero), expected)
