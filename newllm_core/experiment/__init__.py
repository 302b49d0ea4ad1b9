"""One experiment: text, Phase 1, Phase 2, record."""

from newllm_core.experiment.loss_cost import loss_cost
from newllm_core.experiment.run import run_experiment

__all__ = ["loss_cost", "run_experiment"]
