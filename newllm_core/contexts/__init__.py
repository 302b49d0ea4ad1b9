"""The contexts of a whole stream: exact ones in parallel, and where they live."""

from newllm_core.contexts.shooting import exact_contexts, sequential_contexts

__all__ = ["exact_contexts", "sequential_contexts"]
