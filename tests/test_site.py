"""The site builds without a warning, every link in it leads somewhere, and no page asks another host for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser_helpers import Watched, chromium

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
LOADED = ("src", "srcset", "data", "poster")


class Links(HTMLParser):
    """What a page loads, what it leads to, and the places in it that can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        self.loaded += [values[name] for name in LOADED if name in values]
        if "href" in values:
            (self.loaded if tag == "link" and values.get("rel") != "canonical" else self.linked).append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(site)
        wrong += [f"{name} loads {one}" for one in page.loaded if urlsplit(one).netloc]
        for link in {*page.loaded, *page.linked}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (
                not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].places
            )
            wrong += [] if there else [f"{name} leads to {link}"]
    assert len(pages) > 30 and not wrong, wrong


def test_formulas_are_drawn_by_the_browser_and_none_is_left_as_text(site: Path) -> None:
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count("<math ") > 100
    text = re.sub(r"<(code|pre|math)\b.*?</\1>", "", method, flags=re.S)
    assert "$" not in text and "ALUMROF" not in method


def test_the_reference_has_the_public_functions_with_what_they_say(site: Path) -> None:
    contexts = (site / "api" / "contexts.html").read_text(encoding="utf-8")
    assert 'id="newllm_core.contexts.shooting.exact_contexts"' in contexts
    assert 'id="newllm_core.model.llm.NewLLM"' in (site / "api" / "model.html").read_text(encoding="utf-8")


def test_its_pages_are_accessible_and_ask_nobody_for_anything(site: Path) -> None:
    with chromium() as browser:
        for name in ("index", "results", "leaderboard", "api/contexts", "compatibility", "ja"):
            watched = Watched(browser, site / f"{name}.html")
            # The theme labels each part of the contents by its heading, and two parts of the code may share a name.
            assert watched.wrong == [] and watched.objections(passed_over="landmark-unique") == [], name
            watched.page.close()
