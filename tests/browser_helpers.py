"""Pages in a real browser, for tests; they are skipped where it, or what drives it, is missing.

Needs `pip install -e ".[browser]"` and a Chromium, such as Debian's package.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser without a window. Skips the test that asks for one where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    if not CHROMIUM:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """An open page, with what went wrong in it and what it asked other hosts for."""

    def __init__(self, browser: Any, file: Path, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on("request", lambda request: self._local(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_load_state("load")

    def _local(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(url)

    def objections(self, passed_over: str = "") -> list[str]:
        """Axe's, with the first element of each; one rule may be passed over, by its name."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -e '.[browser]'")
        found = axe.Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["id"] != passed_over]
