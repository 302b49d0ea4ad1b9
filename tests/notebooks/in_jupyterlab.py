"""Every notebook in JupyterLab, in a browser without a window: opened, run at a tiny profile, each slider moved.

    python -m tests.notebooks.in_jupyterlab FOLDER                     # all; about ten minutes
    python -m tests.notebooks.in_jupyterlab FOLDER 00_tour 04_alpha    # those whose names begin so

FOLDER gets the tiny notebooks, their results, and a screenshot of each, to be looked at. Status 1, with what was found,
where a cell shows an error, a cell has not run, or a slider changes no picture. Outside the tests and .ci/run: it needs
`pip install -e ".[browser]"`, a Chromium and JupyterLab; the last may have an environment of its own
(JUPYTERLAB=/its/bin/python, with jupyterlab_widgets beside it), since it brings 60 packages.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # as pytest has them

import nbformat  # noqa: E402
from browser_helpers import chromium  # noqa: E402
from papermill.iorw import load_notebook_node  # noqa: E402
from papermill.parameterize import parameterize_notebook  # noqa: E402
from test_run_again import INJECTED, NOTEBOOKS, TINY, parameters_cell, with_values  # noqa: E402

from newllm_core.batch.jobs import notebook_parameters  # noqa: E402

PORT = 8899
LONGEST = 600  # seconds of one notebook
# All cells in the page, also those out of sight.
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
STATE = """() => ({
    prompts: [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(one => one.innerText.trim()),
    errors: [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]')].map(
        one => one.innerText),
})"""


def tiny(path: Path, folder: Path) -> Path:
    """A copy of a notebook without outputs, with the smallest values that it runs with."""
    own, notebook = notebook_parameters(path), load_notebook_node(str(path))
    cell = parameters_cell(notebook)
    cell.source = with_values(cell.source, {name: value for name, value in TINY.items() if name in own})
    if "corpus" in own:
        notebook = parameterize_notebook(notebook, INJECTED)
    for cell in (one for one in notebook.cells if one.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    target = folder / path.name
    nbformat.write(notebook, target)
    return target


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """A server of its own on the loopback address; its kernel is this Python's, its results go to ``folder``."""
    for name, values in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    environment = {
        **os.environ, "JUPYTER_PATH": str(folder / "jupyter"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_PREFER_ENV_PATH": "0", "NEWLLM_HOME": str(folder / "home"), "TQDM_DISABLE": "1",
    }  # fmt: skip
    options = [f"--ServerApp.port={PORT}", "--IdentityProvider.token=", "--no-browser", "--allow-root"]
    options += ["--KernelSpecManager.ensure_native_kernel=False", f"--ServerApp.root_dir={folder}"]
    python = os.environ.get("JUPYTERLAB", sys.executable)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([python, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{PORT}"
        _wait_for(address, server, folder / "server.log")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        if server.poll() is not None:
            sys.exit(log.read_text())
        try:
            urlopen(f"{address}/api").close()
            return
        except OSError:
            time.sleep(1)
    sys.exit(f"{address}: no answer; {log}")


def run(page: Any, address: str, notebook: Path) -> list[str]:
    """What is wrong with one notebook, opened, run from its menu, its sliders moved; a screenshot beside it."""
    page.goto(f"{address}/lab/tree/{notebook.name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_selector(
        ".jp-NotebookPanel-toolbar [data-status=idle], .jp-Notebook-ExecutionIndicator", timeout=120_000
    )
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    wrong = _wait_until_run(page)
    moved = _move_sliders(page) if not wrong else []
    height = page.evaluate(
        "() => document.querySelector('.jp-Notebook .jp-WindowedPanel-inner, .jp-Notebook').scrollHeight"
    )
    page.set_viewport_size({"width": 1280, "height": min(int(height) + 200, 16_000)})
    page.wait_for_timeout(1000)
    page.screenshot(path=str(notebook.with_suffix(".png")))
    page.set_viewport_size({"width": 1280, "height": 900})
    return wrong + moved


def _wait_until_run(page: Any) -> list[str]:
    state: dict[str, list[str]] = {"prompts": [], "errors": []}
    for _ in range(LONGEST):
        state = page.evaluate(STATE)
        if state["errors"]:
            return [error[-600:] for error in state["errors"]]
        if state["prompts"] and all(prompt[1:2].isdigit() for prompt in state["prompts"]):
            return []
        page.wait_for_timeout(1000)
    return [f"not all cells have run after {LONGEST} s: {state['prompts']}"]


def _move_sliders(page: Any) -> list[str]:
    """Each slider a step up, or down from its end; what it draws is another picture then."""
    wrong = []
    sliders = page.locator(".jp-OutputArea-output .widget-slider .noUi-handle")
    for number in range(sliders.count()):
        handle = sliders.nth(number)
        low, high, now = (handle.get_attribute(f"aria-value{name}") for name in ("min", "max", "now"))
        if low == high:
            continue  # a tiny profile may leave it nowhere to go
        picture = page.locator(".jp-OutputArea-output .widget-image").first
        before = picture.get_attribute("src")
        handle.focus()
        handle.press("ArrowLeft" if now == high else "ArrowRight")
        page.wait_for_timeout(4000)
        if picture.get_attribute("src") == before:
            wrong.append(f"slider {number} ({low} to {high}, at {now}): the picture stays as it was")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="how a notebook's name begins")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if arguments.names:
        chosen = [path for path in chosen if path.name.startswith(tuple(arguments.names))]
    found = {}
    with jupyterlab(folder) as address, chromium() as browser:
        for path in chosen:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            began = time.monotonic()
            found[path.stem] = run(page, address, tiny(path, folder))
            print(
                f"{path.stem}: {found[path.stem] or 'as it should be'} ({time.monotonic() - began:.0f} s)", flush=True
            )
            page.close()
    sys.exit(int(any(found.values())))


if __name__ == "__main__":
    main()
