"""The hyperparameter search: plan, study, run."""

from newllm_core.vision.search.config import SEARCH_SPACES, search_profile
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.search.run import run_search

__all__ = ["SEARCH_SPACES", "SearchPlan", "run_search", "search_profile"]
