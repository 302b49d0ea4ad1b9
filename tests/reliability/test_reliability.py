"""Some of each kind of case; all of them: python -m tests.reliability."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from newllm_core.runs.files import PROJECT_ROOT

KINDS = ("kills", "operations", "damage", "write_faults", "concurrency", "memory", "fields")
SECONDS = 900  # against hanging; it takes about one minute


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every case that was tried, in a process of its own, which forks."""
    home = tmp_path_factory.mktemp("reliability")
    command = [sys.executable, "-m", "tests.reliability", "--few"]
    environment = {**os.environ, "NEWLLM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, timeout=SECONDS, capture_output=True, text=True, check=False
    )
    cases = home / "results" / "reliability" / "cases.jsonl"
    assert cases.is_file(), ended.stderr
    return [json.loads(line) for line in Path(cases).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_through(kind: str, tried: list[dict[str, Any]]) -> None:
    of_kind = [case for case in tried if case["kind"] == kind]
    assert len(of_kind) >= 2
    assert [f"{case['name']}: {case['failed']}" for case in of_kind if case["failed"]] == []
