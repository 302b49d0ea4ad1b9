"""check_environment.py: the sentences, with substituted figures, and the stamp of a finished set-up."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_environment", ROOT / "check_environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


env = load_script()


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 9)])
def test_supported_pythons_pass(version: tuple[int, int, int]) -> None:
    assert env.check_python(version).line() == "[OK] Python " + ".".join(map(str, version))


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13), (3, 14, 0), (4, 0, 0)])
def test_other_pythons_fail_with_the_versions_to_install(version: tuple[int, int, int]) -> None:
    assert env.check_python(version).line() == (
        f"[FAIL] Python {'.'.join(map(str, version))}: 3.11, 3.12 or 3.13 is needed — repair: "
        "install Python 3.11, 3.12 or 3.13, then: PYTHON=python3.12 bash colab_setup.sh setup"
    )


def test_missing_venv_module_names_the_package_to_install() -> None:
    assert env.check_venv([], (3, 11, 2)).line() == "[OK] venv module"
    line = env.check_venv(["ensurepip"], (3, 11, 2)).line()
    assert line.startswith("[FAIL] venv module: this Python lacks ensurepip — repair: ")
    assert "apt-get install python3.11-venv" in line


def test_little_disk_fails_and_says_how_much_to_free() -> None:
    assert env.check_disk(4.0, 4.0).line() == "[OK] disk: 4.0 GB free, 4 GB needed"
    line = env.check_disk(1.5, 4.0).line()
    assert line.startswith("[FAIL] disk: 1.5 GB free, 4 GB needed — repair: free 2.5 GB in ")


def test_little_memory_fails_and_unknown_memory_is_skipped_not_zero() -> None:
    assert env.check_memory(4.1).ok
    assert env.check_memory(2.0).line().startswith("[FAIL] memory: 2.0 GB, 4 GB needed — repair: use a machine")
    assert env.check_memory(None).line().startswith("[SKIP] memory: this system does not say")


def test_memory_of_this_machine_is_positive_or_unknown() -> None:
    memory = env.memory_gb()
    assert memory is None or memory > 0


def test_registry_answer_is_the_probes_exit_status_and_its_last_line_the_reason() -> None:
    assert env.check_registry([sys.executable, "-c", ""]).line() == "[OK] network: pip reaches its package registry"
    line = env.check_registry([sys.executable, "-c", "import sys; sys.exit('first\\nERROR: no route')"]).line()
    assert line.startswith("[FAIL] network: pip cannot reach its package registry (ERROR: no route) — repair: connect")
    assert "PIP_INDEX_URL" in line
    silent = env.check_registry([sys.executable, "-c", "import sys; sys.exit(7)"]).line()
    assert "(exit status 7)" in silent


def test_registry_that_does_not_answer_in_time_fails() -> None:
    waiting = [sys.executable, "-c", "import sys, time; time.sleep(60)"]
    assert "(no answer within 0.2 s)" in env.check_registry(waiting, seconds=0.2).line()


def test_registry_probe_asks_for_a_pinned_package() -> None:
    assert env.PROBE_PACKAGE in env.registry_probe("folder")
    assert env.PROBE_PACKAGE in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("relation", "installed", "line"),
    [
        (">=", "2.13.0+cpu", "[OK] torch 2.13.0+cpu"),
        (">=", "2.6", "[OK] torch 2.6"),
        (">=", "2.5.9", "[FAIL] torch 2.5.9: torch>=2.6 is needed — repair: bash colab_setup.sh setup"),
        ("==", "2.7", "[FAIL] torch 2.7: torch==2.6 is needed — repair: bash colab_setup.sh setup"),
        (">=", None, "[FAIL] torch: not installed, torch>=2.6 is needed — repair: bash colab_setup.sh setup"),
    ],
)
def test_package_lines_say_what_is_there_and_what_is_needed(relation: str, installed: str | None, line: str) -> None:
    assert env.check_package("torch", relation, "2.6", installed).line() == line


def test_every_requirement_is_checked_has_a_reason_and_is_pinned() -> None:
    names = (env.REQUIREMENTS, env.TEST_REQUIREMENTS)
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    wanted = {line.split("#")[0].strip(): line for line in lines if env.parse_requirement(line)}
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    for requirement, line in wanted.items():
        name = re.split("[=>]", requirement)[0].lower().replace("_", "-")
        assert f"\n{name}==" in pins, f"{name} has no version in constraints.txt"
        assert "#" in line, f"{name}: say why it is needed"
    assert len(wanted) >= 20


def test_no_pin_brings_cuda_or_a_local_build() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert not [pin for pin in pins if re.search(r"nvidia|cuda|triton|\+", pin)]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)


def test_requirement_of_another_form_is_refused() -> None:
    assert env.parse_requirement("# a comment") is None and env.parse_requirement("") is None
    with pytest.raises(ValueError, match="expected name==version or name>=version, given 'torch<3'"):
        env.parse_requirement("torch<3  # reason")


def set_up_folder(folder: Path) -> Path:
    for name in env.SETUP_FILES:
        (folder / name).write_text(name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / env.STAMP_NAME).write_text(env.fingerprint(folder) + "\n")
    return folder / ".venv"


@pytest.mark.parametrize("altered", env.SETUP_FILES)
def test_stamp_holds_until_one_of_the_set_up_files_changes(tmp_path: Path, altered: str) -> None:
    environment = set_up_folder(tmp_path)
    assert env.is_set_up(environment, tmp_path)
    (tmp_path / altered).write_text("another line")
    assert not env.is_set_up(environment, tmp_path)


def test_environment_without_a_whole_stamp_is_not_set_up(tmp_path: Path) -> None:
    environment = set_up_folder(tmp_path)
    stamp = environment / env.STAMP_NAME
    stamp.write_text(stamp.read_text()[:10])
    assert not env.is_set_up(environment, tmp_path)
    stamp.unlink()
    assert not env.is_set_up(environment, tmp_path)


def test_checks_of_a_set_up_environment_do_not_use_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "is_set_up", lambda environment: True)
    lines = [check.line() for check in env.machine_checks(Path(".venv"), colab=False)]
    assert lines[-1] == "[SKIP] network: everything is installed already"
    assert any(" 1 GB needed" in line for line in lines), "less disk is needed after the set-up"


def test_one_failed_check_makes_the_report_fail_and_a_skipped_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    good, skipped, bad = env.Check(True, "a"), env.Check(None, "b"), env.Check(False, "c", "d")
    assert env.report([good, skipped])
    assert not env.report([good, bad])
    assert capsys.readouterr().out == "[OK] a\n[SKIP] b\n[OK] a\n[FAIL] c — repair: d\n"


def test_this_environment_has_every_package() -> None:
    done = subprocess.run([sys.executable, ROOT / "check_environment.py", "--packages"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[OK] torch " in done.stdout and "[OK] newllm_core " in done.stdout


def test_what_only_the_tests_need_is_told_apart() -> None:
    everything, notebooks = (
        {check.found.split()[0].rstrip(":") for check in env.package_checks(with_tests)} for with_tests in (True, False)
    )
    assert notebooks < everything and {"pytest", "ruff", "mypy"} <= everything - notebooks
    assert {"torch", "papermill", "newllm_core"} <= notebooks


def test_set_up_script_without_a_verb_explains_itself() -> None:
    done = subprocess.run(["bash", ROOT / "colab_setup.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: bash colab_setup.sh VERB" in done.stderr
    unknown = subprocess.run(["bash", ROOT / "colab_setup.sh", "instal"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "unknown verb 'instal'" in unknown.stderr
