"""Predictive objectives: losses against their definitions, the recurrence against the loop, training that learns."""

import math

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, phase1_config, rng, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from newllm_core import losses
from newllm_core.contexts.shooting import sequential_contexts
from newllm_core.data.stream import ring_segments
from newllm_core.head import cross_entropy
from newllm_core.losses import NotFiniteError
from newllm_core.training.loop import PassState
from newllm_core.training.phase1 import Phase1History, train_phase1
from newllm_core.training.predictive import PredictivePass, contrastive_loss, regression_loss

TRAIN, VALIDATION = make_tokens(300, seed=1), make_tokens(120, seed=2)
PREDICTIVE = {
    "objective": "contrastive", "dist_reg_weight": 0.0, "context_noise": 0.0, "prediction_streams": 4,
    "prediction_segment": 8, "prediction_negatives": 10, "prediction_dropout": 0.0, "learning_rate": 0.01,
}  # fmt: skip


def history_of(seed: int = 5, context_dim: int = 6, **values: object) -> Phase1History:
    config = phase1_config(**{**PREDICTIVE, **values})
    history = train_phase1(make_model(context_dim=context_dim), TRAIN, VALIDATION, config, seed).history
    assert history is not None
    return history


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 100))
@settings(deadline=None)
def test_the_contrastive_loss_is_its_definition(num_rows: int, num_negatives: int, seed: int) -> None:
    """Row by row: the own target against those of the other rows and the further negatives."""
    generator = rng(seed)
    predicted = torch.randn(num_rows, 3, generator=generator, dtype=torch.float64)
    embeds = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets, negatives = (torch.randint(5, (n,), generator=generator) for n in (num_rows, num_negatives))
    expected = 0.0
    for row, target in enumerate(targets):
        scores = predicted[row] @ embeds[torch.cat([targets, negatives])].T
        expected += float(scores.logsumexp(dim=0) - predicted[row] @ embeds[target]) / num_rows
    assert float(contrastive_loss(predicted, targets, negatives, embeds)) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 6), st.integers(0, 30), st.booleans(), st.integers(0, 100))
@settings(deadline=None)
def test_each_token_type_read_once_gives_the_same_contrastive_loss(
    num_rows: int, num_negatives: int, first_alone: bool, seed: int
) -> None:
    """Loss and gradient of candidates that stand there several times, in float64, also for one rank's rows alone."""
    generator = rng(seed)
    predicted = torch.randn(num_rows, 3, generator=generator, dtype=torch.float64)
    embeds = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets, negatives = (torch.randint(5, (n,), generator=generator) for n in (num_rows, num_negatives))
    rows = torch.arange(1 if first_alone else num_rows)
    found = []
    for method in ("direct", "blocks"):
        given = predicted[rows].requires_grad_()
        loss = contrastive_loss(given, targets, negatives, embeds, method, rows)
        found.append(torch.cat([loss.detach()[None], *torch.autograd.grad(loss, given)[0]]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_scores_that_are_the_pointwise_mutual_information_are_a_minimum_of_the_contrastive_loss() -> None:
    """One row, negatives drawn as often as tokens occur: log p(next | context) - log p(next) cannot be bettered."""
    joint = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.10, 0.45]], dtype=torch.float64)
    unigram = joint.sum(dim=0)
    information = (joint / joint.sum(dim=1, keepdim=True) / unigram).log()
    generator = rng(0)

    def loss(scores: torch.Tensor) -> float:
        total = 0.0
        for _ in range(400):
            drawn = torch.multinomial(unigram, 200, replacement=True, generator=generator)
            for context in range(2):
                for target in range(3):
                    value = contrastive_loss(
                        scores[context : context + 1], torch.tensor([target]), drawn, torch.eye(3).double()
                    )
                    total += float(joint[context, target] * value)
        return total / 400

    best = loss(information)
    for disturbed in (information * 0.5, information * 1.5, information.flip(0), torch.zeros(2, 3).double()):
        assert loss(disturbed) > best


def test_the_regression_loss_is_the_mean_squared_error() -> None:
    predicted, embeds = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 4.0]])
    assert regression_loss(predicted, torch.tensor([1]), embeds) == pytest.approx(2.0)


