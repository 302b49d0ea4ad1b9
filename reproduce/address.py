"""Where notebooks fetch the project from on Colab: one address, in pyproject.toml, written wherever it is needed.

    python -m reproduce.address https://github.com/OWNER/NAME v1.0    # and what is fetched: a tag or commit
    python -m reproduce.address                                       # none: the notebooks ask, and have no badge

Until somebody who owns an address sets it, it is empty: a stranger could register one that nobody owns.
Writes pyproject.toml, the set-up cell and the badge of every notebook, and the badge of the READMEs.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat

from newllm_core.runs.files import PROJECT_ROOT, write_text

ADDRESS = re.compile(r"https://[\w.-]+(?::\d+)?/[\w.~/-]+")
REVISION = re.compile(r"[\w][\w./-]*")
SET_UP = """import os

if "COLAB_RELEASE_TAG" in os.environ:
    address, revision = "", ""  # python -m reproduce.address writes them; empty: the cell asks
    os.environ["FROM"] = address if address or os.path.isdir("/content/new-llm") else input("Address to fetch from: ")
    fetch = f'git clone -q -- "$FROM" fetched && git -C fetched checkout -q {revision or "HEAD"} && mv fetched new-llm'
    steps = f"cd /content && rm -rf fetched && ([ -d new-llm ] || ({fetch})) && bash new-llm/colab_setup.sh setup"
    get_ipython().system(steps)
    get_ipython().run_line_magic("cd", "/content/new-llm")"""
_EMPTY = 'address, revision = "", ""'
_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
_MARKED = re.compile(r"<!-- colab -->.*?<!-- end -->", re.S)
_NOTEBOOK_BADGE = re.compile(r"\A\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)\n\n")


def check(address: str, revision: str) -> None:
    """Raises ValueError for what git or Colab could not fetch, and for an address without a revision."""
    if address and not ADDRESS.fullmatch(address):
        raise ValueError(f"address: expected https://HOST/OWNER/NAME, given {address!r}")
    if bool(address) != bool(revision) or (revision and not REVISION.fullmatch(revision)):
        raise ValueError(f"revision: expected a tag or commit beside an address, given {revision!r}")


def badge(address: str, revision: str, notebook: str) -> str:
    """Opens that notebook on Colab, which reads from GitHub alone; empty for other hosts and for no address."""
    if not address.startswith("https://github.com/"):
        return ""
    owner_and_name = address.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    where = f"github/{owner_and_name}/blob/{revision}/notebooks/{notebook}"
    return _BADGE.format(link=f"https://colab.research.google.com/{where}")


def set_up_source(address: str, revision: str) -> str:
    """The set-up cell of every notebook."""
    return SET_UP.replace(_EMPTY, f'address, revision = "{address}", "{revision}"')


def write_address(root: Path, address: str, revision: str) -> list[Path]:
    """Write both wherever they stand below ``root``; the files that changed. Raises ValueError as ``check``."""
    check(address, revision)
    notebooks = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    texts = {root / "pyproject.toml": _project(root / "pyproject.toml", address, revision)}
    texts |= {path: _notebook(path, address, revision) for path in notebooks}
    shown = badge(address, revision, notebooks[0].name)
    for path in (root / "README.md", root / "README.ja.md"):
        block = f"<!-- colab -->\n{shown}\n<!-- end -->" if shown else "<!-- colab --><!-- end -->"
        texts[path] = _MARKED.sub(lambda _, block=block: block, path.read_text(encoding="utf-8"))  # type: ignore[misc]
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
    return changed


def _project(path: Path, address: str, revision: str) -> str:
    text = path.read_text(encoding="utf-8")
    for name, value in (("repository", address), ("revision", revision)):
        text, count = re.subn(rf'(?m)^{name} = "[^"]*"$', f'{name} = "{value}"', text)
        if count != 1:
            raise ValueError(f"{path}: expected one line {name} = … in [tool.newllm], found {count}")
    return text


def _notebook(path: Path, address: str, revision: str) -> str:
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    shown = badge(address, revision, path.name)
    first.source = (f"{shown}\n\n" if shown else "") + _NOTEBOOK_BADGE.sub("", first.source)
    set_up = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if "COLAB_RELEASE_TAG" not in set_up.source:
        raise ValueError(f"{path}: expected the set-up cell first among the code cells, found {set_up.source[:60]!r}")
    set_up.source = set_up_source(address, revision)
    return str(nbformat.writes(notebook)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", default="", help="of a repository that you own; none: emptied")
    parser.add_argument("revision", nargs="?", default="", help="a tag or commit, which is what gets fetched")
    arguments = parser.parse_args()
    try:
        changed = write_address(PROJECT_ROOT, arguments.address, arguments.revision)
    except ValueError as error:
        sys.exit(str(error))
    print(*changed, f"{len(changed)} files changed", sep="\n")


if __name__ == "__main__":
    main()
