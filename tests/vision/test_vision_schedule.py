"""Learning rate per step, weight-decay groups, and the moving average with its warm-up."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from newllm_core.vision.config import VisionTrainConfig, model_preset
from newllm_core.vision.model.nkat import NkatModel, parameters_without_decay
from newllm_core.vision.optimisation import (
    ema_decay_at,
    exponential_average,
    learning_rate_factor,
    parameter_groups,
    warmup_cosine,
)


def optimizer(learning_rate: float = 2e-4) -> torch.optim.AdamW:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=learning_rate)


def rates(config: VisionTrainConfig, steps_per_epoch: int) -> list[float]:
    """The learning rate that each optimizer step of a whole training uses."""
    adam = optimizer(config.learning_rate)
    schedule = warmup_cosine(adam, steps_per_epoch, config)
    used = []
    for _ in range(config.epochs * steps_per_epoch):
        used.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    return used


@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_no_step_is_at_learning_rate_zero_and_none_above_the_full_one(epochs: int, warmup: int, steps: int) -> None:
    config = VisionTrainConfig(epochs=epochs, warmup_epochs=min(warmup, epochs - 1))
    used = rates(config, steps)
    assert min(used) > 0
    assert max(used) == pytest.approx(config.learning_rate)


def test_warm_up_rises_by_equal_amounts_per_step_then_the_cosine_falls() -> None:
    used = rates(VisionTrainConfig(epochs=8, warmup_epochs=2), steps_per_epoch=5)
    assert used[:10] == pytest.approx([2e-4 * step / 10 for step in range(1, 11)])
    assert used[10] == pytest.approx(2e-4)
    assert all(later < earlier for earlier, later in zip(used[10:], used[11:]))
    # Halfway through the cosine's 30 steps.
    assert used[25] == pytest.approx(1e-4)


def test_without_warm_up_the_first_step_is_at_the_full_rate() -> None:
    assert learning_rate_factor(0, 10, 0) == 1
    assert learning_rate_factor(10, 10, 0) == 0


def test_a_resumed_schedule_goes_on_at_the_same_rates() -> None:
    config = VisionTrainConfig(epochs=4, warmup_epochs=1)
    expected = rates(config, 3)
    adam = optimizer()
    schedule = warmup_cosine(adam, 3, config)
    for _ in range(5):
        adam.step()
        schedule.step()
    resumed_adam = optimizer()
    resumed = warmup_cosine(resumed_adam, 3, config)
    resumed_adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    resumed.load_state_dict(copy.deepcopy(schedule.state_dict()))
    for rate in expected[5:]:
        assert resumed_adam.param_groups[0]["lr"] == rate
        resumed_adam.step()
        resumed.step()


def test_an_epoch_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one step per epoch, given 0"):
        warmup_cosine(optimizer(), 0, VisionTrainConfig())


def test_groups_hold_every_parameter_once_and_only_one_decays() -> None:
    model = NkatModel(model_preset("quick"))
    decaying, kept = parameter_groups(model, 0.05)
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    given_parameters = [id(parameter) for group in (decaying, kept) for parameter in group["params"]]
    assert sorted(given_parameters) == sorted(id(parameter) for parameter in model.parameters())
    assert len(kept["params"]) == len(parameters_without_decay(model))


def test_a_step_without_gradient_shrinks_the_decaying_group_alone() -> None:
    model = NkatModel(model_preset("quick"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.1).step()
    without = parameters_without_decay(model)
    for name, parameter in model.named_parameters():
        expected = before[name] if name in without else before[name] * (1 - 0.1 * 0.05)
        assert torch.allclose(parameter, expected), name


# --- EMA ---


class Drifting(nn.Module):
    """One parameter, a buffer that floats and one that counts; `move` changes them all."""

    value: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("value", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def move(self) -> None:
        with torch.no_grad():
            self.weight += torch.randn(3)
            self.value += torch.randn(2)
            self.count += 1


def updated(average: AveragedModel, model: Drifting, updates: int) -> None:
    for _ in range(updates):
        model.move()
        average.update_parameters(model)


@given(st.floats(0.1, 1), st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_average_is_the_recursion_with_warm_up_and_covers_buffers(decay: float, updates: int) -> None:
    model = Drifting()
    average = exponential_average(model, decay)
    weight, value = torch.zeros(3), torch.zeros(2)
    for update in range(updates):
        updated(average, model, 1)
        kept = min(decay, (1 + update) / (10 + update))
        weight, value = kept * weight + (1 - kept) * model.weight.detach(), kept * value + (1 - kept) * model.value
    assert torch.allclose(average.module.weight, weight, atol=1e-5)
    assert torch.allclose(average.module.value, value, atol=1e-5)
    assert int(average.module.count) == updates


def test_decay_warms_up_to_its_value() -> None:
    assert [ema_decay_at(t, 0.9995) for t in (0, 1, 90)] == pytest.approx([0.1, 2 / 11, 0.91])
    assert ema_decay_at(17_981, 0.9995) < 0.9995
    assert ema_decay_at(17_990, 0.9995) == ema_decay_at(10**9, 0.9995) == 0.9995


def test_batch_norm_statistics_are_averaged() -> None:
    model = NkatModel(model_preset("quick"))
    average = exponential_average(model, 0.9995)
    model.train()(torch.randn(4, 3, 32, 32) * 3 + 2)
    average.update_parameters(model)
    norms = [(module.stem[1].running_var, module.stem[1].num_batches_tracked) for module in (model, average.module)]
    (variance, batches), (averaged, averaged_batches) = norms
    # It started at 1; the first update keeps a tenth of that.
    assert torch.allclose(averaged, 0.1 + 0.9 * variance, atol=1e-6)
    assert int(averaged_batches) == int(batches) == 1


def test_a_resumed_average_is_identical() -> None:
    model = Drifting()
    average = exponential_average(model, 0.9)
    updated(average, model, 4)
    resumed = exponential_average(Drifting(), 0.9)
    resumed.load_state_dict(average.state_dict())
    for _ in range(3):
        model.move()
        average.update_parameters(model)
        resumed.update_parameters(model)
    assert all(torch.equal(average.state_dict()[name], tensor) for name, tensor in resumed.state_dict().items())


def test_the_average_takes_no_gradient_and_leaves_the_model_alone() -> None:
    model = Drifting()
    average = exponential_average(model, 0.5)
    updated(average, model, 2)
    assert model.weight.requires_grad and not average.module.weight.requires_grad
    assert not torch.equal(average.module.weight, model.weight)


@pytest.mark.parametrize("decay", [0.0, 1.1, -1.0])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < decay <= 1"):
        exponential_average(Drifting(), decay)
