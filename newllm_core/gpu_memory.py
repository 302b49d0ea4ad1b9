"""Batch sizes that fit: two rules that estimate them, and a retry for when the estimate was wrong.

`effective_batch_size` belongs to the experiment and never changes; what adapts is `device_batch_size`, the tokens
computed at once, with gradients accumulated up to the effective batch.
"""

import gc
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.runs.host_memory import is_out_of_memory
from newllm_core.runs.reproducibility import generator_states, restore_generators

logger = logging.getLogger("newllm")

Outcome = TypeVar("Outcome")

GIB = 2**30
FLOAT_BYTES = 4
# The notes' rule: logits, their gradient and buffers; half for safety, half for the rest (docs/method.md, section 7).
LOGIT_COPIES = 3.5
SAFETY = 0.5
HEAD_SHARE = 0.5
SMALLEST_BATCH, LARGEST_BATCH = 256, 16_384
# The blocked and the fused head hold blocks, a rounded copy of the head, and few logits: a fixed amount.
BLOCKED_HEAD_BYTES = 300 * 2**20
LARGEST_BLOCKED_BATCH = 65_536


def direct_head_batch_size(total_gb: float, allocated_gb: float, vocab_size: int) -> int:
    """Tokens whose logits fit at once beside what is allocated (GiB); 256 … 16,384 (docs/method.md, section 7).

    Raises ValueError when more is allocated than there is.
    """
    free = _free_bytes(total_gb, allocated_gb)
    per_token = vocab_size * FLOAT_BYTES * LOGIT_COPIES
    fits = int(free * SAFETY * HEAD_SHARE / per_token)
    logger.info(
        "direct head: %.1f GiB total, %.1f allocated, %.0f kB a token -> %d tokens fit",
        total_gb, allocated_gb, per_token / 1e3, fits,
    )  # fmt: skip
    return min(max(fits, SMALLEST_BATCH), LARGEST_BATCH)


def blocked_head_batch_size(total_gb: float, allocated_gb: float, model: ModelConfig) -> int:
    """The same for the blocked head: contexts, token vectors and what backward keeps of them; 256 … 65,536.

    A TokenLayer keeps about six vectors of width E a token (sum, GELU, norm, and their gradients), the head three.
    """
    free = _free_bytes(total_gb, allocated_gb)
    numbers = model.num_layers * (model.context_dim + 6 * model.embed_dim) + 3 * model.embed_dim
    fits = int(max(free * SAFETY - BLOCKED_HEAD_BYTES, 0) / (numbers * FLOAT_BYTES))
    logger.info(
        "blocked head: %.1f GiB total, %.1f allocated, %.1f kB a token -> %d tokens fit",
        total_gb, allocated_gb, numbers * FLOAT_BYTES / 1e3, fits,
    )  # fmt: skip
    return min(max(fits, SMALLEST_BATCH), LARGEST_BLOCKED_BATCH)


def _free_bytes(total_gb: float, allocated_gb: float) -> float:
    if not 0 <= allocated_gb <= total_gb:
        raise ValueError(f"expected 0 <= allocated <= total GiB, given {allocated_gb} of {total_gb}")
    return (total_gb - allocated_gb) * GIB


