"""`import newllm_core as nl`: what it offers, and that importing it, or a part, does not import the whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import newllm_core as nl
from newllm_core import api
from newllm_core.config.schema import ConfigError

TINY = {
    "num_samples": 2, "embeddings": "random", "embed_dim": 16, "context_dim": 8, "max_iterations": 5, "max_epochs": 1,
    "validation_range": (1011, 1013), "selection_range": None, "num_threads": 1,
}  # fmt: skip


def test_every_name_and_room_is_there() -> None:
    for name in dir(nl):
        assert getattr(nl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'runn'; expected one of NewLLM, Run"):
        nl.runn  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import newllm_core", {"torch", "numpy", "newllm_core.config"}),
        ("import newllm_core as nl; nl.Settings()", {"torch", "newllm_core.model", "newllm_core.vision"}),
        ("from newllm_core import losses", {"newllm_core.model", "newllm_core.data", "matplotlib", "transformers"}),
        ("import newllm_core as nl; nl.exact_contexts", {"newllm_core.report", "newllm_core.training", "matplotlib"}),
        ("from newllm_core import report", {"newllm_core.training", "newllm_core.model", "newllm_core.vision"}),
        ("import newllm_core as nl; nl.run", {"newllm_core.vision", "newllm_core.batch", "optuna", "kornia", "nltk"}),
    ],
)  # fmt: skip
def test_a_part_is_imported_without_the_rest(code: str, absent: set[str]) -> None:
    show = f"import sys; {code}; print(*({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp932", "utf-8"])
def test_results_print_on_a_terminal_of_any_encoding(encoding: str) -> None:
    code = "import newllm_core; print('α = -0.4 ± 0.1 … –')"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    shown = done.stdout.decode(encoding)
    assert " = -0.4 " in shown and (encoding != "utf-8" or shown == "α = -0.4 ± 0.1 … –\n")


def test_results_go_where_they_are_asked_to_or_to_the_checkout_or_where_one_works(tmp_path: Path) -> None:
    show = "from newllm_core.runs import files; print(files.RESULTS_DIR, files.DATA_DIR, files.REFERENCE_DIR)"
    package, root = Path(nl.__file__).parent, Path(nl.__file__).parents[1]
    installed = tmp_path / "site-packages"
    shutil.copytree(package, installed / "newllm_core", ignore=shutil.ignore_patterns("__pycache__"))
    for path, home, expected in (
        (root, "", root),
        (root, str(tmp_path / "mine"), tmp_path / "mine"),
        (installed, "", tmp_path),
        (installed, "~/mine", Path.home() / "mine"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(path), "NEWLLM_HOME": home}
        command = [sys.executable, "-c", show]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        reference = path / "results" / "reference"
        assert done.stdout.split() == [str(expected / "results"), str(expected / "data"), str(reference)]


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(nl.__file__).with_name("py.typed").is_file()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def _results_here(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RESULTS_DIR", results)


@pytest.mark.parametrize("phase1_only", [True, False])
def test_a_run_reports_shows_and_has_its_model(phase1_only: bool, results: Path) -> None:
    settings = nl.Settings.from_parameters(TINY)
    run = nl.run(settings, phase1_only=phase1_only)
    assert f"{run.record['tokens']['train']:,}" in run.report()
    for name in ("phase1", "spectrum", "forgetting"):
        run.show(name)
        with Image.open(run.folder / f"{name}.png") as picture:
            assert min(picture.size) > 100
        assert (run.folder / f"{name}.svg").stat().st_size > 1000
    assert len(run.table("iterations")) == run.record["phase1"]["iterations"]
    trained = {name for name, weight in run.model.context_block.named_parameters() if weight.std() > 0}
    assert trained and run.folder.is_relative_to(results)
    assert nl.run(settings, phase1_only=phase1_only).record["phase1"] == run.record["phase1"], "read, not made again"
    with pytest.raises(ConfigError, match="unknown picture 'epoch'. Did you mean 'epochs'"):
        run.show("epoch")
    if phase1_only:
        with pytest.raises(ConfigError, match="picture 'epochs': this run ended after Phase 1"):
            run.show("epochs")
    else:
        run.show("epochs")
        assert len(run.table("epochs")) == 1


def test_a_gallery_saves_and_lists_what_it_shows(results: Path) -> None:
    settings = nl.Settings.from_parameters(TINY)
    gallery = nl.gallery("mine", settings.data)
    assert gallery.folder.parent == results / "mine"
    run = nl.run(settings, phase1_only=True)
    gallery.show("phase1", nl.report.plot_phase1(run.record))
    gallery.table("iterations", run.table("iterations"))
    assert [Path(line).name for line in str(gallery).splitlines()] == ["iterations.csv", "phase1.png", "phase1.svg"]
