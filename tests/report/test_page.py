"""The results page: every run of a folder, its figures as recorded, HTML that is whole and labelled."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from newllm_core.report.__main__ import main
from newllm_core.report.found_runs import IMAGES, KINDS, LANGUAGE, ROW, find_runs
from newllm_core.report.page import PAGE_NAME, results_page
from newllm_core.report.style import new_axes, save_figure
from newllm_core.runs.files import REFERENCE_DIR, read_json, write_json

QUICK = REFERENCE_DIR / "quick"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Elements with their attributes, and what is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run of each kind, a picture beside one of them and one elsewhere, and committed records that are not shown."""
    folder = tmp_path / "results"
    language = next((QUICK / "03_phase2").glob("*/run.json"))
    for source, target in (
        (language, f"experiments/{language.parent.name}/run.json"),
        (next((QUICK / "vision").glob("*/run.json")), "vision/colour-w48/run.json"),
        (next((QUICK / "leaderboard").glob("gru-*.json")), "leaderboard/gru-10s-seed42-d68db531.json"),
        (language, "reference/runs/cpu.json"),
    ):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / target)
    figure, _ = new_axes(1)
    save_figure(figure, folder / "vision/colour-w48/training.png")
    save_figure(figure, folder / "04_alpha/8076c59d/alpha & rank.png")
    (folder / "somebody_elses.json").write_text('{"config": {}}')
    (folder / "notebooks").mkdir()
    (folder / "notebooks/03_phase2.ipynb").write_text("{}")
    return folder


def test_every_kind_is_found_with_the_figures_of_its_record(results: Path) -> None:
    runs, unusable = find_runs(results)
    assert not unusable
    found = {run.kind: run for run in runs}
    assert list(found) == [kind for kind in KINDS if kind in found] == [LANGUAGE, ROW, IMAGES]
    language, row, images = (read_json(found[kind].record_path) for kind in (LANGUAGE, ROW, IMAGES))
    rank = language["phase1"]["effective_rank"]
    assert found[LANGUAGE].what == "chitchat-whisper-tiny.en-10s-C128-MCDL-w0.9-seed42"
    assert found[LANGUAGE].table["PPL"] == language["phase2"]["best"]["validation_perplexity"]
    assert found[LANGUAGE].table["effective rank"] == 100 * rank["validation"] / rank["context_dim"]
    assert found[LANGUAGE].config["model.context_dim"] == 128
    assert found[ROW].what == "gru" and found[ROW].table["PPL"] == row["validation_perplexity"]
    assert found[ROW].table["effective rank"] is None
    assert found[IMAGES].table["accuracy"] == 100 * images["selection"]["accuracy"]
    assert [path.name for path in found[IMAGES].pictures] == ["training.png"]


def test_the_page_is_whole_labelled_and_needs_no_network(results: Path) -> None:
    runs, unusable = find_runs(results)
    text = results_page(results, runs, unusable, [results / "notebooks/03_phase2.ipynb"])
    page = Page(text)
    assert page.open == [] and page.of("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {label.get("for") for label in page.of("label")}
    assert {box["id"] for box in page.of("input") if box.get("type") == "checkbox"} <= labels
    assert all(image["alt"] for image in page.of("img"))
    assert all(head.get("scope") in ("col", "row") for head in page.of("th"))
    linked = [element.get("src") or element.get("href") or "#" for _, element in page.elements]
    assert not [link for link in linked if re.match(r"\w+:|//", link)]
    assert "04_alpha/8076c59d/alpha%20%26%20rank.png" in linked and "notebooks/03_phase2.ipynb" in linked
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [run["what"] for run in data] == [run.what for run in runs]
    assert data[2]["pictures"] == [{"name": "training", "source": "vision/colour-w48/training.png"}]
    assert "reference/" not in text


def test_names_are_text_and_never_markup(results: Path) -> None:
    path = results / "leaderboard/gru-10s-seed42-d68db531.json"
    record = read_json(path)
    record["variant"]["name"] = "</script><b>'bold\" & more"
    write_json(path, record)
    runs, unusable = find_runs(results)
    text = results_page(results, runs, [*unusable, "<i>damaged</i>"], [])
    page = Page(text)
    assert not page.of("b") and not page.of("i") and page.open == []
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])[1]["what"] == record["variant"]["name"]


def test_a_damaged_record_is_named_and_the_others_are_shown(results: Path) -> None:
    path = results / "vision/colour-w48/run.json"
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 43', 1))
    runs, unusable = find_runs(results)
    assert [run.kind for run in runs] == [LANGUAGE, ROW]
    assert len(unusable) == 1 and str(path) in unusable[0]


def test_the_command_says_what_came_out_in_three_lines_and_names_the_page(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(results)]) == 0
    counts, text, images, where = capsys.readouterr().out.strip().split("\n")
    assert counts == "1 executed notebook, 3 runs (1 both phases, 1 leaderboard row, 1 images)."
    recorded = read_json(next((results / "experiments").glob("*/run.json")))["phase2"]["best"]["validation_perplexity"]
    assert f"{recorded:,.1f} of chitchat-whisper-tiny.en-10s-C128-MCDL-w0.9-seed42 (7,141 training tokens)" in text
    assert images.startswith("Images, highest selection accuracy: colour ")
    assert where.endswith(str(results / PAGE_NAME)) and (results / PAGE_NAME).is_file()


def test_embedded_pictures_are_in_the_file(results: Path) -> None:
    assert main([str(results), "--embed"]) == 0
    page = (results / PAGE_NAME).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 and "training.png" not in page


def test_an_empty_folder_makes_a_page_too_and_a_missing_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    assert "0 runs (none)" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 1
    assert "expected a folder of results" in capsys.readouterr().err
