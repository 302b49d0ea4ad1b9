"""The NKAT network: stems, attention with its term, blocks."""

from newllm_core.vision.model.nkat import NkatBlock, NkatModel, nkat_scalars, parameters_without_decay

__all__ = ["NkatBlock", "NkatModel", "nkat_scalars", "parameters_without_decay"]
