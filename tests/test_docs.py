"""What the documentation points at is there, and the code cites nothing else."""

import re
import subprocess
from pathlib import Path

import pytest

from reproduce import scale

ROOT = Path(__file__).resolve().parents[1]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"(?m)^#{2,3} (\d+(?:\.\d+)?)\.? ", METHOD))
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
SOURCES = [ROOT / name for name in FILES if name.endswith((".py", ".yaml", ".sh", ".md", ".ipynb"))]


def cited(text: str) -> list[str]:
    """Section numbers after ``docs/method.md``, a line end in between or not."""
    found = re.findall(r"docs/method\.md,\s+(?:#\s+)?(?:sections?\s+)?([\d., and]+)", text)
    return [number for numbers in found for number in re.findall(r"\d+(?:\.\d+)?", numbers)]


def test_every_section_that_is_cited_exists() -> None:
    numbers = {number for path in SOURCES if path.exists() for number in cited(path.read_text(encoding="utf-8"))}
    assert len(numbers) > 10 and numbers <= SECTIONS


def test_no_document_outside_the_repository_is_cited() -> None:
    elsewhere = re.compile(
        r"\bspec(?:ification)?,? sections?\b|\bnkat\.md\b|\bdesign(?:\.md)?,? section\b|design\.md", re.I
    )
    own = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}: {hit}"
        for path in SOURCES
        if path.exists() and path != own
        for hit in elsewhere.findall(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_map_answers_twenty_questions_with_files_that_exist() -> None:
    rows = re.findall(r"(?m)^\| (\d+)\. .*?\? \| (.*) \|$", (ROOT / "docs" / "map.md").read_text(encoding="utf-8"))
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    named = [name for _, answer in rows for name in re.findall(r"`([\w./-]+[/.][\w]*)`", answer) if "/" in name]
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("delimiter", ["$$", "$"])
def test_formulas_are_closed(delimiter: str) -> None:
    for paragraph in METHOD.split("\n\n"):
        text = re.sub(r"`[^`]*`", "", paragraph)
        count = text.count("$$") if delimiter == "$$" else text.replace("$$", "").count("$")
        assert count % 2 == 0, paragraph


def test_the_page_of_scale_is_of_the_records() -> None:
    assert (ROOT / "docs/scale.md").read_text(encoding="utf-8") == scale.page()


def test_one_rank_takes_what_a_device_takes() -> None:
    costs = scale.Costs(contexts=1e-6, iteration=2e-6, step=0.01)
    alone = scale.ranks_seconds(costs, 10**6, 1, whole_steps=True)
    assert alone == pytest.approx(costs.run_seconds(10**6))
    shared, whole = (scale.ranks_seconds(costs, 10**6, 8, whole_steps=flag) for flag in (False, True))
    assert alone / 8 < shared < whole < alone + 6 * 10**6 / 512 * 1e-3
