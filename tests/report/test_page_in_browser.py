"""The results page in a real browser: no error, no request elsewhere, nothing that axe objects to."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_helpers import Watched, chromium

from newllm_core.report.__main__ import main
from newllm_core.report.style import new_axes, save_figure
from newllm_core.runs.files import REFERENCE_DIR


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of committed records, with a picture beside one of them and one elsewhere."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("experiments", "leaderboard", "vision"):
        shutil.copytree(REFERENCE_DIR / "quick" / name, folder / name)
    figure, _ = new_axes(1)
    save_figure(figure, next((folder / "experiments").iterdir()) / "epochs.png")
    save_figure(figure, folder / "06_controls" / "standings.png")
    assert main([str(folder)]) == 0
    return folder / "index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_results_page_is_accessible_before_and_after_use(browser: Any, results: Path, scheme: str) -> None:
    watched = Watched(browser, results, scheme)
    assert watched.objections() == []
    page = watched.page
    page.locator("tbody input").nth(0).focus()
    page.keyboard.press("Space")
    page.locator("tbody input").nth(1).check()
    page.locator("tbody th a").nth(0).click()
    assert "What came out differently" in page.inner_text("#comparison")
    page.wait_for_selector("details[open] table")
    assert watched.objections() == [] and watched.wrong == []
    page.close()


def test_runs_are_sorted_filtered_and_compared(browser: Any, results: Path) -> None:
    page = Watched(browser, results).page
    rows = page.locator("#table tbody tr")
    every = rows.count()
    assert every == page.locator("tbody input").count() > 20
    page.locator("#words").fill("seed=43 num_samples=12 mcdl")
    assert page.inner_text("#count") == f"1 of {every} runs"
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(f"document.getElementById('count').textContent === '{every} of {every} runs'")
    page.select_option("#parameter", "data.num_samples")
    page.select_option("#value", "12")
    assert page.inner_text("#count") == f"2 of {every} runs"
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="PPL").click()
    shown = page.locator("#table tbody tr td:nth-child(8)").all_inner_texts()
    known = [float(text.replace(",", "")) for text in shown if text != "–"]
    assert known == sorted(known) and shown[: len(known)] == [text for text in shown if text != "–"]
    page.get_by_role("button", name="PPL").click()
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.close()
