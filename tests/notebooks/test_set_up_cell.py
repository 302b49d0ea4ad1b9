"""The notebooks' set-up cell on Colab: it fetches, and repairs what an earlier try left undone."""

import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from shell_helpers import running_shell

from reproduce.address import set_up_source

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
SCRIPT = "[ -f {missing} ] && { echo failed; exit 1; }\necho done >> {log}\n"


def set_up_cell(path: Path) -> str:
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_all_notebooks_have_the_same_set_up_cell() -> None:
    assert len({set_up_cell(path) for path in NOTEBOOKS}) == 1


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository to fetch, whose set-up fails while `network-is-down` is there; /content is a folder here."""
    origin, content = tmp_path / "origin", tmp_path / "content"
    content.mkdir()
    origin.mkdir()
    script = SCRIPT.replace("{missing}", str(tmp_path / "network-is-down")).replace("{log}", str(tmp_path / "log"))
    (origin / "colab_setup.sh").write_text(script)
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*names, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(origin), *command], check=True)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr("builtins.input", lambda _: str(origin))
    monkeypatch.setenv("FROM", "")  # the cell sets it; this takes it back
    monkeypatch.chdir(content)
    return tmp_path


def run_cell(colab: Path, source: str = set_up_cell(NOTEBOOKS[0])) -> None:
    with running_shell() as shell:
        shell.run_cell(source.replace("/content", str(colab / "content"))).raise_error()


def test_a_set_up_that_failed_is_done_again(colab: Path) -> None:
    (colab / "network-is-down").touch()
    run_cell(colab)
    assert not (colab / "log").exists()
    (colab / "network-is-down").unlink()
    os.chdir(colab / "content")  # as after a restart of the runtime
    run_cell(colab)
    assert (colab / "log").read_text() == "done\n"
    assert Path.cwd() == colab / "content" / "new-llm"
    run_cell(colab)
    assert (colab / "log").read_text() == "done\ndone\n", "the set-up itself sees that nothing is missing"
    assert Path.cwd() == colab / "content" / "new-llm"


def test_a_fetch_that_was_cut_off_is_begun_again(colab: Path) -> None:
    (colab / "content" / "fetched" / ".git").mkdir(parents=True)
    run_cell(colab)
    assert (colab / "log").read_text() == "done\n" and not (colab / "content" / "fetched").exists()


def test_a_folder_that_is_there_is_taken_without_a_question(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(colab / "origin", colab / "content" / "new-llm")

    def refuse(_: str) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", refuse)
    run_cell(colab)
    assert (colab / "log").read_text() == "done\n" and Path.cwd() == colab / "content" / "new-llm"


def test_an_address_that_is_set_is_fetched_at_its_revision(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(colab / "origin"), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "tag", "v1.0"], check=True)
    (colab / "origin" / "later.txt").touch()
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "second"], check=True)
    address = "https://example.org/owner/name"
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{colab / 'origin'}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", address)
    run_cell(colab, set_up_source(address, "v1.0"))
    assert (colab / "log").read_text() == "done\n"
    assert not (colab / "content" / "new-llm" / "later.txt").exists()


def test_elsewhere_the_cell_does_nothing(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    run_cell(colab)
    assert not list((colab / "content").iterdir()) and Path.cwd() == colab / "content"
