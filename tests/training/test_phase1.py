"""Phase 1 against a plain reading of docs/method.md, and what training promises."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from newllm_core import losses
from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.losses import NotFiniteError
from newllm_core.metrics.rank import stream_rank
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.training.batch_gradient import BatchGradient
from newllm_core.training.context_noise import context_noise
from newllm_core.training.fixed_point import _Rows, batch_slices
from newllm_core.training.phase1 import Phase1Result, all_contexts, finish_phase1, train_phase1

NUM_TOKENS = 300
TRAIN, VALIDATION = make_tokens(NUM_TOKENS, seed=1), make_tokens(120, seed=2)
SEED = 5


def train(model: NewLLM, seed: int = SEED, **values: Any) -> Phase1Result:
    return train_phase1(model, TRAIN, VALIDATION, phase1_config(**values), seed)


@given(st.integers(1, 3000), st.integers(2, 400), st.data())
@settings(deadline=None)
def test_batches_cover_every_token_once_and_are_never_too_short(
    num_tokens: int, batch_tokens: int, data: st.DataObject
) -> None:
    min_last_batch = data.draw(st.integers(2, batch_tokens))
    slices = batch_slices(num_tokens, batch_tokens, min_last_batch)
    assert [row for rows in slices for row in range(rows.start, rows.stop)] == list(range(num_tokens))
    lengths = [rows.stop - rows.start for rows in slices]
    assert all(length == batch_tokens for length in lengths[:-1])
    assert len(slices) == 1 or lengths[-1] >= min_last_batch
    assert lengths[-1] < batch_tokens + min_last_batch


@pytest.mark.parametrize(
    ("num_tokens", "lengths"),
    [(5999, [5999]), (6000, [5000, 1000]), (10_000, [5000, 5000]), (10_999, [5000, 5999]), (300, [300])],
)
def test_a_last_batch_of_less_than_a_thousand_joins_the_one_before(num_tokens: int, lengths: list[int]) -> None:
    assert [rows.stop - rows.start for rows in batch_slices(num_tokens, 5000, 1000)] == lengths


@given(st.integers(0, 4000), st.integers(1, 2500), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_noise_does_not_depend_on_how_tokens_are_batched(start: int, length: int, iteration: int) -> None:
    cut = start + length // 2
    whole = context_noise(slice(start, start + length), 3, 0.1, SEED, iteration)
    tail = context_noise(slice(cut, start + length), 3, 0.1, SEED, iteration)
    assert whole.shape == (length, 3)
    assert torch.equal(whole[cut - start :], tail)


def test_noise_differs_by_token_iteration_and_seed_and_has_the_std_asked_for() -> None:
    noise = context_noise(slice(0, 4000), 3, 0.1, SEED, 1)
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs(float(noise.mean())) < 0.005
    assert not torch.equal(noise, context_noise(slice(0, 4000), 3, 0.1, SEED, 2))
    assert not torch.equal(noise, context_noise(slice(0, 4000), 3, 0.1, SEED + 1, 1))


def test_tokens_that_share_noise_are_uncorrelated() -> None:
    """Rows of the table come back with either sign: the mean product of two tokens' noise is that of two draws."""
    width, count = 400, 6000
    noise = context_noise(slice(0, count), width, 1.0, SEED, 1)
    products = noise @ noise.T / width
    shared = products.abs() > 0.5
    shared.fill_diagonal_(False)
    # Of count² / 2 pairs one in 4,096 shares a row.
    assert int(shared.sum()) // 2 == pytest.approx(count**2 / 2 / 4096, rel=0.1)
    signs = products[shared].sign()
    assert abs(float(signs.mean())) < 4 / (len(signs) / 2) ** 0.5


@dataclasses.dataclass
class PlainIteration:
    cvfp: float
    diversity: float
    gradient: Tensor
    converged: int
    contexts: Tensor


