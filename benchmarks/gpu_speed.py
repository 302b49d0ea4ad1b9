"""Speed on a CUDA device: every part interleaved with its eager form and, where there is one, the plain reading.

Sizes are those of the project's targets: a million tokens of contexts at C = 500, the head at E = 768 and 384, a
Phase 1 iteration and Phase 2 steps at the `colab` profile's size.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_checks import GPU, one_pass
from benchmarks.gpu_inputs import LanguageInputs, best_settings
from benchmarks.gpu_timing import Work, interleaved, kernels, milliseconds, peak_mb, summary
from benchmarks.phase2_epoch import trained_epoch
from benchmarks.plain_notes import PlainNotes, PlainPhase1, PlainPhase2
from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig, Phase1Config, Phase2Config
from newllm_core.contexts import shooting
from newllm_core.head.cross_entropy import Head
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.generation import stream_tokens
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training import phase2
from newllm_core.training.fixed_point import CvfpPass
from newllm_core.training.phase1 import Phase1Result, all_contexts
from newllm_core.training.predictive import PredictivePass

_CONTEXT_TOKENS = 1_000_000
_COLAB_TOKENS = 62_891  # 50 conversations of UltraChat
_HEAD_ROWS = 16_384
_LOOP_TOKENS = 2_000  # of a loop over single tokens, from which its time for all of them follows
_TRAINED_ITERATIONS = 20
_ROUNDS = 5


@contextmanager
def without_kernels() -> Iterator[None]:
    """Contexts step by step, as single operations."""
    with mock.patch.object(shooting, "_kernel", lambda *given: None):
        yield


def contexts(inputs: LanguageInputs) -> dict[str, Any]:
    """A million tokens of the corpus through a trained block of C = 500."""
    model = _trained_model(inputs)
    block, zero = model.context_block, torch.zeros(500, device=GPU)
    stream = inputs.train[:_CONTEXT_TOKENS].to(GPU)
    embeds = StreamEmbeddings(model, stream)
    few = StreamEmbeddings(model, stream[:100_000])

    def exact() -> shooting.ExactContexts:
        return shooting.exact_contexts(block, embeds, zero)

    found = exact()
    figures: dict[str, Any] = {
        "tokens": len(stream), "context_dim": 500, "embed_dim": 384,
        "passes": found.passes, "residual": found.residual, "success": found.success,
        "segment_length": found.segment_length, "horizon": found.horizon,
        "deviation_from_float64": _deviation(model, stream, found.contexts),
        "extra_memory_mb": peak_mb(exact), "exact": interleaved({"exact": exact}, _ROUNDS, warm_up=1)["exact"],
        "kernels": kernels(exact),
    }  # fmt: skip
    with torch.no_grad():
        start = embeds[0:_LOOP_TOKENS]
        plain = PlainNotes(model).to(GPU)
        loops = interleaved(
            {"eager loop": lambda: shooting.sequential_contexts(block, start, zero),
             "plain loop": lambda: plain.loop_contexts(start, zero)}, 2, warm_up=1,
        )  # fmt: skip
    with without_kernels():
        figures["lock-step as single operations, 100,000 tokens"] = interleaved(
            {"eager": lambda: shooting.exact_contexts(block, few, zero)}, 1, warm_up=1
        )["eager"]
    figures["exact, 100,000 tokens"] = interleaved(
        {"exact": lambda: shooting.exact_contexts(block, few, zero)}, _ROUNDS, warm_up=1
    )["exact"]
    figures["loops"] = {"tokens": _LOOP_TOKENS, **loops}
    loop_ms = loops["eager loop"]["median_ms"] * len(stream) / _LOOP_TOKENS
    figures["times_as_fast_as_the_eager_loop"] = loop_ms / figures["exact"]["median_ms"]
    return figures


def _trained_model(inputs: LanguageInputs) -> NewLLM:
    """After some iterations of the notes' objective on the cpu profile's text: an untrained block forgets slowly."""
    model = NewLLM(ModelConfig(), inputs.embeddings).to(GPU)
    objective = CvfpPass(model, inputs.train[:57_173].to(GPU), Phase1Config(), 42)
    for number in range(1, _TRAINED_ITERATIONS + 1):
        one_pass(objective, number)
    return model


def _deviation(model: NewLLM, stream: Tensor, found: Tensor) -> float:
    """Of the first contexts from a float64 loop."""
    rows = slice(0, 2 * _LOOP_TOKENS)
    embeds = StreamEmbeddings(model, stream)[rows].double()
    wide = shooting.sequential_contexts(
        model.context_block.double(), embeds, torch.zeros(500, device=GPU, dtype=torch.float64)
    )
    model.context_block.float()
    return float((found[rows].double() - wide).abs().max())


def head(inputs: LanguageInputs) -> dict[str, Any]:
    """Loss and gradient of 16,384 rows; E = 768 with embeddings of GPT-2's size, drawn at random."""
    cases = {}
    for embed_dim in (768, 384):
        generator = derived_generator("gpu head", embed_dim)
        weight = 0.144 * torch.randn(len(inputs.embeddings), embed_dim, generator=generator)
        weight = (inputs.embeddings if embed_dim == 384 else weight).to(GPU)
        hidden = torch.randn(_HEAD_ROWS, embed_dim, generator=generator).to(GPU)
        targets = inputs.train[:_HEAD_ROWS].to(GPU)
        cases[f"E = {embed_dim}"] = _head_case(hidden, weight, targets)
    return cases