def device_memory_gb(device: torch.device) -> tuple[float, float]:
    """(total, allocated) in GiB of a CUDA device. Allocated, never reserved: reserved memory can be used again."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.get_device_properties(device).total_memory / GIB, torch.cuda.memory_allocated(device) / GIB


def device_batch_size(device: torch.device, effective_batch_size: int, head_method: str, model: ModelConfig,
                      vocab_size: int) -> int:  # fmt: skip
    """Tokens to compute at once: what fits, and never more than the effective batch. On a CPU the effective batch."""
    if device.type != "cuda":
        return effective_batch_size
    total, allocated = device_memory_gb(device)
    if head_method == "direct":
        fits = direct_head_batch_size(total, allocated, vocab_size)
    else:
        fits = blocked_head_batch_size(total, allocated, model)
    return min(fits, effective_batch_size)


def context_cache_gb(num_tokens: int, num_layers: int, context_dim: int) -> float:
    """GiB of a context cache (docs/method.md, section 7)."""
    return num_tokens * num_layers * context_dim * FLOAT_BYTES / GIB


class DeviceBatch:
    """How many rows of a step are computed at once: ``size``, which shrinks when memory runs out.

    ``records``: whether steps may be recorded as CUDA graphs; False for good once a graph's own memory did not fit. A
    checkpoint has both, because a step's last bits depend on them. ``retries``: False where other ranks wait for what
    an attempt sends, and would get it twice.

    Args:
        buffers: what a forward pass writes into beside its result, such as BatchNorm's means.
    """

    def __init__(self, device: torch.device, size: int, buffers: Iterable[Tensor] = ()) -> None:
        self.device, self.size, self.buffers = device, size, list(buffers)
        self.records = self.retries = True

    def fit(self, num_rows: int, attempt: Callable[[int], Outcome]) -> Outcome:
        """What ``attempt(size)`` gives for the largest ``size`` that fits in memory, ``num_rows`` or fewer.

        ``attempt`` computes a step's gradients from the beginning, ``size`` rows at once, and takes no step: the
        effective batch stays the same. Before another attempt generators and buffers are put back. While a CUDA graph
        is recorded all rows are computed: nothing runs then that could run out.
        """
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return attempt(num_rows)
        first_try, outcomes = min(self.size, num_rows), list[Outcome]()
        if not self.retries:
            return attempt(first_try)
        generators, buffers = generator_states(self.device), [buffer.clone() for buffer in self.buffers]

        def once(size: int) -> None:
            if size < first_try:
                restore_generators(generators, self.device)
                for buffer, value in zip(self.buffers, buffers, strict=True):
                    buffer.copy_(value)
            outcomes.append(attempt(size))

        fits = find_executable(once, first_try)
        if fits < first_try:
            self.size = fits
        return outcomes[0]


def accumulate_in_parts(
    compute: Callable[[slice], Tensor], num_rows: int, size: int, loss: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor], device: torch.device,
) -> Tensor:  # fmt: skip
    """Add the gradient of ``loss(compute(all rows))`` to that of ``parameters``; returns what was computed `[n, …]`.

    Where ``size`` is less than ``num_rows``, parts are computed without their graphs, the loss of all of them is taken,
    and each part is computed again and led the loss's gradient (GradCache, Gao et al. 2021, arXiv:2101.06983): losses
    that compare rows see all rows still. Nothing is added when it fails.
    """
    trained = list(parameters)
    parts = [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]
    if len(parts) == 1:
        computed = compute(parts[0])
        found: list[Sequence[Tensor | None]] = [torch.autograd.grad(loss(computed), trained, allow_unused=True)]
    else:
        starts, outputs = [], []
        with torch.no_grad():
            for rows in parts:
                starts.append(generator_states(device))
                outputs.append(compute(rows))
        computed = torch.cat(outputs).requires_grad_()
        led, *own = torch.autograd.grad(loss(computed), [computed, *trained], allow_unused=True)
        found, drawn = [own], generator_states(device)
        for rows, start in zip(parts, starts, strict=True):
            restore_generators(start, device)
            found.append(torch.autograd.grad(compute(rows), trained, led[rows], allow_unused=True))
        restore_generators(drawn, device)
    for gradients in found:
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return computed.detach()


def find_executable(attempt: Callable[[int], None], batch_size: int) -> int:
    """Call ``attempt(batch_size)``, halving the size each time memory runs out; returns the size that went through.

    ``attempt`` must be repeatable from its start. Raises the last error when a batch of one token does not fit
    either, and any error that is not about memory at once.
    """
    while True:
        try:
            attempt(batch_size)
            return batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            logger.warning("out of memory at %d rows at once; trying %d", batch_size, math.ceil(batch_size / 2))
        # Outside the handler: the exception would keep the failed attempt's tensors alive.
        batch_size = math.ceil(batch_size / 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
