"""The plain reading of the notes computes what the project computes, and the benchmarks' own arithmetic holds."""

import mmap
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import head, report
from benchmarks.generation import CachedGpt
from benchmarks.machine import MB, forget_peak, in_fresh_process, peak_mb, resident_mb
from benchmarks.phase2_epoch import trained_epoch
from benchmarks.plain_notes import PlainLayer, PlainNotes, PlainPhase1, PlainPhase2, effective_rank, train_phase1
from benchmarks.predictive_pass import PassByAutograd
from benchmarks.scaling_with_tokens import exponent
from benchmarks.timing import calls_that_last, compared, interleaved
from newllm_core.baselines.networks import GptNetwork
from newllm_core.baselines.registry import baseline_config
from newllm_core.config.hyperparameters import ModelConfig, Phase1Config, Phase2Config
from newllm_core.contexts.shooting import sequential_contexts
from newllm_core.contexts.store import context_batches
from newllm_core.head.cross_entropy import Head
from newllm_core.metrics import rank
from newllm_core.model import ContextBlock, ContextLayer, NewLLM, TokenBlock, TokenLayer
from newllm_core.training import evaluation, phase1, phase2
from newllm_core.training.context_noise import context_noise
from newllm_core.training.fixed_point import CvfpPass
from newllm_core.training.predictive import PredictivePass

VOCAB, SEED = 40, 7
SMALL_PHASE1 = Phase1Config(products="float32", 
    batch_tokens=60, min_last_batch=20, effective_rank_tokens=50, min_iterations=1, max_iterations=3, check_interval=1,
    patience=3, context_source="previous_iteration",
)  # fmt: skip


def tiny_model(**values: Any) -> NewLLM:
    config = ModelConfig(**{"context_dim": 12, "embed_dim": 8, "num_layers": 1, **values})
    matrix = torch.randn(VOCAB, config.embed_dim, generator=torch.Generator().manual_seed(3))
    return NewLLM(config, matrix, seed=SEED)


def tiny_tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def project_noise(rows: slice, width: int, iteration: int) -> Tensor:
    return context_noise(rows, width, 1.0, SEED, iteration)


def project_phase1(model: NewLLM, tokens: Tensor, config: Phase1Config) -> CvfpPass:
    return CvfpPass(model, tokens, config, SEED)


def project_phase2(model: NewLLM, tokens: Tensor, contexts: Tensor, config: Phase2Config) -> phase2._Trainer:
    return phase2._Trainer(model, phase1.Phase1Result(contexts, contexts, None), tokens, tokens, config, SEED, None)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    assert parameter.grad.abs().max() > 0
    return parameter.grad


def assert_same_gradients(plain_layers: torch.nn.ModuleList, block: ContextBlock | TokenBlock) -> None:
    """The gradient of one Linear of the concatenation is the project's two side by side."""
    for plain, layer in zip(plain_layers, block.layers, strict=True):
        assert isinstance(plain, PlainLayer) and isinstance(layer, ContextLayer | TokenLayer)
        joined = torch.cat([gradient(layer.from_context.weight), gradient(layer.from_token.weight)], dim=1)
        torch.testing.assert_close(gradient(plain.linear.weight), joined, rtol=1e-4, atol=1e-6)
        others = [(plain.linear.bias, layer.from_context.bias)]
        others += [(plain.norm.weight, layer.norm.weight), (plain.norm.bias, layer.norm.bias)]
        for found, expected in others:
            torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_plain_contexts_are_the_projects(num_layers: int) -> None:
    model, tokens = tiny_model(num_layers=num_layers), tiny_tokens(300)
    plain = PlainNotes(model)
    found = plain.stream_contexts(tokens)
    torch.testing.assert_close(found, phase1.all_contexts(model, tokens), rtol=0, atol=2e-5)
    with torch.no_grad():
        loop = sequential_contexts(model.context_block, model.embed(tokens), torch.zeros(12))
    torch.testing.assert_close(found[:, -1], loop, rtol=0, atol=2e-5)


def test_plain_logits_are_the_projects() -> None:
    model, tokens = tiny_model(num_layers=2), tiny_tokens(50)
    plain, contexts = PlainNotes(model), phase1.all_contexts(model, tokens)
    with torch.no_grad():
        expected = model.logits(model.hidden(contexts, tokens))
        found = plain.logits(plain.hidden(contexts, tokens))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_tokens", [60, 70, 200])  # one batch, a short last one that joins, several
