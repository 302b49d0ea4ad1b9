"""One value, one reader: what is written the same way means the same, wherever it is written."""

from pathlib import Path
from typing import Any

import hypothesis
import nbformat
import pytest
import yaml
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from papermill.parameterize import parameterize_notebook

from newllm_core.batch.jobs import Job, job_parameters, load_batch
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.notebook import Parameter, cell_parameters, read_parameters
from newllm_core.config.profiles import load_profile, take_parameters
from newllm_core.config.schema import ConfigError, changed, parameter_fields, parameter_kinds
from newllm_core.config.values import looks_like, read_as, shown
from newllm_core.vision.settings import VisionSettings

SPELLINGS = [
    ("phase1_learning_rate", "1e-3", 1e-3),
    ("phase1_learning_rate", ".5", 0.5),
    ("multiplier", "3", 3.0),
    ("initial_exponent", "-1e-1", -0.1),
    ("initial_exponent", "None", None),
    ("initial_exponent", "null", None),
    ("num_samples", "5", 5),
    ("shuffle", "false", False),
    ("shuffle", "True", True),
    ("shuffle", "off", False),
    ("validation_range", "(20, 24)", (20, 24)),
    ("validation_range", "[20, 24]", (20, 24)),
    ("train_range", "None", None),
    ("corpus", "'ultrachat'", "ultrachat"),
    ("corpus", "ultrachat", "ultrachat"),
    ("device_batch_size", "64", 64),
    ("diversity_algorithm", "ODCM", "ODCM"),
    ("conversations_file", "my #1.jsonl", "my #1.jsonl"),
    ("conversations_file", "a: b.jsonl", "a: b.jsonl"),
    ("conversations_file", "2024-01-02", "2024-01-02"),
    ("conversations_file", "007", "007"),
    ("conversations_file", "[1", "[1"),
    ("conversations_file", "-x.jsonl", "-x.jsonl"),
    ("conversations_file", "mine/1e5", "mine/1e5"),
    ("conversations_file", "null", None),
]
KINDS = parameter_kinds(Settings)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
FAR_BEYOND = [10**300, -(10**300), 10**5000, 1e300, float("inf"), "1e999", "9" * 5000]
HOSTILE = ["[" * 100_000, "(" * 100_000, "[" + "[1, " * 5_000, "'" * 10_001, "9" * 100_000]
spellings = pytest.mark.parametrize(("name", "text", "value"), SPELLINGS, ids=[f"{n}={t}" for n, t, _ in SPELLINGS])


def read(name: str, given: Any) -> Any:
    return read_parameters(Settings, {name: Parameter(given, Any)}, ())[name]


@spellings
def test_the_command_line_reads_it(name: str, text: str, value: Any) -> None:
    parameters, rest = take_parameters(["a.ipynb", "-p", name, text, "--again"])
    assert rest == ["a.ipynb", "--again"]
    assert read(name, parameters[name]) == value and type(read(name, parameters[name])) is type(value)


@spellings
def test_a_profile_reads_it_quoted_or_plain(name: str, text: str, value: Any, tmp_path: Path) -> None:
    plain_is_yaml = not any(mark in text for mark in (" #", ": ", "[1")) or text.endswith("]")
    written = [yaml.safe_dump({name: text}), f"{name}: {text}\n"][: 1 + plain_is_yaml]
    for content in written:
        (tmp_path / "mine.yaml").write_text(content)
        assert read(name, load_profile(tmp_path / "mine.yaml")[name]) == value


@spellings
def test_a_batch_file_reads_it(name: str, text: str, value: Any, tmp_path: Path) -> None:
    entry = {"notebook": "notebooks/03_phase2.ipynb", "parameters": {name: text}}
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump([entry]))
    (job,) = load_batch(tmp_path / "runs.yaml")
    assert read(name, job.parameters[name]) == value


@spellings
def test_papermills_own_options_and_injected_cell_read_it(name: str, text: str, value: Any) -> None:
    cells = [nbformat.v4.new_code_cell("num_samples = 1", metadata={"tags": ["parameters"]})]
    for given in (text, _resolve_type(text), value):  # -r, -p, Python
        if name == "conversations_file" and not isinstance(given, str | None):
            continue  # papermill's -p makes a number of 007; its -r leaves text alone
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": {}, "kernelspec": KERNEL})
        injected = parameterize_notebook(notebook, {name: given}).cells[1].source
        assert read(name, cell_parameters(injected)[name].value) == value


