"""What every committed notebook looks like: prose, one parameters cell, calls and pictures; no definitions."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbval.plugin import get_sanitize_patterns

from newllm_core.batch.jobs import notebook_parameters, settings_type_of
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import parameter_fields, parameter_kinds
from newllm_core.config.values import read_as

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
# A line of Colab's form: no annotation, and nothing behind the field's kind, so that every reader finds it.
FIELD = re.compile(r"\w+(: int \| None)? = .*  # @param (\[.*\]( \{allow-input: true\})?|\{type:\"\w+\"\})")
NKAT = NOTEBOOKS / "07_nkat_stage2.ipynb"
every_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
every_profile = pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)


def cells_of(path: Path, cell_type: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == cell_type]


def code_lines(cell: nbformat.NotebookNode) -> list[str]:
    """Without comments alone on their line, as the labels of a form are."""
    return [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def python_of(cell: nbformat.NotebookNode) -> str:
    """The cell without IPython's commands (`%matplotlib`, `!pip`), which are not Python."""
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell.source)


@every_notebook
def test_notebook_is_valid_and_runs_on_the_environments_own_kernel(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@every_notebook
def test_notebook_has_one_parameters_cell_with_the_quick_profiles_values(path: Path) -> None:
    values = notebook_parameters(path)  # refuses none, several, and anything but literals
    if settings_type_of(values) is not Settings or "objective" in values:
        return  # of the other line, or of another objective (the tour): quick values that are the notebook's alone
    kinds = parameter_kinds(Settings)
    quick = {name: read_as(kinds[name], text) for name, text in load_profile(PROFILES / "quick.yaml").items()}
    own = {name: one.value for name, one in values.items()}
    different = {name: (own[name], quick[name]) for name in own.keys() & quick.keys() if own[name] != quick[name]}
    assert not different, "(the notebook's, the quick profile's)"


@every_notebook
def test_notebook_parameters_are_accepted_by_the_configs(path: Path) -> None:
    values = {name: one.value for name, one in notebook_parameters(path).items()}
    line = settings_type_of(values)
    line.from_parameters(values, values.keys() - parameter_fields(line).keys())


@every_notebook
def test_notebook_defines_no_functions_or_classes(path: Path) -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    trees = [ast.parse(python_of(cell)) for cell in cells_of(path, "code")]
    assert not [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, definitions)]


@every_notebook
def test_notebook_is_20_to_90_lines_of_code(path: Path) -> None:
    assert 20 <= sum(len(code_lines(cell)) for cell in cells_of(path, "code")) <= 90


@every_notebook
def test_a_cell_has_at_most_twelve_lines_of_code_and_the_parameters_are_a_form(path: Path) -> None:
    cells = cells_of(path, "code")
    forms = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert not [cell.source for cell in cells if len(code_lines(cell)) > 12 and cell not in forms]
    fields = [line for cell in forms for line in code_lines(cell)]
    assert fields and not [line for line in fields if not FIELD.fullmatch(line)]


