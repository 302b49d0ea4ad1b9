"""colab_setup.sh, with a Python that writes down what pip is asked for instead of asking it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import check_environment as env

ROOT = Path(__file__).resolve().parents[1]
# Everything but pip's installs and the question where the environment is goes to the Python of these tests.
PYTHON = """#!/bin/bash
if [ "$1 $2 $3" = "-m pip install" ]; then
    echo "$@" >> {folder}/asked
    while [ $# -gt 0 ]; do if [ "$1" = -c ]; then cat "$2" >> {folder}/constraints; fi; shift; done
elif [ "$1 $2 $3" = "-m pip list" ]; then
    printf 'torch==2.11.0\\nnumpy==2.1.3\\nsetuptools==75.2.0\\nipykernel==6.17.1\\npandas==2.2.3\\ntorchvision==1.0\\n'
elif [[ "$1" = -c && "$2" = *sys.prefix* ]]; then
    echo {folder}/runtime
else
    exec {python} "$@"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, and the Python above as that of `.venv` and as the runtime's."""
    for name in (*env.SETUP_FILES, "colab_setup.sh", "check_environment.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "runtime").mkdir()
    for place in (tmp_path / ".venv" / "bin" / "python", tmp_path / "bin" / "python3"):
        place.parent.mkdir(parents=True)
        place.write_text(PYTHON.format(folder=tmp_path, python=sys.executable))
        place.chmod(0o755)
    return tmp_path


def run(checkout: Path, verb: str, colab: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}" if colab else os.environ["PATH"]
    released = {"COLAB_RELEASE_TAG": "release" if colab else ""}
    return subprocess.run(
        ["bash", str(checkout / "colab_setup.sh"), verb], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": path, **released, **more},
    )  # fmt: skip


def stamp(environment: Path, checkout: Path) -> None:
    (environment / env.STAMP_NAME).write_text(env.fingerprint(checkout) + "\n")


@pytest.mark.parametrize("colab", [False, True])
def test_what_is_set_up_is_not_set_up_again(checkout: Path, colab: bool) -> None:
    stamp(checkout / ("runtime" if colab else ".venv"), checkout)
    done = run(checkout, "setup", colab)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (checkout / "asked").exists() and "[OK] newllm_core" in done.stdout
    assert ("[OK] pytest " in done.stdout) != colab


def test_an_environment_of_its_own_gets_everything_at_the_tested_versions(checkout: Path) -> None:
    done = run(checkout, "setup")
    assert done.returncode == 0, done.stdout + done.stderr
    packages, own = (checkout / "asked").read_text().splitlines()
    assert "-r requirements.txt -r requirements-tests.txt setuptools>=77 -c constraints.txt" in packages
    assert own.endswith("--no-deps --no-build-isolation -e .")
    assert (checkout / ".venv" / env.STAMP_NAME).read_text().strip() == env.fingerprint(checkout)


def test_a_colab_runtime_keeps_its_own_and_gets_the_tests_tools_with_the_tests_alone(checkout: Path) -> None:
    done = run(checkout, "setup", colab=True)
    assert done.returncode == 0, done.stdout + done.stderr
    packages, own = (checkout / "asked").read_text().splitlines()
    assert "-r requirements.txt" in packages and "requirements-tests" not in packages and "setuptools" not in packages
    assert own.endswith("--no-deps -e .")
    kept = ["torch==2.11.0", "numpy==2.1.3", "setuptools==75.2.0", "ipykernel==6.17.1"]
    assert (checkout / "constraints").read_text().splitlines() == kept
    (checkout / "asked").unlink()
    (checkout / "runtime" / env.STAMP_NAME).unlink()
    run(checkout, "test", colab=True)
    assert "-r requirements.txt -r requirements-tests.txt -c" in (checkout / "asked").read_text()