def test_a_phase1_iteration_has_the_projects_loss_and_gradients(num_tokens: int) -> None:
    model, tokens = tiny_model(), tiny_tokens(num_tokens)
    plain = PlainPhase1(PlainNotes(model), tokens, SMALL_PHASE1, project_noise)
    ours = project_phase1(model, tokens, SMALL_PHASE1)
    assert plain.batches == ours.batches
    assert plain.iterate(1) == pytest.approx(ours.iterate(1).total, rel=1e-5)
    assert_same_gradients(plain.model.context_layers, model.context_block)
    torch.testing.assert_close(plain.previous, ours.previous, rtol=0, atol=2e-5)


def test_later_phase1_iterations_stay_together() -> None:
    model, tokens = tiny_model(), tiny_tokens(200)
    plain = PlainPhase1(PlainNotes(model), tokens, SMALL_PHASE1, project_noise)
    ours = project_phase1(model, tokens, SMALL_PHASE1)
    for iteration in range(1, 5):
        assert plain.iterate(iteration) == pytest.approx(ours.iterate(iteration).total, rel=1e-4)


def test_without_noise_the_noise_source_does_not_matter() -> None:
    config = Phase1Config(**{**vars(SMALL_PHASE1), "context_noise": 0.0})
    model, tokens = tiny_model(), tiny_tokens(200)
    loss = PlainPhase1(PlainNotes(model), tokens, config).iterate(1)
    assert loss == pytest.approx(project_phase1(model, tokens, config).iterate(1).total, rel=1e-5)


def test_plain_phase1_training_ends_at_the_projects_contexts() -> None:
    model, tokens, validation = tiny_model(), tiny_tokens(200), tiny_tokens(80, seed=2)
    plain = PlainNotes(model)
    found = train_phase1(plain, tokens, validation, SMALL_PHASE1, project_noise)
    expected = phase1.train_phase1(model, tokens, validation, SMALL_PHASE1, SEED)
    torch.testing.assert_close(found.train, expected.train_contexts, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.validation, expected.validation_contexts, rtol=0, atol=1e-3)


def test_plain_validation_rank_is_the_projects() -> None:
    model = tiny_model()
    plain = PlainPhase1(PlainNotes(model), tiny_tokens(100), SMALL_PHASE1)
    validation, few = tiny_tokens(80, seed=2), SMALL_PHASE1.effective_rank_tokens
    ours = rank.stream_rank(phase1.all_contexts(model, validation[: few + 1])[:, -1], few)
    assert plain.validation_rank(validation) == pytest.approx(ours.value, rel=1e-4)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_plain_effective_rank_is_the_projects(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 2, shape[1]))
    assert effective_rank(matrix) == pytest.approx(rank.effective_rank(matrix), rel=1e-4)


