"""What a GPU records as a graph: the same steps as those that a CPU takes one by one.

CUDA's graphs are replaced by a call of the same function; everything else is what runs there.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, phase2_config
from torch import Tensor

from newllm_core.contexts import shooting
from newllm_core.training import captured, fixed_point, phase2, predictive, recorded_iteration
from newllm_core.training.captured import CapturedStep, DeviceRate, NotRecordedError
from newllm_core.training.fixed_point import CvfpPass
from newllm_core.training.loop import PassState
from newllm_core.training.phase1 import Phase1Result, all_contexts
from newllm_core.training.predictive import PredictivePass
from newllm_core.training.recorded_iteration import RecordedIteration

# Interpreted kernels take milliseconds a token.
TOKENS = make_tokens(60)
PASSES = (1, 2)
CPU = torch.device("cpu")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded steps are called, and kernels run on the CPU."""
    for module in (recorded_iteration, predictive, phase2):
        monkeypatch.setattr(module, "CapturedStep", lambda step: step)
    for module in (fixed_point, predictive, shooting):
        monkeypatch.setattr(module, "runs_kernels", lambda device: True)


def _plain(kind: type[Any], config: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same objective as a CPU has it."""
    with monkeypatch.context() as usual:
        for module in (fixed_point, predictive, shooting):
            usual.setattr(module, "runs_kernels", lambda device: False)
        objective = kind(make_model(), TOKENS, config, 1)
        figures = [_pass(objective, number) for number in PASSES]
    return objective, figures


def _pass(objective: Any, number: int) -> Any:
    within = PassState()
    for _ in objective.steps(number, within):
        within.steps += 1
    return objective.figures(within)


def _weights(objective: Any) -> Tensor:
    return torch.cat([value.detach().flatten() for value in objective.block.parameters()])


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("source", ["exact", "previous_iteration"])
def test_a_recorded_iteration_is_the_usual_one(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = phase1_config(context_source=source, context_noise=0.0, batch_tokens=25, min_last_batch=5)
    usual, expected = _plain(CvfpPass, config, monkeypatch)
    recorded = CvfpPass(make_model(), TOKENS, config, 1)
    assert recorded.recorded is not None
    found = [_pass(recorded, number) for number in PASSES]
    for one, other in zip(found, expected, strict=True):
        assert one.total == pytest.approx(other.total, abs=1e-5) and one.converged == other.converged
    torch.testing.assert_close(_weights(recorded), _weights(usual), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(recorded.previous, usual.previous, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("called")
def test_noise_is_another_every_iteration_and_finite_figures_come_back() -> None:
    objective = CvfpPass(make_model(), TOKENS, phase1_config(context_noise=0.3, batch_tokens=25), 1)
    figures = [_pass(objective, number) for number in (1, 2)]
    assert figures[0].total != figures[1].total


@pytest.mark.usefixtures("called")
def test_losses_that_draw_or_decompose_are_not_recorded() -> None:
    config = phase1_config(diversity_algorithm="SIGReg", context_noise=0.0, batch_tokens=25)
    assert CvfpPass(make_model(), TOKENS, config, 1).recorded is None


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("reason", ["the graph", "a batch"])
def test_an_iteration_that_does_not_fit_is_taken_as_usual(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = phase1_config(context_source="exact", context_noise=0.0, batch_tokens=25, min_last_batch=5)
    usual, _ = _plain(CvfpPass, config, monkeypatch)
    objective = CvfpPass(make_model(), TOKENS, config, 1)
    assert objective.recorded is not None
    if reason == "a batch":
        objective.device_batch.size = 10
    else:
        objective.recorded.step = _without_memory  # type: ignore[assignment]
    for number in PASSES:
        _pass(objective, number)
    assert objective.recorded is None
    torch.testing.assert_close(_weights(objective), _weights(usual), rtol=1e-3, atol=1e-5)
    # A session that goes on takes the same way, even where there is room again.
    assert objective.device_batch.records == (reason == "a batch")
    assert RecordedIteration(objective, 8).iterate(4) is None


def _without_memory(*inputs: Tensor) -> tuple[Tensor, ...]:
    raise NotRecordedError("no memory for a recorded step")


@pytest.mark.usefixtures("called")
def test_a_recorded_predictive_step_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = phase1_config(
        objective="contrastive", context_noise=0.0, prediction_dropout=0.0, prediction_streams=3, prediction_segment=8,
        prediction_negatives=5, dist_reg_weight=0.1,
    )  # fmt: skip
    usual, expected = _plain(PredictivePass, config, monkeypatch)
    recorded = PredictivePass(make_model(), TOKENS, config, 1)
    recorded.rate = DeviceRate(recorded.optimizer, CPU)
    recorded.captured = recorded._updated
    found = [_pass(recorded, number) for number in PASSES]
    assert [one.total for one in found] == pytest.approx([one.total for one in expected], abs=1e-4)
    torch.testing.assert_close(_weights(recorded), _weights(usual), rtol=1e-2, atol=1e-4)


@pytest.mark.usefixtures("called")
def test_a_predictive_step_draws_noise_for_its_segment() -> None:
    config = phase1_config(objective="contrastive", context_noise=0.5, prediction_streams=3, prediction_segment=8)
    figures = _pass(PredictivePass(make_model(), TOKENS, config, 1), 1)
    assert figures.prediction is not None and figures.prediction > 0


def _epoch(recorded: bool, schedule: str) -> tuple[tuple[float, float], Tensor]:
    contexts = all_contexts(make_model(), TOKENS)
    config = phase2_config(effective_batch_size=16, head="blocks", schedule=schedule)
    result = Phase1Result(contexts, contexts, None)
    trainer = phase2._Trainer(make_model(), result, TOKENS, TOKENS, config, 1, None)
    if recorded:
        trainer.rate = DeviceRate(trainer.optimizer, CPU)
    trainer.within = PassState()
    for step in trainer.steps(1):
        assert step is None
    return trainer.epoch_means(), torch.cat([value.detach().flatten() for value in trainer.parameters])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_recorded_epoch_of_phase_2_is_the_usual_one(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase2, "CapturedStep", lambda step: step)
    means, weights = _epoch(True, schedule)
    expected_means, expected_weights = _epoch(False, schedule)
    assert means == pytest.approx(expected_means, abs=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)


def test_a_step_whose_graph_does_not_fit_is_taken_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase2, "CapturedStep", lambda step: _without_memory)
    means, weights = _epoch(True, "cosine")
    expected_means, expected_weights = _epoch(False, "cosine")
    assert means == pytest.approx(expected_means, abs=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)


def test_another_error_of_a_recorded_step_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*inputs: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("a kernel stopped")

    monkeypatch.setattr(phase2, "CapturedStep", lambda step: broken)
    with pytest.raises(RuntimeError, match="a kernel stopped"):
        _epoch(True, "constant")


class _Graph:
    """Of a CUDA graph: records one call, and replays it on the same tensors."""

    recorded: Any = None
    replays = 0

    def replay(self) -> None:
        type(self).replays += 1
        self.recorded()


def test_a_step_is_called_three_times_then_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: _Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: _Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    total, calls = torch.zeros(()), []

    def step(value: Tensor) -> tuple[Tensor]:
        calls.append(len(calls))
        total.add_(value)
        return (total,)

    @contextmanager
    def recording(graph: _Graph) -> Iterator[None]:
        before = total.clone()
        yield
        # What is recorded is not run.
        total.copy_(before)
        graph.recorded = lambda: total.add_(captured_step._inputs[0])

    monkeypatch.setattr(torch.cuda, "graph", recording)
    captured_step = CapturedStep(step)
    for number in range(1, 7):
        (found,) = captured_step(torch.tensor(float(number)))
        assert float(found) == sum(range(1, number + 1))
    assert len(calls) == captured._STEPS_BEFORE + 1 and _Graph.replays == 3


@pytest.mark.parametrize(("message", "expected"), [("CUDA out of memory", NotRecordedError), ("broken", RuntimeError)])
def test_only_memory_makes_a_step_unrecorded(
    message: str, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def recording(graph: _Graph) -> Iterator[None]:
        yield
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(captured, "_STEPS_BEFORE", 0)
    with pytest.raises(expected) as raised:
        CapturedStep(lambda value: (value,))(torch.zeros(1))
    assert type(raised.value) is expected


class _Stream:
    def wait_stream(self, other: Any) -> None:
        assert isinstance(other, _Stream)
