"""The README and the pages beside it: short enough, pointing at what is there, and saying what the records say."""

import re
from pathlib import Path

import pytest
import yaml

import newllm_core
from newllm_core.comparison.leaderboard import Standing, perplexity_ratio, standings
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.scaling.growth import growth_from_record
from newllm_core.studies.rows import read_rows
from reproduce.results_tables import PAGE, TABLES
from reproduce.tables.text import filled
from reproduce.thumbnails import FOLDER

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md", "reproduce/README.md", "benchmarks/README.md",
         "notebooks/README.md", "results/reference/nkat/README.md"]  # fmt: skip
MAX_WORDS, MAX_FIRST_SCREEN = 1_600, 45


def test_the_readme_is_short_enough() -> None:
    assert len(README.split()) <= MAX_WORDS
    first_screen = README[: README.index("## Six lines of Python")]
    assert len(first_screen.splitlines()) <= MAX_FIRST_SCREEN


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(name: str) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text) + re.findall(r'src="(?!https?:)([^"]+)"', text)
    broken = []
    for link in links:
        path, _, heading = link.partition("#")
        target = (page.parent / path) if path else page
        there = target.exists() and (not heading or heading in headings(target))
        broken += [] if there else [link]
    assert links and not broken


def headings(page: Path) -> set[str]:
    """What a link to a heading may say, as GitHub and the site name them."""
    lines = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_every_notebook_has_its_row_and_its_picture(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        assert f"(notebooks/{notebook.name})" in text
        assert f"docs/thumbnails/{notebook.stem}.png" in text and (FOLDER / f"{notebook.stem}.png").is_file()


@pytest.fixture(scope="module")
def found() -> dict[str, Standing]:
    every = standings(read_rows(REFERENCE_DIR / "leaderboard"))
    return {one.name: one for one in every if one.tokens == 57_173}


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_the_first_screens_figures_are_the_records(name: str, found: dict[str, Standing]) -> None:
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
    ratio = perplexity_ratio(found["trained"], found["untrained"])
    assert f"× {ratio.text('{:.2f}')}" in text and ratio.verdict == "not distinguishable"
    network = "gru-cache-ngrams"
    assert {f"{found[one].perplexity.value:.0f}" for one in ("best", network)} <= set(re.findall(r"\d+", text))
    little = perplexity_ratio(found["best"], found[network])
    best = growth_from_record(read_json(REFERENCE_DIR / "growth.json")).named("best")
    assert best is not None
    much = best.sizes[-1].ratio
    assert much is not None
    for ratio, tokens in ((little, found["best"].tokens), (much, best.sizes[-1].tokens)):
        assert f"× {ratio.text('{:.2f}')}" in text and f"{tokens:,}" in text
    brown = {one.name: f"{one.perplexity.value:.0f}" for one in standings(read_rows(REFERENCE_DIR / "brown"))}
    assert {brown[one] for one in ("best", network, "best-alone", "gru")} <= set(re.findall(r"\d+", text))
    quick = next((REFERENCE_DIR / "quick" / "03_phase2").glob("*/run.json"))
    assert f"**{read_json(quick)['phase2']['best']['validation_perplexity']:,.0f}**" in text
    streams = read_json(REFERENCE_DIR / "benchmark_core.json")["parts"]["a"]["figures"]["streams"]
    fastest = max(stream["ratio"]["exact_contexts"] for stream in streams)
    assert f"{fastest:.1f}" in text
    contexts = read_json(REFERENCE_DIR / "gpu.json")["speed"]["contexts"]
    token_ms = contexts["loops"]["plain loop"]["median_ms"] / contexts["loops"]["tokens"]  # as on the CPU, the faster
    assert f"{token_ms * contexts['tokens'] / contexts['exact']['median_ms']:,.0f}" in text


def test_the_results_page_says_what_the_records_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table ([\w-]+) -->", page)) == set(TABLES)
    assert filled(page, TABLES) == page, "python -m reproduce.results_tables writes it anew"


def test_the_tests_that_the_compatibility_page_names_are_there() -> None:
    rows = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", rows)
    assert len(named) > 10
    assert not [test for file, test in named if test and f"def {test}(" not in (ROOT / file).read_text("utf-8")]


def test_the_citation_names_this_version_and_no_person() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == newllm_core.__version__ and citation["cff-version"] == "1.2.0"
    assert [set(author) for author in citation["authors"]] == [{"name"}]
    assert f"## {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
