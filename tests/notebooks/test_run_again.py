"""Every notebook lives in a kernel: all cells, two parameters changed, all again; those that do not draw once more."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_notebooks import NOTEBOOKS, parameters_cell, tiny_notebook, with_values

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
    monkeypatch.setenv("NEWLLM_HOME", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    kernel = Kernel(tiny_notebook(NOTEBOOKS / f"{request.param}.ipynb"), tmp_path)
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
