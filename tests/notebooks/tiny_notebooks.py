"""The notebooks with the smallest values that they run with; the committed files stay as they are."""

import re
from pathlib import Path
from typing import Any

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from newllm_core.batch.jobs import notebook_parameters

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# Random embeddings of 16 numbers make the head cheap.
TINY: dict[str, Any] = {
    "num_samples": 2, "embeddings": "random", "embed_dim": 16, "context_dim": 8, "max_iterations": 5, "max_epochs": 1,
    "init_samples": 1, "window_size": 2, "num_resamples": 100, "algorithms": ["MCDL"],
    "names": ["untrained", "unigram"], "widths": [8], "network_epochs": 1,
    "num_threads": 1, "seeds": [1], "num_train_images": 40, "holdout_max": 40,
    "width": 8, "depth": 1, "heads": 4, "epochs": 2, "few_images": 30, "term_seeds": [42], "data_sets": ["colour"],
    "suspects": ["images"], "search_images": 40, "search_trials": 2, "sentence": "Hello there",
}  # fmt: skip
# A few hundred tokens each: the shortest that every figure of a run can be measured on.
INJECTED = {"train_range": [15, 19], "validation_range": [1011, 1013]}


def with_values(source: str, values: dict[str, Any]) -> str:
    """The parameters cell with other values, as a user would type them."""
    for name, value in values.items():
        source = re.sub(rf"(?m)^({name}\b[^=]*=) .*$", lambda found, value=value: f"{found[1]} {value!r}", source)
    return source


def parameters_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


def tiny_notebook(path: Path, **changes: Any) -> nbformat.NotebookNode:
    """A notebook with the values above in its parameters cell, or with those of ``changes`` in their place."""
    own, notebook = notebook_parameters(path), load_notebook_node(str(path))
    cell = parameters_cell(notebook)
    cell.source = with_values(cell.source, {name: value for name, value in (TINY | changes).items() if name in own})
    if not {"corpus", "num_samples"} & own.keys():
        return notebook  # it reads no text
    hidden = {name: TINY[name] for name in ("embeddings", "embed_dim") if name not in own}
    ranges = INJECTED if "num_samples" in own else {"validation_range": INJECTED["validation_range"]}
    return parameterize_notebook(notebook, {**ranges, **hidden})
