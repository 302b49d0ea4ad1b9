"""One address, written everywhere by one command; none is written where nobody owns one."""

import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest

from reproduce.address import ADDRESS, write_address

ROOT = Path(__file__).resolve().parents[2]
FILES = ["pyproject.toml", "README.md", "README.ja.md"]
MINE = "https://github.com/somebody/their-fork"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the command reads and writes, with two of the notebooks."""
    (tmp_path / "notebooks").mkdir()
    for name in [*FILES, "notebooks/01_data_prep.ipynb", "notebooks/02_phase1.ipynb"]:
        shutil.copy(ROOT / name, tmp_path / name)
    write_address(tmp_path, "", "")
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text(encoding="utf-8") for path in folder.rglob("*.*") if path.is_file()}


def test_notebooks_and_badges_say_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["newllm"]
    address, revision = project["repository"], project["revision"]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        first, *others = nbformat.read(path, as_version=4).cells
        assert ("colab-badge" in first.source) == address.startswith("https://github.com/")
        set_up = next(cell.source for cell in others if cell.cell_type == "code")
        assert f'address, revision = "{address}", "{revision}"' in set_up


def test_an_address_is_written_everywhere_and_taken_back_whole(checkout: Path) -> None:
    before = texts(checkout)
    assert len(write_address(checkout, MINE, "v1.0")) == 5
    after = texts(checkout)
    assert not [name for name, text in after.items() if text == before[name]]
    notebook = nbformat.read(checkout / "notebooks" / "02_phase1.ipynb", as_version=4)
    where = "https://colab.research.google.com/github/somebody/their-fork/blob/v1.0/notebooks/02_phase1.ipynb"
    assert f"]({where})" in notebook.cells[0].source
    assert write_address(checkout, MINE, "v1.0") == []
    write_address(checkout, "https://github.com/another/one", "0a1b2c3")
    assert "their-fork" not in "".join(texts(checkout).values())
    write_address(checkout, "", "")
    assert texts(checkout) == before


def test_colab_has_no_badge_for_another_host(checkout: Path) -> None:
    write_address(checkout, "https://codeberg.org/somebody/fork", "v1.0")
    source = (checkout / "notebooks" / "02_phase1.ipynb").read_text(encoding="utf-8")
    assert "codeberg.org/somebody/fork" in source and "colab-badge" not in source


@pytest.mark.parametrize(
    ("address", "revision"),
    [
        ("github.com/a/b", "v1"), ("http://github.com/a/b", "v1"), ("https://github.com/a/b; rm -r x", "v1"),
        ('https://github.com/a/"b', "v1"), (MINE, ""), ("", "v1"), (MINE, "v1; ls"), (MINE, "--help"),
    ],
)  # fmt: skip
def test_what_could_not_be_fetched_is_refused_and_nothing_is_written(
    checkout: Path, address: str, revision: str
) -> None:
    before = texts(checkout)
    with pytest.raises(ValueError, match="expected"):
        write_address(checkout, address, revision)
    assert texts(checkout) == before and (not address or ADDRESS.fullmatch(MINE))
