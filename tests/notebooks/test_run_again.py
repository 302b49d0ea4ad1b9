"""Every notebook lives in a kernel: all cells, two parameters changed, all again; those that do not draw once more."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
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
DRAWS = re.compile(r"show\(|animate")  # a picture takes longer than all else and changes nothing
CHANGES = {
    "00_tour": {"context_dim": 12, "sentence": "How are you"},
    "01_data_prep": {"num_samples": 3, "embed_dim": 8},
    "02_phase1": {"context_dim": 12, "seed": 7},
    "03_phase2": {"context_dim": 12, "seed": 7},
    "04_alpha_scaling": {"seeds": [3], "num_resamples": 101},
    "05_diversity_comparison": {"algorithms": ["ODCM"], "seeds": [3]},
    "06_controls_and_ablations": {"names": ["unigram", "untrained"], "widths": [12]},
    "07_nkat_stage2": {"search_epochs": 3, "gate_threshold": 0.4},
}


def with_values(source: str, values: dict[str, Any]) -> str:
    """The parameters cell with other values, as a user would type them."""
    for name, value in values.items():
        source = re.sub(rf"(?m)^({name}\b[^=]*=) .*$", lambda found, value=value: f"{found[1]} {value!r}", source)
    return source


def parameters_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


class Kernel:
    """A notebook's code cells in one running kernel."""

    def __init__(self, notebook: nbformat.NotebookNode, folder: Path) -> None:
        self.notebook, self.client = notebook, NotebookClient(notebook, timeout=300, kernel_name="python3")
        self.folder = folder

    def run(self, place: int) -> str:
        self.client.execute_cell(self.notebook.cells[place], place)
        return "".join(output.get("text", "") for output in self.notebook.cells[place].outputs)

    def run_all(self) -> str:
        return "".join(self.run(place) for place in self.code_cells())

    def code_cells(self) -> list[int]:
        return [place for place, cell in enumerate(self.notebook.cells) if cell.cell_type == "code"]

    def run_source(self, source: str) -> str:
        """A cell of the user's own, which does not stay in the notebook."""
        self.notebook.cells.append(nbformat.v4.new_code_cell(source))
        try:
            return self.run(len(self.notebook.cells) - 1)
        finally:
            self.notebook.cells.pop()


@pytest.fixture
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The notebook named by the test, made tiny; its results go to a folder of the test."""
    path = NOTEBOOKS / f"{request.param}.ipynb"
    monkeypatch.setenv("NEWLLM_HOME", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    notebook = load_notebook_node(str(path))
    own = notebook_parameters(path)
    cell = parameters_cell(notebook)
    cell.source = with_values(cell.source, {name: value for name, value in TINY.items() if name in own})
    if "num_samples" in own:
        hidden = {name: TINY[name] for name in ("embeddings", "embed_dim") if name not in own}
        notebook = parameterize_notebook(notebook, {**INJECTED, **hidden})
    kernel = Kernel(notebook, tmp_path)
    with kernel.client.setup_kernel():
        yield kernel


@pytest.mark.parametrize("kernel", sorted(CHANGES), indirect=True)
def test_a_notebook_runs_again_in_its_kernel_after_a_change(kernel: Kernel, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["kernel"]
    kernel.run_all()
    kernel.run_source("first = 3; sizes = 'mine'; seed = None\nfor device in ('a', 'b'): pass")
    cell = parameters_cell(kernel.notebook)
    before = cell.source
    cell.source = with_values(before, CHANGES[name])
    assert cell.source != before
    for place in kernel.code_cells():
        kernel.run(place)
        if not DRAWS.search(kernel.notebook.cells[place].source):
            kernel.run(place)
    for parameter, value in CHANGES[name].items():
        assert kernel.run_source(f"print(repr({parameter}))").strip() == repr(value)


@pytest.mark.parametrize("kernel", ["01_data_prep"], indirect=True)
def test_a_misspelled_parameter_is_refused_until_its_cell_is_mended(kernel: Kernel) -> None:
    cell, places = parameters_cell(kernel.notebook), kernel.code_cells()
    settings_cell = next(place for place in places if "from_notebook" in kernel.notebook.cells[place].source)
    right = cell.source
    cell.source = right.replace("num_samples", "num_sample")
    for place in places[: places.index(settings_cell)]:
        kernel.run(place)
    with pytest.raises(Exception, match="unknown parameter 'num_sample'. Did you mean 'num_samples'"):
        kernel.run(settings_cell)
    cell.source = right
    for place in places[: places.index(settings_cell)]:
        kernel.run(place)
    kernel.run_source("num_sampels = 4  # a variable of the user's own")
    kernel.run(settings_cell)
    assert kernel.run_source("print(settings.data.num_samples)") == "2\n"
