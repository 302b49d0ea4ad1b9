"""The contexts of a whole stream: exact ones in parallel, and where they live."""

from newllm_core.contexts.shooting import exact_contexts, sequential_contexts
from newllm_core.contexts.sweeps import parallel_sweeps

__all__ = ["exact_contexts", "parallel_sweeps", "sequential_contexts"]
