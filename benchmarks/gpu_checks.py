"""Correctness on a CUDA device: every branch that only a GPU takes, against the CPU or float64.

A check is a number and the limit that it has to stay under. Nothing here is timed.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_inputs import LanguageInputs
from benchmarks.phase2_epoch import trained_epoch
from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig, Phase1Config, Phase2Config
from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.head.cross_entropy import Head, with_output_bias, with_unit_columns
from newllm_core.losses import cvfp_loss, mcdl_loss, odcm_loss
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.generation import stream_tokens
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training import phase2
from newllm_core.training.device_noise import noise_seed, with_noise
from newllm_core.training.fixed_point import CvfpPass, PassFigures
from newllm_core.training.loop import PassState
from newllm_core.training.phase1 import Phase1Result, all_contexts
from newllm_core.training.predictive import PredictivePass

CPU, GPU = torch.device("cpu"), torch.device("cuda")
_SMALL = ModelConfig(context_dim=128, embed_dim=384)
_TOKENS = 4096
_ITERATIONS = 6  # three of them before a step is recorded as a graph
_LIMITED_BYTES = 6 * 2**30  # of the card, for the retry after out-of-memory


@dataclass(frozen=True)
class Check:
    """``value`` is to be at most ``limit``, both in ``unit``."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # not a number never is

    def record(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def all_checks(inputs: LanguageInputs) -> Iterator[Check]:
    """In the order of the model's parts. Raises what a part raises: a crash is no failed check."""
    for part in (_contexts, _head, _losses, _noise, _fixed_point, _predictive, _phase2, _generation, _out_of_memory):
        yield from part(inputs)


def _relative(found: Tensor, reference: Tensor) -> float:
    wide = reference.detach().double().cpu()
    return float((found.detach().double().cpu() - wide).norm() / wide.norm())


def _largest(found: Tensor, reference: Tensor) -> float:
    return float((found.double().cpu() - reference.double().cpu()).abs().max())


def _contexts(inputs: LanguageInputs) -> Iterator[Check]:
    shapes = {
        "C = 500": ModelConfig(context_dim=500),
        "C = 576 with gains": ModelConfig(context_dim=576, time_scales=True, weight_std=0.04),
        "C = 200, L = 2, T = 2": ModelConfig(context_dim=200, num_layers=2, num_input_tokens=2, weight_std=0.05),
    }
    for name, shape in shapes.items():
        model = NewLLM(shape, inputs.embeddings)
        embeds = StreamEmbeddings(model, inputs.train[:_TOKENS])[0:_TOKENS]
        zero = torch.zeros(shape.context_dim)
        wide = sequential_contexts(copy.deepcopy(model.context_block).double(), embeds.double(), zero.double())
        found = exact_contexts(model.context_block.to(GPU), embeds.to(GPU), zero.to(GPU), segment_length=512)
        looped = exact_contexts(model.context_block, embeds[:1024].to(GPU), zero.to(GPU), segment_length=_TOKENS)
        yield Check(
            f"contexts, {name}: deviation from a float64 loop", _largest(found.contexts, wide), 1e-4, "component"
        )
        yield Check(f"contexts, {name}: residual", found.residual, 1e-5, "component")
        yield Check(
            f"contexts, {name}: one segment, deviation from a float64 loop", _largest(looped.contexts, wide[:1024]),
            1e-4, "component",
        )  # fmt: skip


def _head(inputs: LanguageInputs) -> Iterator[Check]:
    generator = derived_generator("gpu check of the head")
    rows = 3001  # two blocks of rows, the second not full
    targets = torch.randint(len(inputs.embeddings), (rows,), generator=generator).to(GPU)
    for embed_dim in (384, 768):
        weight = inputs.embeddings if embed_dim == 384 else torch.cat([inputs.embeddings, inputs.embeddings.flip(0)], 1)
        states = 2 * torch.randn(rows, embed_dim, generator=generator).to(GPU)
        bias = torch.randn(len(weight), generator=generator).to(GPU) - 8
        for with_bias in (False, True):
            head, hidden = weight.to(GPU), states
            if with_bias:
                head, hidden = with_output_bias(head, bias), with_unit_columns(states)
            name = f"head, E = {embed_dim}{' with bias' if with_bias else ''}"
            yield from _one_head(name, hidden, head, targets)


def _one_head(name: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[Check]:
    wide = hidden.double().requires_grad_()
    loss = functional.cross_entropy(wide @ weight.double().T, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    for method, loss_limit, gradient_limit in (("fused", 1e-3, 2e-3), ("blocks", 1e-5, 1e-5)):
        states = hidden.clone().requires_grad_()
        found = Head(weight, method).loss(states, targets)
        found.mean_nats.backward()  # type: ignore[no-untyped-call]
        assert states.grad is not None
        apart = abs(float(found.mean_nats.detach()) - float(loss.detach()))
        yield Check(f"{name}, {method}: loss", apart, loss_limit, "nats")
        yield Check(f"{name}, {method}: gradient", _relative(states.grad, wide.grad), gradient_limit, "relative")


def _losses(inputs: LanguageInputs) -> Iterator[Check]:
    contexts = torch.randn(5000, 500, generator=derived_generator("gpu check of losses"))
    previous = contexts.roll(1, 0)
    # Against float64: the CPU's own float32 norm of 2.5 million numbers, in MCDL, is off by 4.5e-5 (torch 2.13).
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "cvfp": lambda values: cvfp_loss(values, previous.to(values)), "MCDL": mcdl_loss, "ODCM": odcm_loss,
    }  # fmt: skip
    for name, loss in losses.items():
        values, gradients = [], []
        for given in (contexts.double(), contexts.to(GPU)):
            moved = given.clone().requires_grad_()
            value = loss(moved)
            value.backward()  # type: ignore[no-untyped-call]
            assert moved.grad is not None
            values.append(value.detach())
            gradients.append(moved.grad)
        yield Check(f"loss {name}: value", _relative(values[1], values[0]), 1e-5, "relative")
        yield Check(f"loss {name}: gradient", _relative(gradients[1], gradients[0]), 1e-5, "relative")


def _noise(inputs: LanguageInputs) -> Iterator[Check]:
    seed = noise_seed(42, 3, GPU)
    zeros = torch.zeros(20_000, 500, device=GPU)
    noise = with_noise(zeros, 0, 1.0, seed)
    again = with_noise(zeros[7000:7100], 7000, 1.0, seed)
    other = with_noise(zeros, 0, 1.0, noise_seed(42, 4, GPU))
    yield Check("noise: mean", abs(float(noise.mean())), 2e-3, "standard deviations")
    yield Check("noise: standard deviation less 1", abs(float(noise.std()) - 1), 2e-3, "")
    yield Check("noise: fourth moment less 3", abs(float((noise**4).mean()) - 3), 2e-2, "")
    yield Check("noise: neighbouring tokens' correlation", abs(float((noise[1:] * noise[:-1]).mean())), 2e-3, "")
    yield Check("noise: two iterations' correlation", abs(float((noise * other).mean())), 2e-3, "")
    yield Check("noise: depends on batching", _largest(noise[7000:7100], again), 0.0, "")


def _fixed_point(inputs: LanguageInputs) -> Iterator[Check]:
    for source in ("exact", "previous_iteration"):
        config = dataclasses.replace(
            Phase1Config(), context_noise=0.0, context_source=source, batch_tokens=1000, context_tolerance=1e-5
        )
        yield from _objective(f"fixed point, {source}", CvfpPass, config, inputs)


def _predictive(inputs: LanguageInputs) -> Iterator[Check]:
    for objective in ("contrastive", "regression"):
        config = dataclasses.replace(
            Phase1Config(), objective=objective, context_noise=0.0, prediction_dropout=0.0, dist_reg_weight=0.1,
            prediction_weight_decay=0.1, learning_rate=2e-4,
        )  # fmt: skip
        yield from _objective(f"predictive, {objective}", PredictivePass, config, inputs)


def one_pass(objective: CvfpPass | PredictivePass, iteration: int) -> PassFigures:
    """All steps of an iteration of Phase 1."""
    within = PassState()
    for _ in objective.steps(iteration, within):
        within.steps += 1
    return objective.figures(within)


def _objective(
    name: str, kind: type[CvfpPass] | type[PredictivePass], config: Phase1Config, inputs: LanguageInputs
) -> Iterator[Check]:
    """Some iterations from the same weights on both devices, without what they draw for themselves."""
    passes, figures = [], []
    for device in (CPU, GPU):
        model = NewLLM(_SMALL, inputs.embeddings).to(device)
        objective = kind(model, inputs.train[:_TOKENS].to(device), config, 42)
        figures.append([one_pass(objective, iteration).total for iteration in range(1, _ITERATIONS + 1)])
        passes.append(objective)
    apart = max(abs(ours - theirs) for theirs, ours in zip(*figures, strict=True))
    blocks = [torch.cat([value.flatten().cpu() for value in one.block.parameters()]) for one in passes]
    yield Check(f"{name}: total loss, {_ITERATIONS} iterations", apart, 1e-3, "")
    yield Check(f"{name}: weights after them", _relative(blocks[1], blocks[0]), 2e-2, "relative")


def _phase2(inputs: LanguageInputs) -> Iterator[Check]:
    """An epoch of eight steps on both devices; on the GPU with the fused head, the last five as a recorded graph."""
    tokens = inputs.train[: _TOKENS + 1]
    contexts = all_contexts(NewLLM(_SMALL, inputs.embeddings), tokens)
    for sampled in (None, 2048):
        config = dataclasses.replace(Phase2Config(), unigram_bias=True, unseen_sample=sampled, schedule="cosine")
        losses, weights = [], []
        for device, head in ((CPU, "blocks"), (GPU, "auto")):
            moved, ids = contexts.to(device), tokens.to(device)
            trainer = phase2._Trainer(
                NewLLM(_SMALL, inputs.embeddings).to(device), Phase1Result(moved, moved[:1001], None), ids, ids[:1001],
                dataclasses.replace(config, head=head), 42, None,
            )  # fmt: skip
            losses.append(trained_epoch(trainer, 1)[0])
            weights.append(torch.cat([value.detach().flatten().cpu() for value in trainer.parameters]))
        name = "Phase 2 epoch" + (", sampled softmax" if sampled else "")
        yield Check(f"{name}: training loss", abs(losses[1] - losses[0]), 5e-3, "nats")
        yield Check(f"{name}: weights", _relative(weights[1], weights[0]), 1e-2, "relative")


def _generation(inputs: LanguageInputs) -> Iterator[Check]:
    model = NewLLM(_SMALL, inputs.embeddings)
    config, prompt = GenerationConfig(num_tokens=50, temperature=0), [inputs.train[:20]]
    texts = [list(stream_tokens(model.to(device), prompt, config, [torch.Generator()])) for device in (CPU, GPU)]
    differs = sum(one != other for one, other in zip(*texts, strict=True)) / len(texts[0])
    yield Check("generation, most probable tokens: share that differs", differs, 0.0, "")


def _out_of_memory(inputs: LanguageInputs) -> Iterator[Check]:
    """A direct head whose logits do not fit into what the process may take: parts are halved until they do."""
    torch.cuda.empty_cache()
    tokens = inputs.train[: 8192 + 1].to(GPU)
    contexts = all_contexts(NewLLM(_SMALL, inputs.embeddings).to(GPU), tokens)
    config = dataclasses.replace(Phase2Config(), head="direct", effective_batch_size=8192, device_batch_size=8192)
    outcomes = []
    for limit in (1.0, _LIMITED_BYTES / torch.cuda.get_device_properties(GPU).total_memory):
        trainer = phase2._Trainer(
            NewLLM(_SMALL, inputs.embeddings).to(GPU), Phase1Result(contexts, contexts[:1001], None), tokens,
            tokens[:1001], config, 42, None,
        )  # fmt: skip
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit)
        try:
            loss, _ = trained_epoch(trainer, 1)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        outcomes.append((loss, trainer.device_batch.size))
    (loss, whole), (limited_loss, halved) = outcomes
    yield Check("out of memory: tokens at once under a limit, over those without", halved / whole, 0.5, "")
    yield Check("out of memory: loss under a limit", abs(limited_loss - loss), 1e-5, "nats")
