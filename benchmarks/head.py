"""(c) The head: ways to compute cross-entropy and gradient over 50,257 columns; time, exactness, memory.

A way takes hidden states `[n, E]` that require a gradient, the frozen head `[V, E]` and targets `[n]`, and
returns the mean loss with the gradient left in `hidden.grad`. Only the direct way and the project's blocks also say
whether the target was the arg-max; the others would need a second sweep for that.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.inputs import load_streams, new_model
from benchmarks.machine import MB, forget_peak, in_fresh_process, peak_mb, resident_mb
from benchmarks.phase2_epoch import project_trainer, trained_epoch
from benchmarks.settings import BenchmarkSettings
from benchmarks.timing import Work, compared, interleaved
from newllm_core.config.hyperparameters import ModelConfig, Phase2Config
from newllm_core.data import VOCAB_SIZE
from newllm_core.head.cross_entropy import Head, with_output_bias, with_unit_columns
from newllm_core.runs.products import has_bf16_products
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training.phase1 import all_contexts

Way = Callable[[Tensor, Tensor], Tensor]  # hidden, targets -> mean loss, after backward
Preparation = Callable[[Tensor], Way]  # of one head weight, which is frozen from then on
DIRECT = "direct"
_FLOAT64_ROWS = 128  # at once: 50 MB of logits
_WARM_UP_ROWS = 8
_MEMORY_WARM_UP = (8, 64)  # rows and columns of a call that only loads code


def direct(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.T
    logits.argmax(dim=1)
    return functional.cross_entropy(logits, targets)


def torch_linear(options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return functional.linear_cross_entropy(hidden, weight, targets, options=options)

    return loss


def flash(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's CPU flash kernel with K = V = W: its output is the softmax-weighted mean of W's rows."""
    query, keys = hidden.detach()[None, None], weight[None, None]
    attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, keys, scale=1.0)
    target_rows = weight[targets]
    gradient = (attended[0, 0] - target_rows) / len(hidden)
    mean_nats = (log_sum[0, 0] - (hidden.detach() * target_rows).sum(dim=1)).mean()
    # The value is the mean loss, the derivative is `gradient`.
    surrogate = (hidden * gradient).sum()
    return surrogate + (mean_nats - surrogate.detach())


def preparations() -> dict[str, Preparation]:
    """Every way that this torch has and this CPU computes in hardware."""
    ways = {DIRECT: _plainly(direct), "blocks": _project("blocks"), "flash attention": _plainly(flash)}
    has_torch_linear = hasattr(functional, "linear_cross_entropy")  # new in torch 2.13
    if has_torch_linear:
        options = torch.nn.LinearCrossEntropyOptions
        ways["linear_cross_entropy"] = _plainly(torch_linear(None))
        ways["linear_cross_entropy, automatic chunks"] = _plainly(torch_linear(options()))
        ways["linear_cross_entropy, chunks of 256"] = _plainly(torch_linear(options(batch_chunk_size=256)))
    if has_bf16_products():
        ways["blocks-bf16"] = _project("blocks-bf16")
        ways["blocks-bf16 with bias"] = _project_with_bias("blocks-bf16")
        ways["direct, bf16"] = _plainly(direct, torch.bfloat16)
        if has_torch_linear:
            ways["linear_cross_entropy, bf16"] = _plainly(torch_linear(options(batch_chunk_size=256)), torch.bfloat16)
    return ways