@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 50))
@settings(deadline=None)
def test_ring_segments_read_every_stream_once_and_in_order(length: int, streams: int, segment: int, seed: int) -> None:
    num_tokens = length * streams + seed % streams
    parts = list(ring_segments(num_tokens, streams, segment, rng(seed)))
    positions = torch.cat(parts, dim=1)
    assert all(part.shape[1] <= segment for part in parts) and positions.shape == (streams, length - 1)
    assert ((positions[:, 1:] - positions[:, :-1]) % num_tokens == 1).all()
    assert len(positions.unique()) == positions.numel()


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor whose products in bfloat16 are not faster."""
    monkeypatch.setattr(cross_entropy, "has_bf16_products", lambda: False)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("num_input_tokens", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_contexts_of_a_segment_are_those_of_the_loop(num_input_tokens: int, num_layers: int) -> None:
    model = make_model(num_input_tokens=num_input_tokens, num_layers=num_layers)
    trainer = PredictivePass(model, TRAIN, phase1_config(**PREDICTIVE), seed=1)
    positions = torch.tensor([[10, 11, 12, 13], [50, 51, 52, 53]])
    entering = torch.randn(2, 6, generator=rng(1))
    found = trainer._contexts(positions, entering)
    for row, first in enumerate((10, 50)):
        expected = sequential_contexts(model.context_block, trainer.embeds[first : first + 4], entering[row])
        torch.testing.assert_close(found[row], expected)


POSITIONS, NEGATIVES = torch.tensor([[10, 11, 12], [50, 51, 52]]), TRAIN[:7]


def whole_step(objective: str, kind: torch.dtype, **model_values: object) -> tuple[PredictivePass, Tensor]:
    """A pass about to take a step over POSITIONS, in another precision, and the context that enters it."""
    model = make_model(**model_values)
    config = phase1_config(**{**PREDICTIVE, "objective": objective, "dist_reg_weight": 0.25})
    trainer = PredictivePass(model, TRAIN, config, seed=1)
    model.to(kind)
    trainer.predictor.to(kind)
    trainer.targets = trainer.targets.to(kind)
    return trainer, torch.randn(2, 6, generator=rng(1)).to(kind)


def gradients_of(trainer: PredictivePass, entering: Tensor) -> list[Tensor]:
    trainer._gradients(POSITIONS, entering, NEGATIVES, len(POSITIONS))
    return [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("objective", ["contrastive", "regression"])
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2, "time_scales": True, "num_input_tokens": 2}])
def test_the_gradient_of_a_step_is_autograds_of_the_loop(objective: str, shape: dict[str, object]) -> None:
    trainer, entering = whole_step(objective, torch.float64, **shape)
    found = gradients_of(trainer, entering)
    contexts = []
    for row, first in enumerate((10, 50)):
        context = entering[row : row + 1]
        for place in range(first, first + 3):
            context = trainer.block(context, trainer.embeds[place : place + 1])
            contexts.append(context)
    read, targets = torch.cat(contexts), TRAIN[POSITIONS.flatten() + 1]
    predicted = trainer.predictor(read)
    if objective == "regression":
        prediction = regression_loss(predicted, targets, trainer.targets)
    else:
        prediction = contrastive_loss(predicted, targets, NEGATIVES, trainer.targets)
    expected = torch.autograd.grad(0.75 * prediction + 0.25 * losses.mcdl_loss(read), trainer.parameters)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_rounded_products_give_nearly_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rounded in (False, True):
        monkeypatch.setattr(cross_entropy, "has_bf16_products", lambda rounded=rounded: rounded)
        found.append(torch.cat([one.flatten() for one in gradients_of(*whole_step("contrastive", torch.float32))]))
    assert 0 < (found[1] - found[0]).norm() / found[0].norm() < 3e-2


def test_the_step_follows_the_gradient() -> None:
    """AdamW first moves by the learning rate times the gradient's sign."""
    config = phase1_config(**{**PREDICTIVE, "prediction_weight_decay": 0.0})
    trainer, entering = PredictivePass(make_model(), TRAIN, config, seed=1), torch.randn(2, 6, generator=rng(1))
    weight = trainer.block.layers[0].from_context.weight
    before = weight.detach().clone()
    trainer._step(POSITIONS, entering, rng(2), PassState())
    assert weight.grad is not None
    clear = weight.grad.abs() > 1e-6
    assert clear.any() and torch.equal((weight.detach() - before).sign()[clear], -weight.grad.sign()[clear])