def plain_training(model: NewLLM, config: Phase1Config, iterations: int) -> list[PlainIteration]:
    """docs/method.md, section 4, token by token. Trains ``model.context_block``."""
    block, parameters = model.context_block, list(model.context_block.parameters())
    embeds = StreamEmbeddings(model, TRAIN)[:]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    previous = sequential_contexts(block, embeds, torch.zeros(block.context_dim))
    diversity_of = losses.DIVERSITY_ALGORITHMS[config.diversity_algorithm]
    records = []
    for iteration in range(1, iterations + 1):
        entering = previous
        if config.context_source == "exact":
            entering = sequential_contexts(block, embeds, previous[-1])
        noise = context_noise(slice(0, NUM_TOKENS), block.context_dim, config.context_noise, SEED, iteration)
        rows = []
        for i in range(NUM_TOKENS):
            before = entering[i - 1] if i > 0 else previous[-1]
            rows.append(block((before + noise[i]).unsqueeze(0), embeds[i : i + 1]))
        contexts = torch.cat(rows)
        batches = batch_slices(NUM_TOKENS, config.batch_tokens, config.min_last_batch)
        cvfp = torch.stack([((contexts[b] - previous[b]) ** 2).mean() for b in batches]).mean()
        diversity = torch.stack([diversity_of(contexts[b]) for b in batches]).mean()
        total = (1 - config.dist_reg_weight) * cvfp + config.dist_reg_weight * diversity
        optimizer.zero_grad()
        total.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters]).clone()
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        converged = ((contexts - previous).square().mean(1) < config.convergence_threshold).sum()
        previous = entering if config.context_source == "exact" else contexts.detach()
        records.append(PlainIteration(cvfp.item(), diversity.item(), gradient, int(converged), previous))
        optimizer.step()
    return records


@pytest.mark.parametrize(
    "values",
    [
        {"batch_tokens": NUM_TOKENS, "context_noise": 0.0},
        {"batch_tokens": NUM_TOKENS, "diversity_algorithm": "ODCM", "dist_reg_weight": 0.5},
        {"batch_tokens": 100},
        {"batch_tokens": 140, "min_last_batch": 30, "gradient_clip": 0.01},
        {"batch_tokens": 30, "context_source": "exact"},
        {"batch_tokens": NUM_TOKENS, "context_source": "exact", "context_noise": 0.0},
    ],
    ids=lambda values: " ".join(f"{name}={value}" for name, value in values.items()),
)
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "num_input_tokens": 2}], ids=["one layer", "two layers"])
def test_training_is_the_specifications(values: dict[str, Any], shape: dict[str, int]) -> None:
    config = phase1_config(**{"max_iterations": 3, "convergence_threshold": 0.2, **values})
    model, plain = make_model(**shape), make_model(**shape)
    result = train_phase1(model, TRAIN, VALIDATION, config, SEED)
    assert result.history is not None
    expected = plain_training(plain, config, iterations=3)
    for record, other in zip(result.history.iterations, expected, strict=True):
        weight = config.dist_reg_weight
        total = (1 - weight) * other.cvfp + weight * other.diversity
        assert record.cvfp == pytest.approx(other.cvfp, rel=1e-4)
        assert record.diversity == pytest.approx(other.diversity, rel=1e-4)
        assert record.total == pytest.approx(total, rel=1e-4)
        assert record.gradient_norm == pytest.approx(float(other.gradient.norm()), rel=1e-3)
        assert abs(record.converged - other.converged) <= 1
        rank = stream_rank(other.contexts, config.effective_rank_tokens)
        assert record.train_rank.value == pytest.approx(rank.value, rel=1e-4)
        assert record.train_rank.num_tokens == rank.num_tokens == 200


def test_the_kept_weights_are_the_plain_ones() -> None:
    model, plain = make_model(), make_model()
    train(model, max_iterations=1)
    plain_training(plain, phase1_config(), iterations=1)
    for name, value in state_of(plain.context_block).items():
        assert torch.allclose(model.context_block.state_dict()[name], value, atol=1e-5), name


def test_the_first_token_is_entered_by_the_last_context_of_the_iteration_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[Tensor] = []
    forward = BatchGradient.forward

    def watched(gradient: BatchGradient, inputs: Tensor, rows: slice) -> Tensor:
        entered.append(inputs.clone())
        outputs.append(forward(gradient, inputs, rows).clone())
        return outputs[-1]

    outputs: list[Tensor] = []
    model = make_model()
    zero_pass = all_contexts(model, TRAIN)[:, -1]
    monkeypatch.setattr(BatchGradient, "forward", watched)
    train(model, batch_tokens=NUM_TOKENS, context_noise=0.0, max_iterations=3)
    assert torch.equal(entered[0], torch.cat([zero_pass[-1:], zero_pass[:-1]]))
    for iteration in (1, 2):
        before = outputs[iteration - 1].detach()
        assert torch.equal(entered[iteration], torch.cat([before[-1:], before[:-1]]))


