"""What a finished run looks like, and what may differ between two runs of the same experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm_core.runs.files import RunError

RECORD_NAME = "run.json"


# What differs between two runs of the same experiment; everything else must be identical.
CIRCUMSTANCES = ("start", "seconds", "commit", "paths")


def is_complete(run_dir: Path) -> bool:
    return (run_dir / RECORD_NAME).is_file()


def figures_of(record: Any) -> Any:
    """The record without what may differ between identical runs, at every depth: for comparing two of them."""
    if isinstance(record, Mapping):
        return {key: figures_of(value) for key, value in record.items() if key not in CIRCUMSTANCES}
    return [figures_of(value) for value in record] if isinstance(record, list) else record


def refuse_other_config(record: Mapping[str, Any], configs: Mapping[str, Any], folder: Path) -> None:
    """Raises RunError when a record was made with another configuration than ``configs``."""
    for section, values in configs.items():
        for name, value in values.items():
            stored = record["config"].get(section, {}).get(name)
            if stored != value:
                raise RunError(
                    f"{folder} holds a run with {section}.{name} = {stored!r}, asked for {value!r}; "
                    "use another folder, or delete this one"
                )
