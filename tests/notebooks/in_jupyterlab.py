"""Every notebook in a real JupyterLab, in a browser without a window. Not one of the tests that run by themselves:

    .venv/bin/python -m pip install -e ".[browser,lab]"                     # and a Chromium
    .venv/bin/python -m pytest -n 1 tests/notebooks/in_jupyterlab.py        # all; -k "runs and 04": one

Each is opened as it is committed, then run to its end with tiny values and each of its sliders moved. A screenshot of
each stays in `build/jupyterlab`, to be looked at; what has one younger than notebook and package is not done again, so
an interrupted call goes on. Remove that folder to do all again.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nbformat
import pytest
from browser_helpers import chromium
from tiny_notebooks import NOTEBOOKS, tiny_notebook

pytest.importorskip("jupyterlab", reason="pip install -e '.[lab]'")
ROOT = NOTEBOOKS.parent
FOLDER = ROOT / "build" / "jupyterlab"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))
LONGEST = 600  # seconds of one notebook, against hanging; by itself the longest takes a minute
CHANGES = {"04_alpha_scaling": {"num_windows": 2}}  # with fewer sizes its sliders could not move
ERROR = "application/vnd.jupyter.error"
SETTINGS = {
    # Every cell is in the page, also those out of sight.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
STATE = """() => ({
    prompts: [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(one => one.innerText.trim()),
    errors: [...document.querySelectorAll('.jp-OutputArea-output[data-mime-type="%s"]')].map(one => one.innerText),
})"""
KERNEL_IS_THERE = "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
WRONG = """() => [
    ...[...document.querySelectorAll('.jp-OutputArea-output img')].filter(one => one.complete && !one.naturalWidth)
        .map(one => 'a picture that does not show: ' + one.alt),
    ...[...document.querySelectorAll('.jp-OutputArea-output')].filter(one => one.scrollWidth > one.clientWidth + 1)
        .map(one => 'wider than its cell: ' + one.innerText.slice(0, 200)),
    ...[...document.querySelectorAll('.jp-OutputArea-output')].filter(one => /displaying widget|Loading widget/.test(
        one.innerText)).map(one => one.innerText),
]"""


class Laboratory:
    """A JupyterLab on the loopback address with settings of its own; results go to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        options = [f"--ServerApp.port={self.address.rpartition(':')[2]}", "--ServerApp.port_retries=0", "--no-browser"]
        options += ["--allow-root", f"--ServerApp.root_dir={self.folder}", "--LabApp.expose_app_in_browser=True"]
        log = self.folder / "server.log"
        with log.open("w") as said:
            command = [sys.executable, "-m", "jupyterlab", *options]
            server = subprocess.Popen(command, env=self._environment(), stdout=said, stderr=said)
            try:
                self._wait_for(server, log)
                yield
            finally:
                server.terminate()
                server.wait(60)

    def _environment(self) -> dict[str, str]:
        for name, values in SETTINGS.items():
            file = self.folder / "settings" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        own = {name: str(self.folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
        own |= {"JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"), "NEWLLM_HOME": str(self.folder / "home")}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {**os.environ, **own, "JUPYTER_TOKEN": self.token, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": path}

    def _wait_for(self, server: "subprocess.Popen[bytes]", log: Path) -> None:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                self.asked("api")
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"JupyterLab does not answer after two minutes: {log.read_text()}")

    def asked(self, what: str, method: str = "GET") -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        with urlopen(Request(f"{self.address}/{what}", headers=headers, method=method)) as answer:
            return bytes(answer.read())

    def stop_kernels(self) -> None:
        for session in json.loads(self.asked("api/sessions")):
            self.asked(f"api/sessions/{session['id']}", "DELETE")


@pytest.fixture(scope="module")
def laboratory(worker_id: str) -> Iterator[Laboratory]:
    laboratory = Laboratory(FOLDER / worker_id)
    laboratory.folder.mkdir(parents=True, exist_ok=True)
    with laboratory.serving():
        yield laboratory


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class OpenNotebook:
    """One notebook in a page of its own, and what its scripts complained about."""

    def __init__(self, browser: Any, laboratory: Laboratory, notebook: nbformat.NotebookNode, name: str) -> None:
        nbformat.write(notebook, laboratory.folder / f"{name}.ipynb")
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{laboratory.address}/lab/tree/{name}.ipynb?reset&token={laboratory.token}")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        self.page.wait_for_function(KERNEL_IS_THERE, timeout=120_000)  # before, its menu does nothing

    def run(self) -> None:
        """All cells, from the menu; fails at the first error, or at a cell that has no number in the end."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            state = self.page.evaluate(STATE % ERROR)
            assert not state["errors"], state["errors"]
            if all(prompt[1:2].isdigit() for prompt in state["prompts"]):
                return
            self.page.wait_for_timeout(500)
        pytest.fail(f"not all cells have run after {LONGEST} s: {state['prompts']}")

    def move_sliders(self) -> int:
        """How many there are; each goes a step up, or down from its end, and what it draws must be another picture."""
        handles = self.page.locator(".jp-OutputArea-output .widget-slider .noUi-handle")
        picture = self.page.locator(".jp-OutputArea-output .widget-image")
        for number in range(handles.count()):
            before, handle = picture.get_attribute("src"), handles.nth(number)
            at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
            handle.focus()
            handle.press("ArrowLeft" if at_end else "ArrowRight")
            shown = "before => document.querySelector('.jp-OutputArea-output .widget-image').src != before"
            self.page.wait_for_function(shown, arg=before, timeout=60_000)
        return int(handles.count())

    def look(self, picture: Path) -> None:
        """Fails at what looks wrong; the whole notebook goes into ``picture``, as far as a browser can draw."""
        height = self.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        self.page.evaluate("() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0 }")
        self.page.set_viewport_size({"width": 1280, "height": min(int(height) + 200, 16_000)})
        self.page.wait_for_timeout(1000)
        self.page.screenshot(path=str(picture.with_suffix(".partial.png")))
        wrong = [*self.page.evaluate(WRONG), *self.page.evaluate(STATE % ERROR)["errors"], *self.complaints]
        assert not wrong, wrong
        picture.with_suffix(".partial.png").replace(picture)


def _skip_if_seen(picture: Path, name: str) -> None:
    read = [NOTEBOOKS / f"{name}.ipynb", *Path(__file__).parent.glob("*.py"), *(ROOT / "newllm_core").rglob("*.py")]
    if picture.exists() and picture.stat().st_mtime > max(file.stat().st_mtime for file in read):
        pytest.skip(f"seen before: {picture}")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_what_it_shows(browser: Any, laboratory: Laboratory, name: str) -> None:
    picture = FOLDER / f"{name}_committed.png"
    _skip_if_seen(picture, name)
    opened = OpenNotebook(browser, laboratory, nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), name)
    opened.look(picture)
    opened.page.close()
    laboratory.stop_kernels()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_to_its_end(browser: Any, laboratory: Laboratory, name: str) -> None:
    picture = FOLDER / f"{name}.png"
    _skip_if_seen(picture, name)
    notebook = tiny_notebook(NOTEBOOKS / f"{name}.ipynb", **CHANGES.get(name, {}))
    for cell in (one for one in notebook.cells if one.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    opened = OpenNotebook(browser, laboratory, notebook, f"{name}_tiny")
    opened.run()
    assert opened.move_sliders() == notebook_sliders(notebook)
    opened.look(picture)
    opened.page.close()
    laboratory.stop_kernels()


def notebook_sliders(notebook: nbformat.NotebookNode) -> int:
    return sum(cell.source.count("ipywidgets.IntSlider(") for cell in notebook.cells)