@pytest.mark.parametrize("algorithm", ["MCDL", "ODCM"])
def test_accumulated_gradients_are_the_mean_over_equal_batches(algorithm: str) -> None:
    values: dict[str, Any] = {"diversity_algorithm": algorithm, "max_iterations": 1, "gradient_clip": 1e9}
    model, plain = make_model(), make_model()
    train(model, batch_tokens=100, **values)
    found = torch.cat([parameter.grad.flatten() for parameter in model.context_block.parameters()])
    per_batch = []
    embeds, zero = StreamEmbeddings(plain, TRAIN)[:], torch.zeros(6)
    previous = exact_contexts(plain.context_block, embeds, zero).contexts
    entering = torch.cat([previous[-1:], previous[:-1]]) + context_noise(slice(0, NUM_TOKENS), 6, 0.1, SEED, 1)
    for rows in (slice(0, 100), slice(100, 200), slice(200, 300)):
        contexts = plain.context_block(entering[rows], embeds[rows])
        loss = 0.1 * losses.cvfp_loss(contexts, previous[rows]) + 0.9 * losses.diversity_loss(algorithm)(contexts)
        gradients = torch.autograd.grad(loss, list(plain.context_block.parameters()))
        per_batch.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert torch.allclose(found, torch.stack(per_batch).mean(0), atol=1e-6)


def test_only_the_context_block_is_trained() -> None:
    model = make_model()
    before = state_of(model)
    train(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("context_block")}


def test_the_same_seed_gives_identical_figures_and_another_one_does_not() -> None:
    def run(seed: int) -> tuple[list[dict[str, Any]], Tensor]:
        result = train(make_model(), seed)
        assert result.history is not None
        return [record.record() for record in result.history.iterations], result.train_contexts

    (first, contexts), (again, contexts_again), (other, _) = run(SEED), run(SEED), run(SEED + 1)
    assert first == again and torch.equal(contexts, contexts_again)
    assert first != other


def test_the_result_holds_exact_contexts_of_all_layers_from_the_zero_context() -> None:
    model = make_model(num_layers=2)
    result = train(model)
    assert result.train_contexts.shape == (NUM_TOKENS, 2, 6) and result.validation_contexts.shape == (120, 2, 6)
    for found, tokens in ((result.train_contexts, TRAIN), (result.validation_contexts, VALIDATION)):
        embeds = StreamEmbeddings(model, tokens)[:]
        expected = sequential_contexts(model.context_block, embeds, torch.zeros(6))
        assert torch.allclose(found[:, -1], expected, atol=1e-4)


def test_finishing_a_loaded_model_gives_the_same_contexts_without_a_history() -> None:
    model = make_model()
    result = train(model)
    again = finish_phase1(model, TRAIN, VALIDATION, None)
    assert torch.equal(again.train_contexts, result.train_contexts) and again.history is None


def test_the_weights_of_the_best_check_are_kept() -> None:
    # Without a diversity term contexts collapse: some check before the last is the best one.
    model = make_model()
    history = train(model, max_iterations=12, check_interval=2, learning_rate=0.05, dist_reg_weight=0.2).history
    assert history is not None
    ranks = {record.iteration: record.validation_rank for record in history.iterations}
    checked = {iteration: rank.share for iteration, rank in ranks.items() if rank is not None}
    assert list(checked) == [2, 4, 6, 8, 10, 12]
    assert history.best_iteration == max(checked, key=lambda iteration: checked[iteration]) != 12
    kept = stream_rank(all_contexts(model, VALIDATION)[:, -1], 200)
    assert kept.share == pytest.approx(checked[history.best_iteration], rel=1e-5)
    assert not history.stopped_early


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_so_many_checks_without_gain(patience: int) -> None:
    values: dict[str, Any] = {"learning_rate": 0.05, "dist_reg_weight": 0.2, "max_iterations": 60, "check_interval": 2}
    history = train(make_model(), patience=patience, **values).history
    assert history is not None and history.stopped_early
    assert history.iterations[-1].iteration == history.best_iteration + 2 * patience


def test_training_does_not_stop_before_the_least_number_of_iterations() -> None:
    values: dict[str, Any] = {"learning_rate": 0.05, "dist_reg_weight": 0.2, "patience": 1}
    history = train(make_model(), min_iterations=17, max_iterations=60, **values).history
    assert history is not None
    assert len(history.iterations) == 17 and history.best_iteration < 16