def _plainly(loss: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Preparation:
    def prepare(weight: Tensor) -> Way:
        operand = weight.to(dtype)
        return _with_backward(lambda hidden, targets: loss(hidden.to(dtype), operand, targets).float())

    return prepare


def _project(method: str) -> Preparation:
    def prepare(weight: Tensor) -> Way:
        head = Head(weight, method)
        return _with_backward(lambda hidden, targets: head.loss(hidden, targets).mean_nats)

    return prepare


def _project_with_bias(method: str) -> Preparation:
    """Of zeros, so that loss and gradient stay those of the others."""

    def prepare(weight: Tensor) -> Way:
        head = Head(with_output_bias(weight, weight.new_zeros(len(weight))), method)
        return _with_backward(lambda hidden, targets: head.loss(with_unit_columns(hidden), targets).mean_nats)

    return prepare


def bare_products(hidden: Tensor, weight: Tensor) -> dict[str, Work]:
    """By precision, what no head can leave out: `hidden @ weightᵀ`, and that times ``weight``, each one call."""
    kinds = ["float32", *(["bfloat16"] if has_bf16_products() else [])]
    operands = {name: (hidden.to(getattr(torch, name)), weight.to(getattr(torch, name))) for name in kinds}
    return {name: partial(_two_products, *pair) for name, pair in operands.items()}


def _two_products(hidden: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(torch.mm(hidden, weight.T), weight)


def _with_backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Way:
    def run(hidden: Tensor, targets: Tensor) -> Tensor:
        hidden.grad = None
        mean = loss(hidden, targets)
        mean.backward()  # type: ignore[no-untyped-call]
        return mean.detach()

    return run


def measure(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    cases = []
    for embed_dim in settings.embed_dims:
        hidden, weight, targets = trained_hidden_states(settings, embed_dim)
        ways = {name: prepare(weight) for name, prepare in preparations().items()}
        for batch in settings.batch_sizes:
            bare = bare_products(hidden[:batch], weight)
            seconds = _timings(ways, bare, hidden[:batch], targets[:batch], settings.head_repetitions)
            products = {name: seconds.pop(name) for name in bare}
            found = compared(seconds, DIRECT)
            shares = of_two_products(found["median_seconds"], products)
            cases.append({"embed_dim": embed_dim, "batch": batch, **found, **shares})
        rows = slice(0, settings.reference_rows)
        cases[-1]["exactness"] = exactness(ways, hidden[rows], weight, targets[rows])
        cases[-1]["extra_memory_mb"] = {name: _memory(settings, embed_dim, name) for name in ways}
    return cases


def of_two_products(medians: dict[str, float], products: dict[str, list[float]]) -> dict[str, Any]:
    """How fast the project's ways are, held against two bare products in the precision of their own."""
    bare = {name: statistics.median(values) for name, values in products.items()}
    shares = {
        name: bare["bfloat16" if "bf16" in name else "float32"] / seconds
        for name, seconds in medians.items() if name.startswith("blocks")
    }  # fmt: skip
    return {"two_products_seconds": products, "of_two_products": shares}


def _timings(
    ways: dict[str, Way], bare: dict[str, Work], hidden: Tensor, targets: Tensor, rounds: int
) -> dict[str, list[float]]:
    part = hidden.detach().clone().requires_grad_()
    for way in ways.values():
        way(part[:_WARM_UP_ROWS].detach().requires_grad_(), targets[:_WARM_UP_ROWS])
    return interleaved({**{name: partial(way, part, targets) for name, way in ways.items()}, **bare}, rounds)


def trained_hidden_states(settings: BenchmarkSettings, embed_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden `[n, E]` of the first tokens after an epoch of training, head, targets `[n]`.

    An untrained TokenBlock gives logits so large that the softmax is a step: no gradient to compare.
    """
    tokens = load_streams(settings.num_conversations).train[: settings.epoch_tokens + 1]
    contexts = all_contexts(new_model(ModelConfig.context_dim, embed_dim, settings.seed), tokens)
    batch = Phase2Config.effective_batch_size
    trainer = project_trainer(settings, embed_dim, tokens, contexts, batch, "blocks")
    trained_epoch(trainer, 1)
    rows = slice(0, max(*settings.batch_sizes, settings.reference_rows))
    with torch.no_grad():
        hidden = trainer.model.hidden(contexts[rows], tokens[rows])
    return hidden, trainer.model.head_weight.detach(), tokens[1:][rows]


def exactness(ways: dict[str, Way], hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, dict[str, float]]:
    """Against float64: |Δ mean loss| in nats, relative error of the gradient, and that over the direct head's."""
    loss, gradient = float64_reference(hidden, weight, targets)
    found: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        part = hidden.detach().clone().requires_grad_()
        mean = float(way(part, targets))
        assert part.grad is not None
        error = float((part.grad.double() - gradient).norm() / gradient.norm())
        found[name] = {"delta_mean_nats": abs(mean - loss), "gradient_error": error}
    for figures in found.values():
        figures["gradient_error_over_direct"] = figures["gradient_error"] / found[DIRECT]["gradient_error"]
    return found


def float64_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Mean loss and its gradient `[n, E]`, in double precision."""
    wide, total, gradients = weight.double(), 0.0, []
    for part, target in zip(hidden.double().split(_FLOAT64_ROWS), targets.split(_FLOAT64_ROWS)):
        logits = part @ wide.T
        total += float(functional.cross_entropy(logits, target, reduction="sum"))
        gradients.append(torch.softmax(logits, dim=1) @ wide - wide[target])
    return total / len(hidden), torch.cat(gradients) / len(hidden)


def _memory(settings: BenchmarkSettings, embed_dim: int, name: str) -> dict[str, float]:
    """Batch -> extra memory; ways that hold all logits are measured up to `direct_memory_batch` only."""
    holds_all_logits = name.startswith(DIRECT) or name == "linear_cross_entropy"
    limit = settings.direct_memory_batch if holds_all_logits else max(settings.memory_batches)
    return {
        str(batch): in_fresh_process(extra_memory_mb, settings.seed, settings.num_threads, name, embed_dim, batch)
        for batch in settings.memory_batches
        if batch <= limit
    }


def extra_memory_mb(name: str, embed_dim: int, batch: int) -> float:
    """Peak growth of the process's memory in one call, less the gradient's own size.

    A rounded copy of the head counts as extra. Values are random: memory does not depend on them.
    """
    generator = derived_generator("head memory")
    weight = torch.randn(VOCAB_SIZE, embed_dim, generator=generator)
    hidden = torch.randn(batch, embed_dim, generator=generator).requires_grad_()
    targets = torch.randint(len(weight), (batch,), generator=generator)
    rows, columns = _MEMORY_WARM_UP
    warm_up = hidden.detach()[:rows].clone().requires_grad_()
    prepare = preparations()[name]
    prepare(weight[:columns].clone())(warm_up, targets[:rows] % columns)
    forget_peak()
    before = resident_mb()
    prepare(weight)(hidden, targets)
    return peak_mb() - before - hidden.numel() * hidden.element_size() / MB
