"""The contexts of a whole stream: exact ones in parallel, and where they live."""

from newllm_core.contexts.horizon import start_distances
from newllm_core.contexts.shooting import (
    ExactContexts,
    NotConvergedError,
    TokenEmbeds,
    exact_contexts,
    sequential_contexts,
)
from newllm_core.contexts.store import Batch, allocate_contexts, context_batches

__all__ = [
    "Batch",
    "ExactContexts",
    "NotConvergedError",
    "TokenEmbeds",
    "allocate_contexts",
    "context_batches",
    "exact_contexts",
    "sequential_contexts",
    "start_distances",
]
