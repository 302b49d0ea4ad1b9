"""Small corpora and altered packages for the tests of newllm_core.data."""

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.packages import PackagedFile, locate


def conversation(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def numbered_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of different length, none equal to another."""
    return [conversation(f"Question {i}, and {'why ' * (i % 5)}so?", f"Answer {i * 7}.") for i in range(count)]


def file_config(path: Path, **values: Any) -> DataConfig:
    """Of a small file; the judged text chooses unless a ``selection_range`` says otherwise."""
    return DataConfig(corpus="file", conversations_file=str(path), **{"selection_range": None, **values})


def install_copy(file: PackagedFile, folder: Path, monkeypatch: pytest.MonkeyPatch, version: str | None = None) -> Path:
    """A copy of the package, code left out, that is found before the installed one; the copied file's path."""
    target = folder / file.module / file.path
    target.parent.mkdir(parents=True)
    (folder / file.module / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    shutil.copy(locate(file), target)
    info = folder / f"{file.package.replace('-', '_')}-{version or file.version}.dist-info"
    info.mkdir()
    content = f"Metadata-Version: 2.1\nName: {file.package}\nVersion: {version or file.version}\n"
    (info / "METADATA").write_text(content)
    monkeypatch.syspath_prepend(str(folder))
    assert metadata.version(file.package) == (version or file.version)
    return target


def hide_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