def _head_case(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Any]:
    ways = _head_ways(hidden, weight, targets)
    times = interleaved({name: way.run for name, way in ways.items()}, _ROUNDS)
    figures: dict[str, Any] = {}
    for name, found in times.items():
        figures[name] = {
            **found, "tokens_per_second": _HEAD_ROWS / found["median_ms"] * 1e3,
            "extra_memory_mb": ways[name].extra_memory_mb(),
        }  # fmt: skip
    return {"rows": _HEAD_ROWS, "ways": figures, "kernels": kernels(ways["fused"].run)}


@dataclasses.dataclass(frozen=True)
class _HeadWay:
    """Leaves the gradient of the mean loss in ``states``. ``head_copy``: a rounded head that was made beforehand."""

    states: Tensor
    loss: Callable[[Tensor], Tensor]
    head_copy: Tensor | None = None

    def run(self) -> None:
        self.states.grad = None
        self.loss(self.states).backward()  # type: ignore[no-untyped-call]

    def extra_memory_mb(self) -> float:
        """Beside the hidden states and their gradient; with the head's copy."""
        self.states.grad = None
        copied = 0 if self.head_copy is None else self.head_copy.nbytes
        return peak_mb(self.run) + (copied - self.states.nbytes) / 1e6


def _head_ways(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, _HeadWay]:
    states = hidden.clone().requires_grad_()
    half, states16 = weight.to(torch.bfloat16), hidden.to(torch.bfloat16).requires_grad_()
    ways = {}
    for name in ("fused", "blocks-bf16", "blocks"):
        head = Head(weight, name)
        copied = head._frozen_operand if name != "blocks" else None
        ways[name] = _HeadWay(states, lambda given, head=head: head.loss(given, targets).mean_nats, copied)  # type: ignore[misc]
    compiled = torch.compile(_chunk_loss)
    rounded: dict[str, Callable[[Tensor], Tensor]] = {
        "PyTorch: chunks, bf16": lambda given: _chunked(_chunk_loss, given, half, targets),
        "PyTorch: compiled chunks, bf16": lambda given: _chunked(compiled, given, half, targets),
    }
    if hasattr(functional, "linear_cross_entropy"):  # new in torch 2.13
        rounded["PyTorch: linear_cross_entropy, bf16"] = lambda given: functional.linear_cross_entropy(
            given, half, targets
        )
    liger = _liger()
    if liger is not None:
        rounded["Liger, bf16"] = lambda given: liger(half, given, targets)
    return ways | {name: _HeadWay(states16, loss, half) for name, loss in rounded.items()}


def _chunk_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")


