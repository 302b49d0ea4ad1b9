"""Notebooks with parameters, one or many."""

from newllm_core.batch.jobs import BatchError, Job, load_batch, notebook_parameters
from newllm_core.batch.notebooks import Outcome, run_batch, run_notebook

__all__ = ["BatchError", "Job", "Outcome", "load_batch", "notebook_parameters", "run_batch", "run_notebook"]
