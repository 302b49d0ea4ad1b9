"""Can this machine run the project? One line a requirement: [OK], [FAIL] with the repair, or [SKIP] with the reason.

colab_setup.sh runs this before it installs anything, so it needs the standard library alone, and its syntax is that of
Python 3.6, so that an old Python can still say that it is too old (annotations newer than that are quoted).

    python check_environment.py                the machine: Python, venv, disk, memory, package registry
    python check_environment.py --packages     what is installed beside this Python, against requirements*.txt
    python check_environment.py --fingerprint  what a finished set-up writes into its stamp file
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
STAMP_NAME = ".newllm-setup"
SETUP_COMMAND = "bash colab_setup.sh setup"
REQUIREMENTS, TEST_REQUIREMENTS = "requirements.txt", "requirements-tests.txt"
SETUP_FILES = (REQUIREMENTS, TEST_REQUIREMENTS, "constraints.txt", "pyproject.toml")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
GIGABYTE = 10**9
DISK_BEFORE_SETUP_GB = 4.0  # the environment with a CPU build of torch takes 2 GB, downloads and results the rest
DISK_AFTER_SETUP_GB = 1.0  # results of the notebooks
MEMORY_GB = 4.0
REGISTRY_SECONDS = 90  # pip's own limit (20 s, one more try) ends most failures long before
PROBE_PACKAGE = "six==1.17.0"  # 11 kB and among the pinned versions, so every registry that can serve the set-up has it


class Check(NamedTuple):
    """One requirement: ``ok`` is None when it was not examined."""

    ok: "bool | None"
    found: str
    repair: str = ""

    def line(self) -> str:
        mark = {True: "[OK]", False: "[FAIL]", None: "[SKIP]"}[self.ok]
        return "{} {}".format(mark, self.found) + (" — repair: " + self.repair if self.ok is False else "")


def check_python(version: "tuple[int, ...]") -> Check:
    text = "Python " + ".".join(map(str, version[:3]))
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return Check(True, text)
    repair = "install Python 3.11, 3.12 or 3.13, then: PYTHON=python3.12 " + SETUP_COMMAND
    return Check(False, text + ": 3.11, 3.12 or 3.13 is needed", repair)


def check_venv(missing: "list[str]", version: "tuple[int, ...]") -> Check:
    """``missing``: those of the modules venv and ensurepip that this Python lacks."""
    if not missing:
        return Check(True, "venv module")
    repair = "sudo apt-get install python{}.{}-venv (Debian, Ubuntu), or a Python from python.org".format(*version[:2])
    return Check(False, "venv module: this Python lacks " + " and ".join(missing), repair)


def check_disk(free_gb: float, needed_gb: float) -> Check:
    text = "disk: {:.1f} GB free, {:.0f} GB needed".format(free_gb, needed_gb)
    return Check(free_gb >= needed_gb, text, "free {:.1f} GB in {}".format(max(0.0, needed_gb - free_gb), ROOT))


def check_memory(total_gb: "float | None") -> Check:
    if total_gb is None:
        return Check(None, "memory: this system does not say how much it has; {:.0f} GB needed".format(MEMORY_GB))
    text = "memory: {:.1f} GB, {:.0f} GB needed".format(total_gb, MEMORY_GB)
    return Check(total_gb >= MEMORY_GB, text, "use a machine, container or Colab runtime with more memory")


def memory_gb() -> "float | None":
    """Physical memory, or the container's limit where that is less; None where the system does not say."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits) / GIGABYTE