def _chunked(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, targets: Tensor, rows: int = 2048
) -> Tensor:
    """The usual way to bound memory: each chunk's gradient is taken at once, by recomputation in backward."""
    parts = [
        torch.utils.checkpoint.checkpoint(loss, part, weight, target, use_reentrant=False)
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(parts).sum() / len(hidden)


def _liger() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The public kernel, where it is installed."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]
    except ImportError:
        return None
    return LigerFusedLinearCrossEntropyLoss()  # type: ignore[no-any-return]


def _colab_model() -> NewLLM:
    """GPT-2's width, its embeddings replaced by random ones of their size."""
    matrix = 0.144 * torch.randn(50_257, 768, generator=derived_generator("gpu colab embeddings"))
    return NewLLM(ModelConfig(embed_dim=768), matrix).to(GPU)


def iteration(inputs: LanguageInputs) -> dict[str, Any]:
    """Phase 1 at the `colab` profile's size. Plain: its first contexts are given, since its loop would take minutes."""
    tokens = inputs.train[:_COLAB_TOKENS].to(GPU)
    ours = {source: _fixed_point(tokens, source) for source in ("exact", "previous_iteration")}
    eager = _fixed_point(tokens, "previous_iteration")
    eager.recorded = None
    works: dict[str, Work] = {f"project, {source}": _next_iteration(one) for source, one in ours.items()}
    works["project, previous_iteration, not recorded"] = _next_iteration(eager)
    plain = PlainNotes(_colab_model()).to(GPU)
    first = eager.previous.clone().unsqueeze(1)
    plain.loop_contexts = lambda embeds, initial: first  # type: ignore[method-assign]
    with torch.device(GPU):
        plain_pass = PlainPhase1(plain, tokens, Phase1Config())

        def plain_iteration() -> None:
            with torch.device(GPU):
                plain_pass.iterate(1)

    works["plain (stale contexts)"] = plain_iteration
    times = interleaved(works, _ROUNDS, warm_up=5)
    return {
        "tokens": len(tokens), "context_dim": 500, "embed_dim": 768, "ways": times,
        "extra_memory_mb": {name: peak_mb(work) for name, work in works.items()},
        "kernels": kernels(works["project, exact"]),
    }  # fmt: skip


def _fixed_point(tokens: Tensor, source: str) -> CvfpPass:
    return CvfpPass(_colab_model(), tokens, dataclasses.replace(Phase1Config(), context_source=source), 42)


def _next_iteration(objective: CvfpPass | PredictivePass) -> Work:
    count = iter(range(1, 10_000))
    return lambda: one_pass(objective, next(count))


def phase2_step(inputs: LanguageInputs) -> dict[str, Any]:
    """Milliseconds of a whole epoch of 256 steps, 512 tokens each, at E = 768."""
    tokens = inputs.train[: 256 * 512 + 1].to(GPU)
    contexts_ = all_contexts(_colab_model(), tokens)
    works = {
        "project": _epoch(tokens, contexts_, recorded=True), "project, not recorded": _epoch(tokens, contexts_, False),
    }  # fmt: skip
    plain = PlainPhase2(PlainNotes(_colab_model()).to(GPU), contexts_, tokens, Phase2Config())
    works["plain"] = lambda: plain.epoch(torch.randperm(len(tokens) - 1, device=GPU))
    times = interleaved(works, 3, warm_up=1)
    return {
        "steps": 256, "batch": 512, "embed_dim": 768, "epoch": times,
        "ms_per_step": {name: found["median_ms"] / 256 for name, found in times.items()},
        "kernels": kernels(works["project"]),
    }  # fmt: skip


def _epoch(tokens: Tensor, contexts_: Tensor, recorded: bool) -> Work:
    result = Phase1Result(contexts_, contexts_[:1001], None)
    trainer = phase2._Trainer(_colab_model(), result, tokens, tokens[:1001], Phase2Config(), 42, None)
    if not recorded:
        trainer.rate = None
    return lambda: trained_epoch(trainer, 1)


def predictive_step(inputs: LanguageInputs) -> dict[str, Any]:
    """One pass over 57,173 tokens by the better model's Phase 1: C = 576 with gains."""
    tokens = inputs.train[:57_173].to(GPU)
    works, steps, settings = {}, 0, best_settings()
    for name, recorded in (("project", True), ("project, not recorded", False)):
        model = NewLLM(settings.model, inputs.embeddings).to(GPU)
        objective = PredictivePass(model, tokens, settings.phase1, 42)
        if not recorded:
            objective.captured = None
        works[name], steps = _next_iteration(objective), objective.num_steps
    times = interleaved(works, 3, warm_up=1)
    return {
        "tokens": len(tokens), "steps": steps, "pass": times,
        "ms_per_step": {name: found["median_ms"] / steps for name, found in times.items()},
    }  # fmt: skip


def generation(inputs: LanguageInputs) -> dict[str, Any]:
    """Tokens a second, one text."""
    model = NewLLM(ModelConfig(), inputs.embeddings).to(GPU)
    prompt, config = inputs.train[:50], GenerationConfig(num_tokens=100, temperature=1.0, top_k=50)

    def text() -> None:
        written = stream_tokens(model, [prompt], config, [derived_generator("gpu generation")])
        assert sum(1 for _ in written) == 100

    text()
    times = [milliseconds(text) for _ in range(3)]
    return {"prompt": 50, "tokens": 100, **summary(times), "tokens_per_second": 100 / summary(times)["median_ms"] * 1e3}


SPEEDS: dict[str, Callable[[LanguageInputs], dict[str, Any]]] = {
    "contexts": contexts, "head": head, "iteration": iteration, "phase2_step": phase2_step,
    "predictive_step": predictive_step, "generation": generation,
}  # fmt: skip
