"""Both phases: what is minimised, step by step, and the one loop that all trainings share."""

from newllm_core.training.initialisation import exponents_by_width

__all__ = ["exponents_by_width"]