@spellings
def test_the_parameters_cell_reads_it_as_a_literal_and_as_text(name: str, text: str, value: Any) -> None:
    for source in (f"{name} = {value!r}", f"{name} = {text!r}"):
        assert read(name, cell_parameters(source)[name].value) == value


@pytest.mark.parametrize("line", [Settings, VisionSettings])
def test_every_value_that_a_message_offers_is_accepted_when_given_back(line: Any) -> None:
    """Choices with their quotes, limits, defaults as they are printed."""
    default = line()
    for name, (section, field) in parameter_fields(line).items():
        value = getattr(getattr(default, section), field)
        given_back = read_as(parameter_kinds(line)[name], str(value))
        assert given_back == value and type(given_back) is type(value)
        assert read_as(parameter_kinds(line)[name], repr(value)) == value
        for choice in type(getattr(default, section)).__dataclass_fields__[field].metadata.get("choices", ()):
            assert read_as(parameter_kinds(line)[name], repr(choice)) == choice
    assert changed(default, {"seed": "7"}).run.seed == 7


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False), st.lists(st.integers()))
)
def test_a_value_of_unknown_kind_survives_being_written_as_text(value: Any) -> None:
    assert looks_like(str(value)) == value


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(), st.sampled_from([*KINDS.values(), list, Any]))
def test_no_text_is_more_than_refused(text: str, kind: Any) -> None:
    read_as(kind, text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_refused_in_one_sentence(text: str) -> None:
    for name in ("num_samples", "validation_range", "phase1_learning_rate"):
        with pytest.raises(ConfigError, match="expected") as caught:
            changed(Settings(), {name: text})
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("value", FAR_BEYOND, ids=range(len(FAR_BEYOND)))
def test_numbers_far_beyond_every_range_are_refused_in_one_sentence(name: str, value: Any) -> None:
    if KINDS[name] in (str, str | None) and isinstance(value, str):
        return  # a name or a path, refused where it is looked up
    with pytest.raises(ConfigError, match="expected") as caught:
        changed(Settings(), {name: value})
    assert len(str(caught.value)) < 500


def test_lists_know_what_their_members_look_like() -> None:
    assert read_as(list, "[42, 43]") == [42, 43] == read_as(list, ["42", "43"]) == read_as(list, (42, 43))
    assert read_as(list, "[trained, w-1.0]") == ["trained", "w-1.0"] == read_as(list, "['trained', \"w-1.0\"]")
    assert read_as(tuple[int, int] | None, ["20", "24"]) == (20, 24)
    assert read_as(Any, "off") == "off", "not YAML's truth value"


def test_command_lines_without_a_name_or_a_value_are_refused() -> None:
    with pytest.raises(ConfigError, match="-p: expected a name and a value, given 'seed'"):
        take_parameters(["-p", "seed"])
    with pytest.raises(ConfigError, match="-p: expected a name and a value, given nothing"):
        take_parameters(["-p"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "expected lines of the form name: value, found list"),
        ("just text\n", "expected lines of the form name: value, found str"),
        ("", "expected lines of the form name: value, found nothing"),
        ("a: {b: 1}\n", "found a mapping under 'a'"),
        ("seed: 1\nseed: 2\n", "'seed' stands there twice"),
        ("a: [1\n", "not YAML"),
        ("[a]: 1\n", "not YAML"),
        ("a: " + "[" * 20_000 + "\n", "nested too deeply"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_its_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(ConfigError, match=rf"odd\.yaml: .*{message}"):
        load_profile(tmp_path / "odd.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_profile(tmp_path / "none.yaml")


def test_profiles_of_other_editors_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("seed: 3\r\n# a comment\r\ncorpus: chitchat\r\n".encode("utf-8-sig"))
    assert load_profile(tmp_path / "mine.yaml") == {"seed": "3", "corpus": "chitchat"}


def test_a_notebooks_own_parameters_are_read_as_their_cell_says(tmp_path: Path) -> None:
    source = (
        'seeds: list = [42]\nreference: str = "untrained"\nlimit: int | None = None\nhours: float = 0.0\nfree = None'
    )
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "in.ipynb")
    given = {"seeds": "(1, 2)", "reference": "7", "limit": "3", "hours": "1e-1", "free": "[a]"}
    found = job_parameters(Job(tmp_path / "in.ipynb", tmp_path / "out.ipynb", given))
    assert found == {"seeds": [1, 2], "reference": "7", "limit": 3, "hours": 0.1, "free": ["a"]}


def test_values_in_messages_are_short() -> None:
    assert shown("a" * 10_000).endswith("… (10,002 characters)") and len(shown("a" * 10_000)) < 250
    assert shown(10**5000) == "an integer of about 4,983 digits"
