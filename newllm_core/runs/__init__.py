"""Files, folders, checkpoints, seeds, progress: what every run needs."""

from newllm_core.runs.files import REFERENCE_DIR, RunError, write_json

__all__ = ["REFERENCE_DIR", "RunError", "write_json"]