@pytest.mark.parametrize("method", ["direct", "blocks"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_phase2_step_has_the_projects_loss_and_gradients(method: str, num_layers: int) -> None:
    model, tokens = tiny_model(num_layers=num_layers), tiny_tokens(100)
    config, contexts = Phase2Config(head=method, effective_batch_size=32), phase1.all_contexts(model, tokens)
    plain = PlainPhase2(PlainNotes(model), contexts, tokens, config)
    ours = project_phase2(model, tokens, contexts, config)
    positions = next(ours._positions(1))
    nats, correct = ours._step(next(context_batches(contexts, tokens, [positions])))
    figures = plain.step(positions)
    assert figures.mean_nats == pytest.approx(float(nats) / 32, rel=1e-5)
    assert figures.accuracy == pytest.approx(int(correct) / 32)
    assert_same_gradients(plain.model.token_layers, model.token_block)


def test_a_phase2_epoch_has_the_projects_loss_and_accuracy() -> None:
    model, tokens = tiny_model(), tiny_tokens(100)
    config, contexts = Phase2Config(head="direct", effective_batch_size=32), phase1.all_contexts(model, tokens)
    plain = PlainPhase2(PlainNotes(model), contexts, tokens, config)
    ours = project_phase2(model, tokens, contexts, config)
    figures = plain.epoch(torch.cat(list(ours._positions(1))))
    assert (figures.mean_nats, figures.accuracy) == pytest.approx(trained_epoch(ours, 1), rel=1e-4)


def test_plain_evaluation_is_the_projects() -> None:
    model, tokens = tiny_model(), tiny_tokens(100)
    contexts = phase1.all_contexts(model, tokens)
    plain = PlainPhase2(PlainNotes(model), contexts, tokens, Phase2Config(effective_batch_size=32))
    expected = evaluation.evaluate(model, contexts, tokens, Head(model.head_weight, "direct"))
    figures = plain.evaluate(contexts, tokens)
    assert figures.mean_nats == pytest.approx(expected.mean_nats, rel=1e-5)
    assert figures.accuracy == pytest.approx(expected.accuracy)


@pytest.mark.parametrize("values", [{"num_input_tokens": 2}, {"tie_weights": False}, {"freeze_embedding": False}])
def test_models_that_the_plain_notes_do_not_describe_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected one input token and a tied, frozen embedding, given ModelConfig"):
        PlainNotes(tiny_model(**values))


@pytest.mark.parametrize("name", sorted(head.preparations()))
def test_every_way_to_compute_the_head_agrees_with_float64(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, hidden = torch.randn(VOCAB, 8, generator=generator) / 3, torch.randn(300, 8, generator=generator)
    targets = torch.randint(VOCAB, (300,), generator=generator)
    loss, gradient = head.float64_reference(hidden, weight, targets)
    part = hidden.clone().requires_grad_()
    found = head.preparations()[name](weight)(part, targets)
    assert part.grad is not None
    tolerance = 3e-2 if "bf16" in name else 1e-5
    assert float(found) == pytest.approx(loss, rel=tolerance)
    assert float((part.grad - gradient).norm() / gradient.norm()) < tolerance


def test_float64_reference_is_autograd() -> None:
    weight, hidden = torch.randn(VOCAB, 8), torch.randn(300, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCAB, (300,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.double().T, targets)
    expected.backward()
    loss, gradient = head.float64_reference(hidden.detach(), weight, targets)
    assert loss == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(gradient, hidden.grad)


def test_ways_take_turns() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, calls=2)
    assert order == ["a", "a", "b", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_of_medians_and_their_range_of_rounds() -> None:
    found = compared({"ours": [1.0, 2.0, 10.0], "plain": [4.0, 6.0, 5.0]}, "plain")
    assert found["ratio"] == {"ours": statistics.median([4.0, 6.0, 5.0]) / 2.0}
    assert found["ratio_range"] == {"ours": [0.5, 4.0]}


def test_at_least_one_call_is_made() -> None:
    assert calls_that_last(lambda: None, seconds=0.0) == 1


@pytest.mark.parametrize("planted", [0.9, 1.0, 2.0])
def test_exponent_recovers_a_planted_law(planted: float) -> None:
    tokens = [1_000, 5_000, 20_000]
    assert exponent(tokens, [3e-5 * n**planted for n in tokens]) == pytest.approx(planted)


def test_peak_memory_sees_what_was_freed_again() -> None:
    forget_peak()
    before = resident_mb()
    # From the kernel: malloc may have as much from other tests, whose pages this process has already.
    with mmap.mmap(-1, 64 * MB) as memory:
        memory.write(bytes(1) * (64 * MB))
    assert peak_mb() - before > 60
    forget_peak()
    assert peak_mb() - resident_mb() < 30


def _fails() -> None:
    raise ValueError("the work itself failed")


def test_an_error_in_a_fresh_process_arrives() -> None:
    with pytest.raises(ValueError, match="the work itself failed"):
        in_fresh_process(_fails, SEED, 1)


def _seed_and_threads() -> tuple[int, int]:
    return torch.initial_seed(), torch.get_num_threads()


def test_a_fresh_process_is_seeded_with_its_threads() -> None:
    assert in_fresh_process(_seed_and_threads, SEED, 1) == (SEED, 1)


def test_a_missing_figure_is_not_shown_as_a_number() -> None:
    assert report.table(["a", "b"], [[None, 0.5]]).splitlines()[-1] == "| not measured | 0.5 |"


def test_a_predictive_pass_has_the_gradients_of_the_automatic_one() -> None:
    config = Phase1Config(
        objective="contrastive", context_noise=0.0, prediction_dropout=0.0, prediction_streams=2, prediction_segment=5,
        prediction_negatives=4, dist_reg_weight=0.0, min_iterations=1, max_iterations=1,
    )  # fmt: skip
    gradients = []
    for kind in (PredictivePass, PassByAutograd):
        side = kind(tiny_model(time_scales=True), tiny_tokens(40), config, SEED)
        side.loss_method, side.rounded = "direct", False
        side._gradients(torch.arange(10).view(2, 5), torch.ones(2, 12), tiny_tokens(4), 2)
        gradients.append(torch.cat([gradient(parameter).flatten() for parameter in side.parameters]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_gpt_with_its_cache_is_the_gpt() -> None:
    torch.manual_seed(1)
    network = GptNetwork(baseline_config("gpt", embed_dim=8, width=16, num_layers=2, segment_tokens=12)).eval()
    torch.nn.init.normal_(network.positions)
    embeds = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(2))
    cached = CachedGpt(network)
    found = torch.cat([cached.read(embeds[0, place : place + 1]) for place in range(12)])
    torch.testing.assert_close(found, network(embeds, None)[0][0])