def test_the_last_iteration_is_checked_whatever_the_interval() -> None:
    history = train(make_model(), max_iterations=3, check_interval=5).history
    assert history is not None and history.best_iteration == 3
    assert [record.validation_rank is None for record in history.iterations] == [True, True, False]
    assert history.iterations[0].record()["validation_rank"] is None
    assert history.iterations[2].record()["validation_rank"]["tokens"] == 119


def test_no_iterations_leave_the_weights_untouched() -> None:
    model = make_model()
    before = state_of(model)
    result = train(model, max_iterations=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    history = result.history
    assert history is not None and history.iterations == [] and history.best_iteration == 0
    assert history.stale_contexts is None and not history.stopped_early
    assert history.untrained_rank.value == pytest.approx(stream_rank(result.validation_contexts[:, -1], 200).value)


def test_the_stale_contexts_are_those_of_the_best_iterations_pass() -> None:
    model, plain = make_model(), make_model()
    history = train(model, max_iterations=4).history
    assert history is not None and history.stale_contexts is not None
    best = plain_training(plain, phase1_config(), iterations=4)[history.best_iteration - 1]
    assert torch.allclose(history.stale_contexts, best.contexts, atol=1e-3)


def not_a_number_from(iteration: int, batches: int) -> losses.DiversityLoss:
    calls: list[int] = []

    def loss(contexts: Tensor) -> Tensor:
        calls.append(1)
        return losses.mcdl_loss(contexts) * (math.nan if len(calls) > (iteration - 1) * batches else 1)

    return loss


def test_a_loss_that_is_not_finite_is_named_with_its_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.DIVERSITY_ALGORITHMS, "BROKEN", not_a_number_from(iteration=3, batches=3))
    with pytest.raises(NotFiniteError, match=r"Phase 1, iteration 3: BROKEN is nan\. Training stops here"):
        train(make_model(), diversity_algorithm="BROKEN", max_iterations=5)


def test_a_gradient_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # The value is zero, the slope of the square root infinite.
    monkeypatch.setitem(losses.DIVERSITY_ALGORITHMS, "STEEP", lambda contexts: (0 * contexts).sum().sqrt())
    with pytest.raises(NotFiniteError, match="Phase 1, iteration 1: gradient norm is nan"):
        train(make_model(), diversity_algorithm="STEEP")


def test_a_fixed_point_term_that_is_not_finite_is_named() -> None:
    model = make_model()
    model.context_block.layers[0].norm.weight.data.fill_(5e18)  # squares fit into float32, their sum does not
    with pytest.raises(NotFiniteError, match="Phase 1, iteration 1: cvfp is inf"):
        train(model, context_noise=1e19)


def test_weights_that_explode_are_a_training_error_too() -> None:
    with pytest.raises(NotFiniteError, match="Phase 1, iteration 1"):
        train(make_model(), learning_rate=1e37)


def test_an_unknown_diversity_algorithm_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="unknown diversity algorithm 'VICREG'; known: MCDL, ODCM"):
        train(make_model(), diversity_algorithm="VICREG")


def test_training_raises_the_rank_it_is_asked_to_raise() -> None:
    model = make_model(context_dim=16, embed_dim=16)
    result = train(model, max_iterations=30, diversity_algorithm="ODCM", learning_rate=0.01)
    history = result.history
    assert history is not None
    best = history.iterations[history.best_iteration - 1].validation_rank
    assert best is not None and best.share > history.untrained_rank.share


def test_the_window_of_a_stream_is_its_rows() -> None:
    stream = StreamEmbeddings(make_model(num_input_tokens=2), TRAIN)
    window = _Rows(stream, slice(50, 90))
    assert len(window) == 40
    assert torch.equal(window[3:7], stream[53:57]) and torch.equal(window[30:99], stream[80:90])


@pytest.mark.parametrize("loss", [lambda contexts: contexts.new_zeros(()), lambda contexts: 0 * contexts.sum()])
def test_a_diversity_loss_may_be_constant_or_a_plain_sum(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.DIVERSITY_ALGORITHMS, "none", loss)
    history = train(make_model(), diversity_algorithm="none", max_iterations=2).history
    assert history is not None and [row.diversity for row in history.iterations] == [0.0, 0.0]