def registry_probe(folder: str) -> "list[str]":
    """A small download by pip itself, so that its own configuration, mirrors and proxies apply."""
    options = ["--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--retries=1", "--timeout=20"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", folder, PROBE_PACKAGE]


def check_registry(probe: "list[str]", seconds: float = REGISTRY_SECONDS) -> Check:
    """Run ``probe``; its exit status is the answer, its last line the reason."""
    # A user's wish that pip runs in virtual environments only must not look like a missing network.
    environment = dict(os.environ, PIP_REQUIRE_VIRTUALENV="0")
    try:
        done = subprocess.run(
            probe, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, timeout=seconds, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        reason = "no answer within {:g} s".format(seconds)
    else:
        if done.returncode == 0:
            return Check(True, "network: pip reaches its package registry")
        reason = (done.stdout.strip().splitlines() or ["exit status {}".format(done.returncode)])[-1]
    repair = "connect to the network, or tell pip of your mirror or proxy (PIP_INDEX_URL, HTTPS_PROXY)"
    return Check(False, "network: pip cannot reach its package registry ({})".format(reason), repair)


def fingerprint(root: Path = ROOT) -> str:
    """Changes with what a set-up depends on: the four files, and the folder the editable install points to."""
    digest = hashlib.sha256(str(root).encode())
    for name in SETUP_FILES:
        digest.update(hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()


def is_set_up(environment: Path, root: Path = ROOT) -> bool:
    stamp = environment / STAMP_NAME
    return stamp.is_file() and stamp.read_text().strip() == fingerprint(root)


def machine_checks(environment: "Path | None", colab: bool) -> "list[Check]":
    """Every requirement on the machine; ``environment`` is the one set up, or None."""
    version, complete = tuple(sys.version_info), environment is not None and is_set_up(environment)
    checks = [check_python(version)]
    if not colab:
        missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
        checks.append(check_venv(missing, version))
    free_gb = shutil.disk_usage(str(ROOT)).free / GIGABYTE
    checks.append(check_disk(free_gb, DISK_AFTER_SETUP_GB if complete or colab else DISK_BEFORE_SETUP_GB))
    checks.append(check_memory(memory_gb()))
    if complete:
        checks.append(Check(None, "network: everything is installed already"))
    elif importlib.util.find_spec("pip") is None:
        checks.append(Check(None, "network: this Python has no pip to ask with; the set-up brings one"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            checks.append(check_registry(registry_probe(folder)))
    return checks


def parse_requirement(line: str) -> "tuple[str, str, str] | None":
    """(name, "==" or ">=", version) of a line of a requirements file; None for a line without a requirement."""
    text = line.split("#")[0].strip()
    if not text:
        return None
    match = re.match(r"^([A-Za-z0-9._-]+)(==|>=)([0-9.]+)$", text)
    if match is None:
        raise ValueError("requirements: expected name==version or name>=version, given {!r}".format(text))
    return match.group(1), match.group(2), match.group(3)


def version_numbers(version: str) -> "tuple[int, ...]":
    """The leading numbers of a version: "2.13.0+cpu" gives (2, 13, 0)."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in match.group(0).split(".")) if match else ()


def check_package(name: str, relation: str, wanted: str, installed: "str | None") -> Check:
    """``installed`` is the version found, None when there is none."""
    if installed is None:
        return Check(False, "{0}: not installed, {0}{1}{2} is needed".format(name, relation, wanted), SETUP_COMMAND)
    found, needed = version_numbers(installed), version_numbers(wanted)
    if found == needed or (relation == ">=" and found >= needed):
        return Check(True, "{} {}".format(name, installed))
    return Check(False, "{0} {3}: {0}{1}{2} is needed".format(name, relation, wanted, installed), SETUP_COMMAND)


def installed_version(name: str) -> "str | None":
    from importlib import metadata  # Python 3.8; an older one must get as far as saying so

    # The checkout itself is on the path of this script and would answer for an install that is not there.
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    return next((found.version for found in metadata.distributions(name=name, path=elsewhere)), None)


def package_checks(with_tests: bool, root: Path = ROOT) -> "list[Check]":
    """Of what the notebooks need, and of what the tests need beside."""
    names = [REQUIREMENTS] + [TEST_REQUIREMENTS] * with_tests
    lines = [line for name in names for line in (root / name).read_text(encoding="utf-8").splitlines()]
    wanted = [parsed for parsed in map(parse_requirement, lines) if parsed is not None]
    wanted.append(("newllm_core", ">=", "0"))
    return [check_package(name, relation, version, installed_version(name)) for name, relation, version in wanted]


def report(checks: "list[Check]") -> bool:
    """Print the checks; True when none failed."""
    encoding = sys.stdout.encoding or "ascii"
    for check in checks:
        # A terminal whose encoding has no dash must not turn the message into a traceback.
        print(check.line().encode(encoding, "replace").decode(encoding))
    return all(check.ok is not False for check in checks)


def main(arguments: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description="Check what the project needs, one line a requirement.")
    parser.add_argument("--environment", type=Path, help="folder of the environment, when there is one")
    parser.add_argument("--colab", action="store_true", help="no virtual environment is made on Colab")
    parser.add_argument("--packages", action="store_true", help="check the installed packages, not the machine")
    parser.add_argument("--without-tests", action="store_true", help="leave out what only the tests need")
    parser.add_argument("--is-set-up", action="store_true", help="exit status 0 when nothing needs installing")
    parser.add_argument("--fingerprint", action="store_true", help="print what a finished set-up leaves in its stamp")
    options = parser.parse_args(arguments)
    if options.fingerprint:
        print(fingerprint())
        return 0
    if options.is_set_up:
        current = options.environment is not None and is_set_up(options.environment)
        return 0 if current and all(check.ok for check in package_checks(not options.without_tests)) else 1
    if options.packages:
        return 0 if report(package_checks(not options.without_tests)) else 1
    checks = machine_checks(options.environment, options.colab)
    return 0 if report(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
