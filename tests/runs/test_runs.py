"""Files that are whole or absent, checksums, seeds and devices."""

import json
import math
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.runs import files, reproducibility
from newllm_core.runs.files import RunError
from newllm_core.runs.folder import is_complete
from newllm_core.runs.identity import figures_of


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_atomic_write_leaves_the_new_file_alone_in_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "figures.txt"
    files.write_atomically(target, lambda temporary: temporary.write_text("whole"))
    assert target.read_text() == "whole"
    assert names_in(target.parent) == {"figures.txt"}


def test_the_temporary_file_is_in_the_targets_folder_and_not_the_target(tmp_path: Path) -> None:
    seen: list[Path] = []
    files.write_atomically(tmp_path / "target", lambda temporary: (seen.append(temporary), temporary.write_text("x")))
    assert seen[0].is_relative_to(tmp_path) and seen[0].name != "target"


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "note", "x")
    assert stat.S_IMODE((tmp_path / "note").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "figures.txt"
    target.write_text("old")

    def fail_halfway(temporary: Path) -> None:
        temporary.write_text("hal")
        raise error

    with pytest.raises(type(error)):
        files.write_atomically(target, fail_halfway)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == {"figures.txt"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
@settings(deadline=None, max_examples=25)
def test_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    target = tmp_path_factory.mktemp("text") / "note"
    files.write_text(target, text)
    assert target.read_bytes() == text.encode()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, JSON_VALUES, max_size=4))
@settings(deadline=None, max_examples=25)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    target = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(target, value)
    assert files.read_json(target) == value
    files.write_text(target, json.dumps(json.loads(target.read_text("utf-8"))))  # laid out otherwise
    assert files.read_json(target) == value


RECORD = {"loss": 2.5, "epochs": [{"epoch": 10, "missing": None}], "text": "a 1", "sizes": (3, 4), 5: True}


def test_json_with_one_altered_character_is_never_used(tmp_path: Path) -> None:
    """Every digit, letter and bracket of a record, replaced by others of its kind."""
    path = tmp_path / "run.json"
    files.write_json(path, RECORD)
    whole, plain = path.read_text("utf-8"), files.read_json(path)
    for place, character in enumerate(whole):
        for other in ("7" if character != "7" else "8", "x", "}", chr(ord(character) ^ 1)):
            path.write_text(whole[:place] + other + whole[place + 1 :], "utf-8")
            try:
                found = files.read_json(path)
            except RunError as error:
                assert str(path) in str(error) and "Delete it to make it again" in str(error)  # noqa: PT017
            else:
                assert found == plain, (place, other)


@pytest.mark.parametrize("damage", ["cut", "emptied", "without its checksum", "a list", "too deep"])
def test_json_that_is_cut_or_has_no_checksum_is_not_used(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, RECORD)
    whole = path.read_text("utf-8")
    damaged = {
        "cut": whole[:-10], "emptied": "", "without its checksum": json.dumps({"loss": 2.5}), "a list": "[1]",
        "too deep": "[" * 100_000,
    }  # fmt: skip
    path.write_text(damaged[damage], "utf-8")
    with pytest.raises(RunError, match=r"run\.json.* Delete it to make it again"):
        files.read_json(path)


def test_a_deliberate_edit_is_signed_with_the_command_that_the_message_names(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_json(path, RECORD)
    path.write_text(path.read_text("utf-8").replace("2.5", "2.6"), "utf-8")
    with pytest.raises(RunError) as refused:
        files.read_json(path)
    command = str(refused.value).split("stand by: python ")[1].split()
    subprocess.run([sys.executable, *command], check=True, cwd=files.PROJECT_ROOT)
    assert files.read_json(path)["loss"] == 2.6


def test_every_committed_json_file_matches_its_checksum() -> None:
    paths = list((files.PROJECT_ROOT / "results" / "reference").rglob("*.json"))
    assert len(paths) > 100
    for path in paths:
        files.read_json(path)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_json_refuses_figures_that_are_not_finite(tmp_path: Path, figure: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "record.json", {"loss": figure})
    assert not names_in(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"{'a': 1}"])
def test_a_file_that_is_not_json_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    damaged = tmp_path / "run.json"
    damaged.write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json: expected JSON, found something else .* Delete it to make it again"):
        files.read_json(damaged)


def test_sha256_is_the_known_one_of_abc(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_bytes(b"abc") == files.sha256_file(tmp_path / "abc") == known


@given(st.lists(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bfloat16]), min_size=1, max_size=3))
@settings(deadline=None, max_examples=10)
def test_tensors_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, dtypes: list[torch.dtype]) -> None:
    path = tmp_path_factory.mktemp("tensors") / "weights.safetensors"
    tensors = {f"part.{i}": (100 * torch.rand(3, 4)).to(dtype) for i, dtype in enumerate(dtypes)}
    files.save_tensors(path, tensors)
    loaded = files.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_views_and_trained_tensors_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = torch.nn.Parameter(torch.rand(3, 4))
    files.save_tensors(path, {"transposed": weights.T})
    assert torch.equal(files.load_tensors(path)["transposed"], weights.detach().T)


