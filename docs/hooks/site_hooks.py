"""What the site adds to `docs/`: the repository's other pages, its notebooks as executed, a reference of the code.

Nothing of it is written into the repository; MkDocs is handed each page as it is built. A link out of `docs/` leads to
the page made of its target, to a copy of the file, or to a list of a folder's files.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.hooks.notebook_pages import notebook_page

ROOT = Path(__file__).resolve().parents[2]
# Pages outside `docs/`, by their path in the repository, and where they stand in the site.
PAGES = {
    "README.md": "index.md",
    "README.ja.md": "ja.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "reproduce/README.md": "reproduce.md",
    "notebooks/README.md": "notebooks/index.md",
    "results/reference/gpu.md": "gpu.md",
    "results/reference/nkat/README.md": "vision.md",
}
_LINK = re.compile(r"(\]\(|src=\"|href=\")(?!https?:|#|mailto:|data:)([^)\"\s#]+)(#[\w-]+)?(?=[)\"])")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", re.S)


class _Site:
    """Of one build: which page of the site stands for which file, and the formulas that wait for their place."""

    def __init__(self, config: MkDocsConfig, files: Files) -> None:
        self.config, self.files = config, files
        self.formulas: list[str] = []
        self.pages = dict(PAGES)
        self.sources: dict[str, str] = {}  # the other way round

    def add(self, source: str, uri: str, text: str) -> None:
        self.pages[source] = uri
        self.sources[uri] = source
        self.files.append(File.generated(self.config, uri, content=text))

    def target(self, source: str, link: str) -> str:
        """The site's address of what ``link`` in the file ``source`` leads to, from the site's root."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link.replace("%20", " ")))
        if path in self.pages:
            return self.pages[path]
        if self.files.get_file_from_path(path) is not None:  # a picture of a notebook
            return path
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        if (ROOT / path).is_dir():
            return self._listing(path)
        uri = f"files/{path}"
        if self.files.get_file_from_path(uri) is None and (ROOT / path).is_file():
            self.files.append(File.generated(self.config, uri, abs_src_path=str(ROOT / path)))
        return uri

    def _listing(self, folder: str) -> str:
        if f"{folder}/README.md" in self.pages:
            return self.pages[f"{folder}/README.md"]
        uri = f"files/{folder}/index.md"
        if self.files.get_file_from_path(uri) is None:
            names = sorted(path.name for path in (ROOT / folder).iterdir() if path.is_file())
            lines = [f"- [{name}]({posixpath.basename(self.target(f'{folder}/_', name))})" for name in names]
            self.add(folder, uri, "\n".join([f"# {folder}", "", *lines, ""]))
        return uri

    def find_targets(self) -> None:
        """Hand over every file that some page leads to, before MkDocs looks at the list."""
        pages = {**self.sources, **{f"{path.name}": f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}}
        for uri, source in pages.items():
            file = self.files.get_file_from_path(uri)
            assert file is not None  # added above, or of docs/
            self.text(uri, source, file.content_string)

    def text(self, uri: str, source: str, text: str) -> str:
        """The page's Markdown with links that lead somewhere in the site, and formulas taken out."""
        here = posixpath.dirname(uri)

        def rewritten(found: re.Match[str]) -> str:
            return f"{found[1]}{posixpath.relpath(self.target(source, found[2]), here or '.')}{found[3] or ''}"

        parts = _CODE.split(text)
        for number in range(0, len(parts), 2):
            parts[number] = _LINK.sub(rewritten, parts[number])
            if source == "docs/method.md" or source.endswith(".ipynb"):
                parts[number] = _FORMULA.sub(self._formula, parts[number])
        return "".join(parts)

    def _formula(self, found: re.Match[str]) -> str:
        """MathML, which browsers draw themselves; in its place a word that Markdown leaves alone."""
        self.formulas.append(convert(found[1] or found[2], display="block" if found[1] else "inline"))
        return f"FORMULA{len(self.formulas) - 1}ALUMROF"


_site: _Site | None = None


def _current() -> _Site:
    assert _site is not None  # on_files comes first
    return _site


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    assert config.nav is not None
    notebooks = [{path.stem: f"notebooks/{path.stem}.md"} for path in _notebooks()]
    config.nav.insert(5, {"Notebooks": [{"How they are run": "notebooks/index.md"}, *notebooks]})
    config.nav.append({"Code": [{name: f"api/{name}.md"} for name in _rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    global _site
    _site = _Site(config, files)
    for source, uri in PAGES.items():
        _site.add(source, uri, (ROOT / source).read_text(encoding="utf-8"))
    for path in _notebooks():
        text, pictures = notebook_page(path)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{path.stem}/{name}", content=picture))
        _site.add(f"notebooks/{path.name}", f"notebooks/{path.stem}.md", text)
    for name, modules in _rooms().items():
        lines = [f"# {name}", "", *(f"::: {module}\n" for module in modules)]
        files.append(File.generated(config, f"api/{name}.md", content="\n".join(lines)))
    _site.find_targets()
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    uri = page.file.src_uri
    if uri.startswith(("api/", "files/")):
        return markdown
    site = _current()
    return site.text(uri, site.sources.get(uri, f"docs/{uri}"), markdown)


def on_page_content(html: str, **_: Any) -> str:
    return re.sub(r"FORMULA(\d+)ALUMROF", lambda found: _current().formulas[int(found[1])], html)


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def _rooms() -> dict[str, list[str]]:
    """Modules of each room, by its name; those that lie in no room each by its own."""
    package = ROOT / "newllm_core"
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if not parts[-1].startswith("__"):
            found.setdefault(parts[0], []).append(".".join(("newllm_core", *parts)))
    return found
