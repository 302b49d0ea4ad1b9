"""The committed records are those of their list; another one is named, with the command that accepts it."""

import shutil
from pathlib import Path

import pytest

from newllm_core.report.__main__ import main
from newllm_core.report.manifest import UNCOMMITTED, manifest_problems
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json, write_json
from reproduce import records


def test_the_committed_records_are_those_of_their_list() -> None:
    assert list(manifest_problems(REFERENCE_DIR)) == []
    ignored = (PROJECT_ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = {line for line in ignored if line.startswith("/results/reference/") and line.endswith("/")}
    assert {f"/results/reference/{name}" for name in UNCOMMITTED} == folders


def test_a_record_that_is_not_as_listed_is_named_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("changed", "new", "gone"):
        shutil.copy(REFERENCE_DIR / "context_source.json", folder / f"{name}.json")
    (folder / "new.json").rename(tmp_path / "new.json")
    command = ["list", str(folder)]
    monkeypatch.setattr("sys.argv", ["reproduce.records", *command])
    records.main()
    assert main([str(folder)]) == main([str(tmp_path)]) == 0
    write_json(
        folder / "changed.json", {**read_json(folder / "changed.json"), "rows": []}
    )  # with a checksum of its own
    (folder / "gone.json").unlink()
    (tmp_path / "new.json").rename(folder / "new.json")
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"{folder}/{name}.json" for name in ("changed", "new", "gone")]
    assert all(f"python -m reproduce.records list {folder}" in line for line in said)
    records.main()
    assert main([str(tmp_path)]) == 0
