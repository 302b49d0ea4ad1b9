"""Batch sizes that fit: two rules that estimate them, and a retry for when the estimate was wrong.

`effective_batch_size` belongs to the experiment and never changes; what adapts is `device_batch_size`, the tokens
computed at once, with gradients accumulated up to the effective batch.
"""

import gc
import logging
import math
from collections.abc import Callable

import torch

from newllm_core.config.language import ModelConfig

logger = logging.getLogger("newllm")

GIB = 2**30
FLOAT_BYTES = 4
# The notes' rule: logits, their gradient and buffers; half for safety, half for the rest (docs/method.md, section 7).
LOGIT_COPIES = 3.5
SAFETY = 0.5
HEAD_SHARE = 0.5
SMALLEST_BATCH, LARGEST_BATCH = 256, 16_384
# The blocked head holds blocks, a rounded copy of the head, and no logits: a fixed amount.
BLOCKED_HEAD_BYTES = 200 * 2**20
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or host memory ran out."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_failed")  # the last: cuBLAS and cuDNN
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


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
            logger.warning("out of memory at %d tokens at once; trying %d", batch_size, math.ceil(batch_size / 2))
        # Outside the handler: the exception would keep the failed attempt's tensors alive.
        batch_size = math.ceil(batch_size / 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