@pytest.mark.parametrize("objective", ["contrastive", "regression"])
def test_training_predicts_unseen_text_better_and_keeps_its_best_iteration(objective: str) -> None:
    history = history_of(context_dim=32, objective=objective, max_iterations=15)
    held_out = [record.validation_prediction for record in history.iterations]
    assert None not in held_out
    assert min(held_out) < 0.96 * held_out[0]  # type: ignore[type-var, operator, index]
    assert history.best_iteration == 1 + held_out.index(min(held_out))  # type: ignore[type-var]
    assert history.iterations[-1].prediction < history.iterations[0].prediction  # type: ignore[operator]


def test_a_text_that_is_learned_by_heart_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """What follows a token there precedes it here: every step after the first check is one too many."""
    forth, back = torch.arange(300) % VOCAB_SIZE, -torch.arange(120) % VOCAB_SIZE
    config = phase1_config(**{**PREDICTIVE, "max_iterations": 8, "check_interval": 2, "learning_rate": 0.03})
    history = train_phase1(make_model(context_dim=32), forth, back, config, 5).history
    assert history is not None and history.best_iteration == 2
    (message,) = caplog.messages
    assert "kept iteration 2 of 8, the first" in message and "prediction_weight_decay=0.01" in message


def test_training_that_goes_on_helping_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert history_of(context_dim=32, max_iterations=15).best_iteration > 1
    history_of(objective="cvfp", max_iterations=3)  # whose checks are of rank
    history_of(max_iterations=1)  # one check decides nothing
    assert not caplog.messages


def test_the_fixed_point_objective_predicts_nothing() -> None:
    history = history_of(objective="cvfp")
    assert all(one.prediction is None and one.validation_prediction is None for one in history.iterations)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    for record in history_of(dist_reg_weight=0.25, diversity_algorithm="ODCM").iterations:
        assert record.prediction is not None
        assert record.total == pytest.approx(0.75 * record.prediction + 0.25 * record.diversity, rel=1e-5)


def test_a_diversity_term_raises_the_rank() -> None:
    ranks = [
        history_of(dist_reg_weight=weight, diversity_algorithm="ER", max_iterations=10).iterations[-1].train_rank.value
        for weight in (0.0, 0.9)
    ]
    assert ranks[1] > ranks[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    found = []
    for seed in (5, 5, 6):
        model = make_model()
        config = phase1_config(**{**PREDICTIVE, "prediction_dropout": 0.3, "context_noise": 0.1})
        train_phase1(model, TRAIN, VALIDATION, config, seed)
        found.append(state_of(model.context_block))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_the_held_out_loss_is_the_mean_over_rows() -> None:
    trainer = PredictivePass(make_model(), TRAIN, phase1_config(**PREDICTIVE), seed=1)
    contexts = torch.randn(40, 6, generator=rng(1))
    regression = PredictivePass(make_model(), TRAIN, phase1_config(**{**PREDICTIVE, "objective": "regression"}), seed=1)
    with torch.no_grad():
        expected = functional.mse_loss(regression.predictor(contexts[:-1]), regression.targets[VALIDATION[1:40]])
    assert regression.held_out_prediction(contexts, VALIDATION) == pytest.approx(float(expected), rel=1e-5)
    found = trainer.held_out_prediction(contexts, VALIDATION)
    assert found == trainer.held_out_prediction(contexts, VALIDATION) and 0 < found < 2 * math.log(VOCAB_SIZE)


def test_a_loss_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.DIVERSITY_ALGORITHMS, "BROKEN", lambda contexts: contexts.mean() * math.nan)
    with pytest.raises(NotFiniteError, match="Phase 1, iteration 1: .*nan"):
        history_of(dist_reg_weight=0.5, diversity_algorithm="BROKEN")


def test_a_text_too_short_for_its_streams_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two tokens for each of prediction_streams=4, given 7"):
        PredictivePass(make_model(), TRAIN[:7], phase1_config(**PREDICTIVE), seed=1)
    shortest, within = PredictivePass(make_model(), TRAIN[:8], phase1_config(**PREDICTIVE), seed=1), PassState()
    assert len(list(shortest.steps(1, within))) == 1 and shortest.figures(within).prediction is not None