def saved(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    files.save_tensors(path, {"a": torch.arange(6.0)})
    return path


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert files.has_valid_checksum(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not files.has_valid_checksum(path)
    with pytest.raises(RunError, match=r"weights\.safetensors: the file is missing or does not match its checksum"):
        files.load_tensors(path)


def test_a_damaged_checksum_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    files.checksum_path(path).write_bytes(b"\xff\xfe")
    assert not files.has_valid_checksum(path)


@pytest.mark.parametrize("missing", ["weights.safetensors", "weights.safetensors.sha256"])
def test_a_missing_file_or_checksum_is_refused(tmp_path: Path, missing: str) -> None:
    path = saved(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(RunError, match="missing or does not match"):
        files.load_tensors(path)


def test_the_same_seed_gives_the_same_numbers_from_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        reproducibility.seed_everything(7, num_threads=1)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw()
    assert draw() == first
    reproducibility.seed_everything(8, num_threads=1)
    assert random.random() != first[0]


def test_seeding_sets_threads_and_deterministic_algorithms() -> None:
    reproducibility.seed_everything(0, num_threads=1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


PARTS = st.lists(st.integers(-5, 5) | st.sampled_from(["a", "b", "1", ""]), max_size=4)


def draws(parts: list[int | str]) -> list[int]:
    return torch.randint(0, 2**62, (4,), generator=reproducibility.derived_generator(*parts)).tolist()


@given(PARTS, PARTS)
@settings(deadline=None, max_examples=50)
def test_a_derived_generator_depends_on_its_parts_alone(left: list[int | str], right: list[int | str]) -> None:
    torch.rand(1)
    assert (draws(left) == draws(right)) == (left == right)


def test_parts_do_not_run_together() -> None:
    assert draws(["ab", "c"]) != draws(["a", "bc"]) != draws([1, "c"]) != draws(["1", "c"])


def test_cuda_that_is_absent_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="device 'cuda' was asked for, .* use device='cpu' or 'auto'"):
        reproducibility.resolve_device("cuda")
    assert reproducibility.resolve_device("auto") == reproducibility.resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert reproducibility.resolve_device("auto") == reproducibility.resolve_device("cuda") == torch.device("cuda")
    assert reproducibility.resolve_device("cpu") == torch.device("cpu")
    assert reproducibility.device_name(torch.device("cuda")) == "Some GPU"


def test_a_cpu_is_named_with_its_architecture() -> None:
    assert reproducibility.device_name(torch.device("cpu")) == f"CPU {os.uname().machine}"


def git(folder: Path, *command: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def test_the_commit_says_when_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducibility, "PROJECT_ROOT", tmp_path)
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = reproducibility.current_commit()
    assert commit is not None and len(commit) == 40
    (tmp_path / "not tracked").write_text("")
    assert reproducibility.current_commit() == commit
    (tmp_path / "file").write_text("two")
    assert reproducibility.current_commit() == commit + "+changes"


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducibility, "PROJECT_ROOT", tmp_path)
    assert reproducibility.current_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reproducibility.current_commit() is None


def test_versions_are_of_what_is_installed() -> None:
    versions = reproducibility.library_versions()
    assert versions["numpy"] == np.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert None not in versions.values()


def test_a_run_is_complete_when_its_record_is_there(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    (tmp_path / "contexts.safetensors").touch()
    assert not is_complete(tmp_path)
    files.write_json(tmp_path / "run.json", {})
    assert is_complete(tmp_path)


def test_figures_are_the_record_without_its_circumstances_at_every_depth() -> None:
    circumstances = {"start": "now", "seconds": 1.5, "commit": None, "paths": ["/a"]}
    record = {"loss": 2.0, **circumstances, "phase2": {"best": {"seconds": 3, "perplexity": 7.4}, "commit": "abc"}}
    assert figures_of(record) == {"loss": 2.0, "phase2": {"best": {"perplexity": 7.4}}}


def test_circumstances_inside_lists_are_left_out_as_well() -> None:
    assert figures_of({"iterations": [{"seconds": 1.0, "cvfp": 0.5}]}) == {"iterations": [{"cvfp": 0.5}]}


def test_taking_figures_leaves_the_record_alone() -> None:
    record = {"a": {"seconds": 1}}
    figures_of(record)
    assert record == {"a": {"seconds": 1}}
