"""What memory is left: of the machine, of a control group of either version, of `ulimit`; and what running out says."""

import subprocess
import sys
from pathlib import Path

import pytest

from newllm_core.runs import host_memory
from newllm_core.runs.disk import RunError
from newllm_core.runs.host_memory import free_memory_bytes, memory_errors_named


def control_group(root: Path, path: str, files: dict[str, str]) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def test_a_control_group_of_version_2_and_one_above_it(groups: Path) -> None:
    (groups / "own").write_text("0::/job/step\n")
    control_group(groups, "job/step", {"memory.max": "max", "memory.current": "5000"})
    assert free_memory_bytes() > 10**6
    stat = "anon 5\ninactive_file 300\nactive_file 7"
    control_group(groups, "job", {"memory.max": "9000", "memory.current": "5000", "memory.stat": stat})
    assert free_memory_bytes() == 9000 - 5000 + 300  # what only caches files can go


def test_a_control_group_of_version_1(groups: Path) -> None:
    (groups / "own").write_text("4:memory:/job\n3:cpuset:/\n")
    control_group(groups, "memory/job", {"memory.limit_in_bytes": "7000", "memory.usage_in_bytes": "6000"})
    assert free_memory_bytes() == 1000


LIMITED = """
import resource, sys
from newllm_core.runs.host_memory import free_address_bytes, free_memory_bytes
import psutil
used = psutil.Process().memory_info()
limit, name = (resource.RLIMIT_DATA, "data") if sys.argv[1] == "data" else (resource.RLIMIT_AS, "vms")
resource.setrlimit(limit, (getattr(used, name) + 10**8, resource.RLIM_INFINITY))
print(free_memory_bytes(), free_address_bytes())
"""


@pytest.mark.parametrize("limit", ["data", "address"])
def test_what_ulimit_leaves(limit: str) -> None:
    ended = subprocess.run([sys.executable, "-c", LIMITED, limit], capture_output=True, text=True, check=True)
    memory, address = map(float, ended.stdout.split())
    assert 0.5e8 < memory <= 1e8
    assert (address <= 1e8) == (limit == "address")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_running_out_is_a_sentence(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"memory ran out .* MB are free to this process"), memory_errors_named(tmp_path):
        raise error


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^shapes$"), memory_errors_named(tmp_path):
        raise RuntimeError("shapes")