@every_notebook
def test_a_notebook_says_its_machine_first_and_asks_for_no_token(path: Path) -> None:
    set_up, machine, *others = cells_of(path, "code")
    assert "COLAB_RELEASE_TAG" in set_up.source and machine.source.endswith("print(nl.machine())")
    assert not [cell.source for cell in others if re.search(r"\bhf_|token\s*=\s*[\"']", cell.source)]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("0[2-7]*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_opens_with_a_reference_result_and_ends_with_where_next(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    reference = next(place for place, cell in enumerate(cells) if "show_reference(" in cell.source)
    form = next(place for place, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert reference < form and "## Now you, smaller" in cells[form - 1].source
    assert cells[reference].source.startswith("# NBVAL_CHECK_OUTPUT")
    assert "where next" in cells[-1].source and ".ipynb)" in cells[-1].source


@every_notebook
def test_no_table_wraps_and_what_was_not_measured_is_a_dash(path: Path) -> None:
    for output in (output for cell in cells_of(path, "code") for output in cell.outputs):
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"(?m) \\$", text), "pandas wrapped it"
        assert not re.search(r"\bnan\b", text + output.get("data", {}).get("text/html", ""), re.IGNORECASE)


@every_notebook
def test_prose_comes_before_nearly_every_code_cell(path: Path) -> None:
    types = [cell.cell_type for cell in nbformat.read(path, as_version=4).cells]
    explained = sum(before == "markdown" and this == "code" for before, this in zip(types, types[1:]))
    assert types[0] == "markdown" and explained >= 0.8 * types.count("code")


@every_notebook
def test_committed_notebook_is_executed_from_top_to_bottom(path: Path) -> None:
    cells = cells_of(path, "code")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells), "a reader of the page sees no result"


@every_notebook
def test_committed_outputs_hold_no_errors_and_no_folders_of_the_machine_they_ran_on(path: Path) -> None:
    outputs = [output for cell in cells_of(path, "code") for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    )
    assert not re.findall(r"(?<![\w.])/(?:home|root|Users|tmp|work|content)/\S*", text)


@every_profile
def test_profile_holds_config_parameters_with_possible_values(path: Path) -> None:
    profile = load_profile(path)
    line = settings_type_of(profile)
    own = set() if line is Settings else set(notebook_parameters(NKAT))
    assert set(profile) <= set(parameter_fields(line)) | own
    line.from_parameters(profile, own)


@pytest.mark.parametrize("name", ["nkat_cpu", "nkat_colab"])
def test_an_nkat_profile_names_every_parameter_of_its_notebook(name: str) -> None:
    assert set(load_profile(PROFILES / f"{name}.yaml")) >= set(notebook_parameters(NKAT)) - {"device", "copy_to"}


@pytest.mark.parametrize("name", ["cpu", "notes", "colab"])
def test_a_larger_profile_names_all_that_the_quick_one_does(name: str) -> None:
    """What it left out would run with the notebook's own default, which is the quick profile's."""
    quick, larger = (load_profile(PROFILES / f"{one}.yaml") for one in ("quick", name))
    assert set(quick) <= set(larger)


def sanitized(text: str) -> str:
    patterns = get_sanitize_patterns((Path(__file__).parent / "sanitize.cfg").read_text(encoding="utf-8"))
    for pattern, replacement in patterns:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("committed", "new"),
    [
        ("loss 4.567801", "loss 4.567899"),
        ("1.23e-05", "1.2874e-05"),
        ("took 3 s", "took 12.5 s"),
        ("1,234 tokens/s", "56.7 tokens/s"),
        ("run of 2026-01-02 10:00", "run of 2027-12-31 23:59:59"),
        ("in /home/a/New-LLM/results/x", "in /content/New-LLM/results/x"),
    ],
)
def test_what_differs_between_machines_is_not_compared(committed: str, new: str) -> None:
    assert sanitized(committed) == sanitized(new)


@pytest.mark.parametrize(
    ("committed", "new"),
    [
        ("loss 4.56", "loss 4.57"),
        ("1.2e-05", "1.2e-04"),
        ("80 samples", "40 samples"),
        ("results/a/run.json", "results/b/run.json"),
        ("PPL 334.10", "PPL 434.10"),
        ("31,024 tokens", "31,025 tokens"),
    ],
)
def test_figures_and_names_are_compared(committed: str, new: str) -> None:
    assert sanitized(committed) != sanitized(new)


def test_structure_rules_catch_a_notebook_that_breaks_them(tmp_path: Path) -> None:
    """The rules above hold for whatever is committed; this shows that they would notice."""
    v4 = nbformat.v4
    path = tmp_path / "bad.ipynb"
    error = v4.new_output("error", ename="E", evalue="", traceback=[])
    tag = {"tags": ["parameters"]}
    cells = [v4.new_code_cell("num_samples = -1", metadata=tag), v4.new_code_cell("def f(): pass", outputs=[error])]
    nbformat.write(v4.new_notebook(cells=cells), path)
    rules = [
        test_notebook_parameters_are_accepted_by_the_configs,
        test_notebook_defines_no_functions_or_classes,
        test_notebook_is_20_to_90_lines_of_code,
        test_prose_comes_before_nearly_every_code_cell,
        test_committed_notebook_is_executed_from_top_to_bottom,
        test_committed_outputs_hold_no_errors_and_no_folders_of_the_machine_they_ran_on,
    ]
    for rule in rules:
        with pytest.raises((AssertionError, ValueError)):
            rule(path)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"num_sample": 3}))
    with pytest.raises(AssertionError):
        test_profile_holds_config_parameters_with_possible_values(tmp_path / "bad.yaml")
