"""The network against numbers by hand, against a plain reading of its equations, and its parameter counts."""

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, rng, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.metrics.forgetting import contraction_rate
from newllm_core.model import ContextBlock, ContextLayer, NewLLM, StreamEmbeddings, TokenBlock, TokenLayer


def set_linear(linear: nn.Linear, weight: list[list[float]], bias: list[float] | None = None) -> None:
    linear.weight.data = torch.tensor(weight)
    if bias is not None:
        linear.bias.data = torch.tensor(bias)


def model_by_hand() -> NewLLM:
    """Two dimensions, three tokens. All norms with epsilon 1: LayerNorm of (a, b) is then ±d / sqrt(d² + 1) with
    d = (a - b) / 2, where the usual epsilon would give ±1 whatever d is."""
    model = NewLLM(ModelConfig(context_dim=2, embed_dim=2), torch.tensor([[1.5, 0.0], [0.0, 1.5], [1.0, 1.0]]))
    context_layer, token_layer = model.context_block.layers[0], model.token_block.layers[0]
    set_linear(context_layer.from_context, [[0.0, 1.0], [1.0, 0.0]], [0.0, 3.0])
    set_linear(context_layer.from_token, [[5 / 3, 0.0], [0.0, 5 / 3]])
    set_linear(token_layer.from_context, [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0])
    set_linear(token_layer.from_token, [[0.0, 1.0], [1.0, 0.0]])
    context_layer.norm.weight.data, context_layer.norm.bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5])
    for norm in (context_layer.norm, token_layer.norm, model.embed_norm):
        norm.eps = 1.0
    return model


def test_embeddings_by_hand() -> None:
    # d = 0.75, and 0.75 / sqrt(0.5625 + 1) = 0.75 / 1.25
    embedded = model_by_hand().embed(torch.tensor([0, 1, 2]))
    assert torch.allclose(embedded, torch.tensor([[0.6, -0.6], [-0.6, 0.6], [0.0, 0.0]]))


def test_logits_by_hand() -> None:
    model = model_by_hand()
    # Token 0, e = (0.6, -0.6), from the zero context.
    # Before GELU: (0 + 1, 0 - 1 + 3) = (1, 2). GELU: (0.841345, 1.954500). d = -0.556577, normed ∓0.486325;
    # times (1, 2) plus (0, 0.5):
    first = model.context_block(torch.zeros(1, 2), model.embed(torch.tensor([0])))
    assert torch.allclose(first, torch.tensor([[-0.486325, 1.472650]]), atol=1e-5)
    # Token 1, e = (-0.6, 0.6). Before GELU: (1.472650 - 1, -0.486325 + 1 + 3) = (0.472650, 3.513675).
    # GELU: (0.322238, 3.512898). With the residual: (-0.164087, 4.985549). d = -2.574818, normed ∓0.932166; affine:
    second = model.context_block(first, model.embed(torch.tensor([1])))
    assert torch.allclose(second, torch.tensor([[-0.932166, 2.364332]]), atol=1e-5)
    # TokenLayer. Before GELU: (-0.932166 + 0.6 + 1, 2.364332 - 0.6) = (0.667834, 1.764332).
    # GELU: (0.499460, 1.695808). With the residual: (-0.100540, 2.295808). d = -1.198174:
    hidden = model.hidden(second.unsqueeze(1), torch.tensor([1]))
    assert torch.allclose(hidden, torch.tensor([[-0.767742, 0.767742]]), atol=1e-5)
    # Times the rows (1.5, 0), (0, 1.5), (1, 1).
    assert torch.allclose(model.logits(hidden), torch.tensor([[-1.151612, 1.151612, 0.0]]), atol=1e-5)


SIZES = st.integers(1, 6)


