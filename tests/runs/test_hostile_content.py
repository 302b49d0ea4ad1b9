"""Files that somebody else has written, whatever they hold: a clear error, in bounded time, and nothing written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import ConfigError
from newllm_core.experiment.record_keys import check_run_record
from newllm_core.runs.checkpoint import CheckpointPlace, load_checkpoint
from newllm_core.runs.files import RunError, json_text, read_json, write_json
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.identity import Identity
from newllm_core.studies.row_keys import check_row_record
from newllm_core.vision.record_keys import check_vision_record

IDENTITY = Identity({"run": {"seed": 1}}, {"text": "0" * 64})
NUMBERS = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=20) | st.sampled_from(["../../x", "/etc/passwd", "a\0b", "x" * 5000])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
# Records of a form that is almost right, so that the readers get far.
KEYS = st.sampled_from(
    ["config", "read", "format", "phase1", "phase2", "tokens", "training", "sha256", "rows", "steps"]
)
RECORDS = st.dictionaries(KEYS | TEXTS, VALUES, max_size=6)
SETTINGS = hypothesis_settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("check", [check_run_record, check_row_record, check_vision_record])
@SETTINGS
@given(record=RECORDS)
def test_a_signed_record_of_anything(check: Any, record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, record)
    with pytest.raises(RunError, match="run.json|another run"):
        RunFolder(path, tmp_path / "checkpoint", IDENTITY, check).finished()
    assert files_in(tmp_path) == ["run.json"]


@SETTINGS
@given(record=RECORDS)
def test_a_signed_record_without_a_check_of_its_own(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "phase1.json"
    write_json(path, record)
    with pytest.raises(RunError, match="another run|says its configuration"):
        RunFolder(path, tmp_path / "checkpoint", IDENTITY).finished()


@SETTINGS
@given(content=RECORDS)
def test_a_signed_checkpoint_of_anything(content: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "checkpoint-000001-00000001.json", content)
    with pytest.raises(RunError, match="delete .* to start anew|another run"):
        load_checkpoint(CheckpointPlace(tmp_path, IDENTITY.config), torch.device("cpu"))


@SETTINGS
@given(content=st.binary(max_size=200) | VALUES.map(lambda value: json_text(value).encode("utf-8", "replace")))
def test_bytes_of_anything_as_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match="run.json: .*Delete it to make it again"):
        read_json(path)


@pytest.mark.parametrize("opening", ["[", '{"a":', "[{"])
def test_json_that_is_deeply_nested(opening: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(opening * 100_000)
    with pytest.raises(RunError, match="run.json: expected JSON"):
        read_json(path)


def lines(count: int) -> Iterator[str]:
    yield from ("a: 1\n" for _ in range(count))


HOSTILE_PROFILES = {
    "nested": "a: " + "[" * 20_000,
    "huge number": "num_samples: " + "9" * 5000,
    "repeated": "".join(lines(50_000)),
    "long line": "corpus: " + "x" * 5_000_000,
    "references": "a: &a [x]\nb: [*a, *a]\n" + "\n".join(f"k{i}: [*a, *a]" for i in range(100)),
    "an object of Python's": "a: !!python/object/apply:os.system ['true']",
    "a list": "- 1\n- 2",
    "not text": "\x00\x01",
}


@pytest.mark.parametrize("name", HOSTILE_PROFILES)
def test_a_hostile_profile(name: str, tmp_path: Path) -> None:
    from newllm_core.config.hyperparameters import Settings

    path = tmp_path / "profile.yaml"
    path.write_text(HOSTILE_PROFILES[name])
    with pytest.raises(ConfigError) as caught:
        Settings.from_parameters(load_profile(path))
    assert len(str(caught.value)) < 4000
    assert files_in(tmp_path) == ["profile.yaml"]


@SETTINGS
@given(text=st.text(max_size=200))
def test_a_profile_of_any_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        loaded = load_profile(path)
    except ConfigError as error:
        assert "profile.yaml" in str(error)
    else:
        assert isinstance(loaded, dict) and json.dumps(list(loaded))
