"""A right entry is put in with everything that is made of it; a wrong one leaves everything as it was."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_rows import LARGE, NAME, SMALL, copied_place, new_rows, written

from newllm_core.comparison.leaderboard import standings
from newllm_core.report.manifest import manifest_problems
from newllm_core.runs.files import read_json, sha256_file, write_json
from reproduce.leaderboard.__main__ import main
from reproduce.leaderboard.entries import board_record
from reproduce.leaderboard.page import cell, page
from reproduce.leaderboard.picture import plot_boards
from reproduce.leaderboard.place import Place, file_name
from reproduce.leaderboard.rules import BOARDS

COMMAND = "python my_row.py"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "reference").mkdir()
    return copied_place(tmp_path / "reference")


def entry(place: Place, name: str, tokens: int = SMALL) -> dict[str, Any]:
    (board,) = [one for one in read_json(place.board)["boards"] if one["train_tokens"] == tokens]
    (found,) = [one for one in board["entries"] if one["name"] == name]
    return dict(found)


def add(place: Place, files: list[Path], *more: str) -> None:
    main(["add", *map(str, files), *more], place)


def test_page_and_list_are_made_of_the_committed_rows() -> None:
    place = Place()
    record = read_json(place.board)
    assert record == board_record(place), "python -m reproduce.leaderboard page makes it anew"
    assert place.page.read_text(encoding="utf-8") == page(record), "python -m reproduce.leaderboard page makes it anew"
    assert place.picture.is_file() and place.picture.with_suffix(".svg").is_file()


def test_committed_rows_are_called_as_an_entry_would_be_and_all_stand_on_a_board() -> None:
    rows = Place().committed()
    assert {name: file_name(row) for name, row in rows.items()} == {name: name for name in rows}
    entries = [one for board in read_json(Place().board)["boards"] for one in board["entries"]]
    shown = {(one.name, one.tokens): {row["start"] for row in one.records} for one in standings(list(rows.values()))}
    assert len(entries) == len(shown)
    for one in entries:
        files = {Place().rows / name: digest for name, digest in one["files"].items()}
        assert all(sha256_file(path) == digest for path, digest in files.items())
        tokens = rows[next(iter(one["files"]))]["tokens"]["train"]
        assert {read_json(path)["start"] for path in files} == shown[one["name"], tokens]


def test_an_entry_is_put_in_with_all_that_is_made_of_it(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in place.rows.iterdir()}
    rows = new_rows()
    add(place, written(rows, tmp_path), "--command", f" {COMMAND} ")
    assert str(place.page) in capsys.readouterr().out
    new = sorted({path.name for path in place.rows.iterdir()} - before)
    assert [name.rsplit("-", 1)[0] for name in new] == [f"{NAME}-80s-seed{seed}" for seed in (42, 43, 44)]
    assert [read_json(place.rows / name) for name in new] == rows
    mine = entry(place, NAME)
    (standing,) = standings(rows)
    assert mine["validation_perplexity"] == pytest.approx(standing.perplexity.value, rel=1e-5)
    assert mine["interval"] == pytest.approx(standing.perplexity.interval, rel=1e-5)
    assert mine["files"] == {name: sha256_file(place.rows / name) for name in new}
    assert (mine["command"], mine["seeds"], mine["chosen_on"], mine["marks"]) == (
        COMMAND,
        [42, 43, 44],
        "selection",
        [],
    )
    assert mine["commits"] == ["0123456789abcdef0123456789abcdef01234567"]
    assert mine["date"] == max(row["start"] for row in rows)[:10]
    text = place.page.read_text(encoding="utf-8")
    assert f"| **{NAME}**: a network of my own | " in text and f"\n{COMMAND}\n" in text and "`0123456`" in text
    assert NAME in place.picture.with_suffix(".svg").read_text(encoding="utf-8")
    assert list(manifest_problems(place.reference)) == []


def test_the_same_rows_again_change_nothing_and_keep_their_command(place: Place, tmp_path: Path) -> None:
    files = written(new_rows(), tmp_path)
    add(place, files, "--command", COMMAND)
    before = place.board.read_bytes(), place.page.read_bytes()
    main(["page"], place)
    add(place, files, "--command", COMMAND)
    assert (place.board.read_bytes(), place.page.read_bytes()) == before


def test_further_seeds_join_those_that_are_there(place: Place, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    add(place, written(new_rows("trained"), tmp_path), "--command", COMMAND)
    add(place, written(new_rows("trained", seeds=[45]), tmp_path / "more"), "--command", COMMAND)
    assert entry(place, NAME)["seeds"] == [42, 43, 44, 45]


def everything(place: Place) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.reference.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "more, sentence",
    [
        ([], f'{NAME}: expected --command "…" that makes its rows'),
        (["--command", " "], "--command: expected one line of text"),
        (["--command", "one\ntwo"], "--command: expected one line of text"),
        (["--command", "```"], "--command: expected one line of text"),
    ],
)
def test_rows_without_a_command_are_not_put_in(more: list[str], sentence: str, place: Place, tmp_path: Path) -> None:
    before = everything(place)
    with pytest.raises(SystemExit, match=sentence):
        add(place, written(new_rows(), tmp_path), *more)
    assert everything(place) == before


def test_a_wrong_row_leaves_everything_as_it_was(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = new_rows()
    rows[0]["commit"], rows[1]["cpu_seconds"] = None, 10_000.0
    files, before = written(rows, tmp_path), everything(place)
    for action in (["check"], ["add", "--command", COMMAND]):
        with pytest.raises(SystemExit) as stopped:
            main([*action[:1], *map(str, files), *action[1:]], place)
        lines = str(stopped.value).splitlines()
        assert [str(path) in line for path, line in zip(files, lines)] == [True, True, False]
        assert lines[-1] == "2 wrong; nothing was written"
    assert everything(place) == before
    main(["check", *map(str, written(new_rows(), tmp_path))], place)
    assert "nothing is wrong" in capsys.readouterr().out and everything(place) == before


def test_the_same_configuration_with_other_figures_is_no_new_entry(place: Place, tmp_path: Path) -> None:
    rows = new_rows()
    add(place, written(rows, tmp_path), "--command", COMMAND)
    before = everything(place)
    rows[0]["cpu_seconds"] += 1.0
    with pytest.raises(SystemExit, match=rf"{NAME}-80s-seed42-\w+\.json is on the board with other figures"):
        add(place, written(rows, tmp_path), "--command", COMMAND)
    assert everything(place) == before


def test_a_variant_that_the_checkout_knows_needs_no_command(place: Place, tmp_path: Path) -> None:
    rows = new_rows("gru", LARGE, [42])
    rows[0]["variant"]["name"] = "lstm"
    for path in place.rows.glob("lstm-320s-*.json"):
        path.unlink()  # where the project has run it itself
    add(place, written(rows, tmp_path))
    lstm = entry(place, "lstm", LARGE)
    assert lstm["command"] == "python -m reproduce.controls --names lstm --seeds 42 --samples 320"
    assert not lstm["command_given"] and lstm["marks"] == ["one seed"]


def test_what_falls_short_of_the_rules_is_said_beside_it(place: Place) -> None:
    rows = [*new_rows(seeds=[42]), *new_rows(tokens=LARGE, seeds=[42])]
    rows[0]["chosen_on"], rows[0]["cpu_seconds"] = "validation", 16 * 60.0
    for row in rows:
        write_json(place.rows / file_name(row), row)
    found = board_record(place, {(NAME, SMALL): COMMAND, (NAME, LARGE): COMMAND})
    marks = [one["marks"] for board in found["boards"] for one in board["entries"] if one["name"] == NAME]
    assert marks == [
        ["chosen on the judged text", "over the budget: 16.0 CPU minutes, of at most 15", "one seed"], ["one seed"],
    ]  # fmt: skip
    assert "chosen on the judged text; over the budget: 16.0 CPU minutes, of at most 15; one seed" in page(found)


def test_a_committed_row_of_another_text_is_named(place: Place) -> None:
    path = min(place.rows.glob("gru-80s-seed42-*.json"))
    row = read_json(path)
    row["provenance"]["validation"]["tokens_sha256"] = "0" * 64
    write_json(path, row)
    with pytest.raises(SystemExit, match=f"{re.escape(str(path))}: provenance.validation.tokens_sha256: expected"):
        main(["page"], place)


def test_ratios_are_paired_with_the_first(place: Place, tmp_path: Path) -> None:
    add(place, written(new_rows(), tmp_path), "--command", COMMAND)
    entries = read_json(place.board)["boards"][0]["entries"]
    assert entries[0]["over_the_first"] is None
    assert [one["validation_perplexity"] for one in entries] == sorted(one["validation_perplexity"] for one in entries)
    first, mine = (perplexities(place, one) for one in (entries[0], entry(place, NAME)))
    ratios = [mine[seed] / first[seed] for seed in mine.keys() & first.keys()]
    low, high = entry(place, NAME)["over_the_first"]["interval"]
    assert low <= entry(place, NAME)["over_the_first"]["ratio"] <= high
    if len(ratios) == 3:  # the geometric mean
        product = ratios[0] * ratios[1] * ratios[2]
        assert entry(place, NAME)["over_the_first"]["ratio"] == pytest.approx(product ** (1 / 3), rel=1e-5)


def perplexities(place: Place, one: dict[str, Any]) -> dict[int, float]:
    rows = [read_json(place.rows / name) for name in one["files"]]
    return {row["seed"]: row["validation_perplexity"] for row in rows}


def test_the_picture_has_a_panel_a_board_with_every_entry(place: Place) -> None:
    boards = read_json(place.board)["boards"]
    figure = plot_boards(boards)
    assert len(figure.axes) == len(BOARDS)
    labels = {one["label"] for board in boards for one in board["entries"]}
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == labels
    for axis, board in zip(figure.axes, boards):
        assert axis.get_xscale() == "log" and f"{board['train_tokens']:,}" in axis.get_title()
        points = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        assert sorted(points) == [one["validation_perplexity"] for one in board["entries"]]
    assert figure.axes[0].get_xlim() == figure.axes[-1].get_xlim()
    with pytest.raises(ValueError, match="expected at least one entry"):
        plot_boards([{**board, "entries": []} for board in boards])


def test_a_board_without_entries_says_so(place: Place) -> None:
    for path in place.rows.glob("*-320s-*.json"):
        path.unlink()
    main(["page"], place)
    assert "### 259,763 training tokens\n\nNobody yet." in place.page.read_text(encoding="utf-8")


@given(st.text())
def test_a_strangers_words_are_words_in_a_table(text: str) -> None:
    shown = cell(text)
    assert "\n" not in shown and "<" not in shown and not re.search(r"(?<!\\)(\\\\)*[`*_\[\]|]", shown)
    assert html.unescape(re.sub(r"\\(.)", r"\1", shown)) == " ".join(text.split())
