"""The results page: one static file with its own style and script, which opens from disk without a server."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from newllm_core.intervals import NOT_MEASURED
from newllm_core.report.found_runs import FIGURES, KINDS, FoundRun, closing_lines

PAGE_NAME = "index.html"
_TEMPLATE = Template(Path(__file__).with_name("page_template.html").read_text(encoding="utf-8"))
_TEXT_COLUMNS = ("run", "kind", "seed")


def results_page(
    folder: Path, runs: Sequence[FoundRun], unusable: Sequence[str], notebooks: Sequence[Path], *, embed: bool = False
) -> str:
    """The page's HTML, to lie in ``folder``: links and pictures start there.

    Args:
        unusable: a sentence for each record that could not be read.
        notebooks: executed ones, below ``folder``.
        embed: pictures as data inside the page.
    """
    shown = {picture for run in runs for picture in run.pictures}
    others = [path for path in _pictures_below(folder) if path not in shown]
    data = [_data(run, folder, embed) for run in runs]
    return _TEMPLATE.substitute(
        lines="".join(f"<p>{escape(line)}</p>\n" for line in closing_lines(list(runs), list(unusable), len(notebooks))),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        unusable=_unusable(unusable),
        kinds="".join(f"<option>{kind}</option>" for kind in KINDS if any(run.kind == kind for run in runs)),
        count=f"{len(runs)} of {len(runs)} runs",
        heads=_heads(),
        rows="\n".join(_row(number, run) for number, run in enumerate(runs)),
        details="\n".join(_details(number, run, folder) for number, run in enumerate(runs)) or "<p>None yet.</p>",
        pictures=_galleries(others, folder, embed) or "<p>None yet.</p>",
        notebooks=_links(notebooks, folder) or "<p>None yet.</p>",
        # Inside a script element only "</" could end it.
        data=json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/"),
    )


def _heads() -> str:
    heads = [f'<th scope="col" data-column="{1 + column}"><button type="button">{name}</button></th>'
             for column, name in enumerate(_TEXT_COLUMNS)]  # fmt: skip
    for column, (name, (unit, _)) in enumerate(FIGURES.items(), start=1 + len(_TEXT_COLUMNS)):
        heads.append(
            f'<th scope="col" class="n" data-column="{column}"><button type="button">{escape(name)}</button>'
            f"<small>{escape(unit)}</small></th>"
        )
    return "".join(heads)


def _row(number: int, run: FoundRun) -> str:
    seed = "" if run.seed is None else str(run.seed)
    name = escape(run.what)
    cells = [
        f'<td><input type="checkbox" value="{number}" id="tick-{number}">'
        f'<label class="hidden" for="tick-{number}">compare {name}, seed {seed or "none"}</label></td>',
        f'<th scope="row" data-value="{name}"><a href="#run-{number}">{name}</a></th>',
        f"<td>{escape(run.kind)}</td>",
        f'<td data-value="{seed}">{seed or NOT_MEASURED}</td>',
    ]
    for figure, (_, decimals) in FIGURES.items():
        value = run.table[figure]
        text = NOT_MEASURED if value is None else f"{value:,.{decimals}f}"
        cells.append(f'<td class="n" data-value="{"" if value is None else repr(value)}">{text}</td>')
    return f'<tr data-run="{number}">{"".join(cells)}</tr>'


def _details(number: int, run: FoundRun, folder: Path) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    record = run.record_path.relative_to(folder).as_posix()
    return (
        f'<details id="run-{number}" data-run="{number}">'
        f"<summary>{escape(run.what)} ({escape(run.kind)}{seed})</summary>"
        f'<p class="path"><a href="{quote(record)}">{escape(record)}</a></p></details>'
    )


def _data(run: FoundRun, folder: Path, embed: bool) -> Mapping[str, Any]:
    return {
        "kind": run.kind,
        "what": run.what,
        "seed": run.seed,
        "path": run.record_path.relative_to(folder).as_posix(),
        "config": run.config,
        "figures": run.figures,
        "pictures": [{"name": _words(path), "source": _source(path, folder, embed)} for path in run.pictures],
    }


def _pictures_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.png")) if path.relative_to(folder).parts[0] != "reference"]


def _words(picture: Path) -> str:
    return picture.stem.replace("_", " ").replace("-", " ")


def _source(picture: Path, folder: Path, embed: bool) -> str:
    if embed:
        return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    return quote(picture.relative_to(folder).as_posix())


def _galleries(pictures: Sequence[Path], folder: Path, embed: bool) -> str:
    parts = []
    for parent in dict.fromkeys(path.parent for path in pictures):
        where = parent.relative_to(folder).as_posix()
        figures = "".join(
            f'<figure><img loading="lazy" src="{_source(path, folder, embed)}" alt="{escape(_words(path))}">'
            f"<figcaption>{escape(_words(path))}</figcaption></figure>"
            for path in pictures
            if path.parent == parent
        )
        parts.append(f'<h3 class="path">{escape(where)}</h3>\n<div class="pictures">{figures}</div>')
    return "\n".join(parts)


def _links(paths: Sequence[Path], folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in paths]
    items = "".join(f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names)
    return f"<ul>{items}</ul>" if items else ""


def _unusable(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    title = '<h2 id="unusable">Records that cannot be used</h2>'
    return f'<section aria-labelledby="unusable">{title}<ul>{items}</ul></section>'