@given(SIZES, SIZES, SIZES.filter(lambda width: width > 1), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_two_linears_equal_one_linear_of_the_concatenation(
    input_dim: int, token_dim: int, output_dim: int, count: int
) -> None:
    layer = ContextLayer(input_dim, token_dim, output_dim).double()
    context, token = torch.randn(count, input_dim).double(), torch.randn(count, token_dim).double()
    weight = torch.cat([layer.from_context.weight, layer.from_token.weight], dim=1)
    joined = functional.linear(torch.cat([context, token], dim=1), weight, layer.from_context.bias)
    expected = layer.norm(layer.residual(context) + functional.gelu(joined))
    assert torch.allclose(layer(context, token), expected, atol=1e-10)
    assert torch.allclose(layer.from_token_part(context, layer.token_part(token)), expected, atol=1e-10)


@given(SIZES, SIZES, SIZES.filter(lambda width: width > 1), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_a_token_layer_is_its_equation(context_dim: int, input_dim: int, output_dim: int, count: int) -> None:
    layer = TokenLayer(context_dim, input_dim, output_dim).double()
    context, token = torch.randn(count, context_dim).double(), torch.randn(count, input_dim).double()
    weight = torch.cat([layer.from_context.weight, layer.from_token.weight], dim=1)
    joined = functional.linear(torch.cat([context, token], dim=1), weight, layer.from_context.bias)
    expected = layer.norm(layer.residual(token) + functional.gelu(joined))
    assert torch.allclose(layer(context, token), expected, atol=1e-10)


def test_the_residual_is_the_identity_only_where_widths_agree() -> None:
    assert isinstance(ContextLayer(4, 3, 4).residual, nn.Identity)
    assert isinstance(ContextLayer(5, 4, 4).residual, nn.Linear)
    assert isinstance(TokenLayer(5, 4, 4).residual, nn.Identity)
    assert isinstance(TokenLayer(4, 5, 4).residual, nn.Linear)


def test_blocks_made_alone_start_as_specified_and_forget() -> None:
    """Their library's default would not forget: an exponent of about 0 where it is about -0.1."""
    context, token = ContextBlock(300, 200, num_layers=2), TokenBlock(300, 200, num_layers=2)
    for block in (context, token):
        for name, value in block.named_parameters():
            if "norm" not in name:
                assert value.std().item() == pytest.approx(0.01 if "bias" in name else 0.1, rel=0.15), name
    embeds = torch.nn.functional.layer_norm(torch.randn(256, 200, generator=rng(2)), (200,))
    assert contraction_rate(ContextBlock(64, 200, generator=rng(1)), embeds) < -0.05


def test_a_models_weights_leave_the_global_generator_where_torch_alone_would() -> None:
    torch.manual_seed(5)
    for layer in (ContextLayer(6, 8, 6), TokenLayer(6, 8, 8), torch.nn.Linear(1, 1)):
        layer.train()
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_model()
    torch.nn.Linear(1, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_token_enters_the_context_block_at_every_layer(num_layers: int) -> None:
    block = ContextBlock(5, 4, num_layers, num_input_tokens=2)
    context, token = torch.randn(6, 5), torch.randn(6, 8)
    expected = []
    current = context
    for layer in block.layers:
        current = layer(current, token)
        expected.append(current)
    found = block.forward_with_intermediates(context, token)
    assert len(found) == num_layers
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(block(context, token), expected[-1])


@pytest.mark.parametrize("num_layers", [1, 3])
def test_layer_i_of_the_token_block_reads_context_i(num_layers: int) -> None:
    block = TokenBlock(5, 4, num_layers)
    contexts, token = list(torch.randn(num_layers, 6, 5)), torch.randn(6, 4)
    current = token
    for index in range(num_layers):
        current = block.layers[index](contexts[index], current)
    assert torch.equal(block.forward_with_contexts(contexts, token), current)


def test_contexts_that_are_not_one_per_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="TokenBlock: expected 3 contexts, one per layer, given 2"):
        TokenBlock(5, 4, 3).forward_with_contexts([torch.zeros(1, 5)] * 2, torch.zeros(1, 4))


def test_the_hidden_state_is_the_token_blocks_of_the_normalised_embedding() -> None:
    model = make_model(num_layers=2)
    contexts, tokens = torch.randn(5, 2, 6), make_tokens(5)
    expected = model.token_block.forward_with_contexts([contexts[:, 0], contexts[:, 1]], model.embed(tokens))
    assert torch.equal(model.hidden(contexts, tokens), expected)
    normed = functional.layer_norm(model.embedding[tokens], (8,))
    assert torch.allclose(model.embed(tokens), normed)


def test_parameter_counts_at_the_size_of_the_notes() -> None:
    model = NewLLM(ModelConfig(context_dim=768, embed_dim=768, num_layers=6), torch.zeros(50257, 768))
    counts = model.parameter_counts()
    assert counts["total"] == 52_782_336
    assert counts["token_block"] == counts["trained_in_phase2"] == 7_091_712
    assert counts["context_block"] == counts["trained_in_phase1"] == 7_091_712
    assert counts["embedding"] == 50257 * 768


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("freeze_embedding", [True, False])
def test_parameter_counts_are_of_what_there_is(tie_weights: bool, freeze_embedding: bool) -> None:
    model = make_model(tie_weights=tie_weights, freeze_embedding=freeze_embedding)
    counts = model.parameter_counts()
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["head"] == (0 if tie_weights else VOCAB_SIZE * 8)
    others = VOCAB_SIZE * 8 * ((not tie_weights) + (not freeze_embedding))
    assert counts["trained_in_phase2"] == counts["token_block"] + others


def gradients_of_prediction(model: NewLLM) -> None:
    tokens = make_tokens(6)
    contexts = torch.randn(6, model.config.num_layers, 6)
    functional.cross_entropy(model.logits(model.hidden(contexts, tokens)), tokens).backward()


def test_a_tied_frozen_head_gets_no_gradient() -> None:
    model = make_model()
    gradients_of_prediction(model)
    assert model.head_is_frozen and model.head_weight is model.embedding
    assert model.embedding.grad is None and model.embed_norm.weight.grad is None
    assert all(parameter.grad is not None for parameter in model.token_block.parameters())


def test_a_tied_head_that_is_not_frozen_gets_a_gradient() -> None:
    model = make_model(freeze_embedding=False)
    gradients_of_prediction(model)
    assert not model.head_is_frozen
    assert model.embedding.grad is not None and bool(model.embedding.grad.abs().sum() > 0)


@pytest.mark.parametrize("freeze_embedding", [True, False])
def test_an_untied_head_gets_a_gradient_of_its_own(freeze_embedding: bool) -> None:
    model = make_model(tie_weights=False, freeze_embedding=freeze_embedding)
    assert torch.equal(model.head_weight, model.embedding)
    gradients_of_prediction(model)
    assert not model.head_is_frozen and model.head_weight is model.untied_head
    assert model.untied_head.grad is not None
    assert (model.embedding.grad is None) == freeze_embedding


@pytest.mark.parametrize("shape", [(30, 7), (8,), (30, 8, 1)])
def test_an_embedding_matrix_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    message = rf"expected an embedding matrix \[V, 8\] \(embed_dim\), given \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=message):
        NewLLM(ModelConfig(context_dim=6, embed_dim=8), torch.zeros(shape))


def test_the_callers_matrix_is_copied() -> None:
    matrix = torch.randn(VOCAB_SIZE, 8)
    model = NewLLM(ModelConfig(context_dim=6, embed_dim=8, freeze_embedding=False), matrix)
    model.embedding.data.zero_()
    assert matrix.abs().sum() > 0


def test_initial_weights_have_the_configured_spread() -> None:
    model = make_model(context_dim=300, embed_dim=200, weight_std=0.1, bias_std=0.01)
    for layer in (model.context_block.layers[0], model.token_block.layers[0]):
        for linear in (layer.from_context, layer.from_token):
            assert linear.weight.std().item() == pytest.approx(0.1, abs=0.002)
            assert linear.weight.mean().item() == pytest.approx(0, abs=0.002)
        assert layer.from_context.bias.std().item() == pytest.approx(0.01, abs=0.002)


def test_initial_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    same = state_of(make_model(seed=1))
    torch.rand(3)
    again, other = state_of(make_model(seed=1)), state_of(make_model(seed=2))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert all(not torch.equal(same[name], other[name]) for name in same if name.endswith("from_token.weight"))


def test_the_token_block_starts_alike_whatever_the_context_blocks_input() -> None:
    one, three = state_of(make_model(num_input_tokens=1)), state_of(make_model(num_input_tokens=3))
    assert all(torch.equal(one[name], three[name]) for name in one if name.startswith("token_block"))


@given(st.integers(1, 5), st.integers(1, 20), st.data())
@settings(deadline=None, max_examples=40)
def test_slices_of_stream_embeddings_equal_the_whole(history: int, num_tokens: int, data: st.DataObject) -> None:
    model, tokens = make_model(num_input_tokens=history), make_tokens(num_tokens)
    stream = StreamEmbeddings(model, tokens)
    start = data.draw(st.integers(0, num_tokens - 1))
    stop = data.draw(st.integers(start + 1, num_tokens))
    embedded = model.embed(tokens)
    rows = []
    for position in range(start, stop):
        window = [embedded[at] if at >= 0 else torch.zeros(8) for at in range(position - history + 1, position + 1)]
        rows.append(torch.cat(window))
    assert torch.equal(stream[start:stop], torch.stack(rows))
    assert torch.equal(stream[start:stop], stream[:][start:stop])
    assert stream.shape == stream[:].shape and len(stream) == num_tokens


def test_stream_embeddings_are_zero_before_the_start_and_oldest_first() -> None:
    model = make_model(num_input_tokens=3)
    tokens = torch.tensor([4, 9])
    first, second = StreamEmbeddings(model, tokens)[0:2]
    zero, (a, b) = torch.zeros(8), model.embed(tokens)
    assert torch.equal(first, torch.cat([zero, zero, a]))
    assert torch.equal(second, torch.cat([zero, a, b]))
