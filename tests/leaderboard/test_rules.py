"""A row that keeps the rules is let in; one that breaks one in a single respect is refused, and told which."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_rows import COMMITTED, LARGE, NAME, SMALL, Row, copied_place, new_rows, written

from newllm_core.baselines.registry import BASELINES, Baseline, register_baseline
from newllm_core.comparison.leaderboard import discarded_parameters
from newllm_core.head.unigram_bias import fit_unigram
from newllm_core.metrics.prediction import bits_per_byte
from newllm_core.runs.files import RunError, json_text, sha256_bytes
from newllm_core.studies.row_keys import check_row_record
from reproduce import controls
from reproduce.leaderboard.check import check_files
from reproduce.leaderboard.place import Place
from reproduce.leaderboard.rules import BOARDS, EXPECTED, MAX_TRAINED_PARAMETERS, board_of, row_problems, text_problems


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Only read here."""
    return copied_place(tmp_path_factory.mktemp("reference"))


def problems(rows: list[Row], tmp_path: Path, place: Place) -> list[str]:
    return check_files(written(rows, tmp_path), place).problems


@pytest.mark.parametrize("of", ["gru", "best", "last-token"])
def test_rows_that_keep_the_rules_are_right(of: str, tmp_path: Path, place: Place) -> None:
    assert problems(new_rows(of), tmp_path, place) == []


def test_the_committed_rows_are_of_the_boards_texts() -> None:
    assert {board_of(row) for row in COMMITTED} == set(BOARDS)
    assert [sentence for row in COMMITTED for sentence in text_problems(row)] == []


def put(row: Row, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        row = row[part]
    row[last] = value


def setting(path: str, value: Any) -> Callable[[Row], None]:
    return lambda row: put(row, path, value)


def _more_parameters(row: Row) -> None:
    for holder in (row, row["details"]):
        holder["trainable_parameters"] = MAX_TRAINED_PARAMETERS + 1


def _conversations_exchanged(row: Row) -> None:
    for values in row["validation_conversations"].values():
        values[0], values[1] = values[1], values[0]


def _more_bytes(row: Row) -> None:
    row["validation_bytes"] *= 2  # halves the bits a byte, which the row itself does not contradict
    row["bits_per_byte"] = bits_per_byte(sum(row["validation_conversations"]["nats"]), row["validation_bytes"])


def _below_nothing(row: Row) -> None:
    nats = row["validation_conversations"]["nats"]
    nats[0], nats[1] = -1.0, nats[1] + nats[0] + 1.0


def _worse_than_a_guess(row: Row) -> None:
    nats, tokens = row["validation_conversations"]["nats"], row["validation_conversations"]["tokens"]
    nats[:] = [700.0 * count for count in tokens]  # which ``check_row_record`` can still raise e to
    row["validation_perplexity"] = math.exp(700.0)
    row["bits_per_byte"] = bits_per_byte(sum(nats), row["validation_bytes"])


def _no_seed_to_choose(row: Row) -> None:
    del row["config"]["run"]


def _another_size(row: Row) -> None:
    row["tokens"]["train"] = row["provenance"]["train"]["num_tokens"] = SMALL + 1


def _another_alike(row: Row) -> None:
    row["perplexity"] = 1.0


OTHER = "0" * 64
BROKEN: dict[str, tuple[Callable[[Row], None], str]] = {
    "another judged text": (setting("provenance.validation.tokens_sha256", OTHER), "validation.tokens_sha256: exp"),
    "conversations in another order": (_conversations_exchanged, "validation_conversations.tokens: expected"),
    "another training text": (setting("provenance.train.tokens_sha256", OTHER), "train.tokens_sha256: expected 4679"),
    "another size": (_another_size, "tokens.train: expected 57,173 or 259,763, of a board there is, given 57,174"),
    "another tokenizer": (setting("provenance.train.tokenizer_sha256", OTHER), "tokenizer_sha256: expected"),
    "other embeddings": (setting("provenance.embeddings.source_sha256", None), "source_sha256: expected"),
    "more bytes": (_more_bytes, "validation_bytes: expected 79984, as on the board, given 159968"),
    "too many parameters": (_more_parameters, "over the budget: 1,150,001 trained parameters, of at most 1,150,000"),
    "two counts of parameters": (setting("trainable_parameters", 1), "trainable_parameters: 1, but details say"),
    "too many minutes": (setting("cpu_seconds", 15 * 60 + 6.0), "over the budget: 15.1 CPU minutes, of at most 15"),
    "on a GPU": (setting("device", "NVIDIA H200"), "device: expected a CPU"),
    "an altered perplexity": (setting("validation_perplexity", 150.0), "validation_perplexity is 150.0, but the sum"),
    "altered bits a byte": (setting("bits_per_byte", 1.5), "bits_per_byte is 1.5, but the sum"),
    "a probability above 1": (_below_nothing, "nats: expected at least 0"),
    "worse than a guess": (_worse_than_a_guess, "expected at most 50,257, of a guess, given 1.01e+304"),
    "a figure that is none": (setting("details.epochs", [{"loss": math.nan}]), "details.epochs[0].loss: expected a"),
    "chosen on the judged text": (setting("chosen_on", "validation"), "chosen_on: the judged text chose"),
    "chosen on nothing": (setting("chosen_on", "training"), "chosen_on: expected 'selection', given 'training'"),
    "judged text among what chose": (setting("provenance.selection.last_sample", 1003), "than those of validation"),
    "trained on what chose": (setting("provenance.selection.first_sample", 79), "than those of train"),
    "no text that chose": (lambda row: row["provenance"].pop("selection"), "provenance.selection: expected exactly"),
    "no commit": (setting("commit", None), "commit: expected one that has all the code"),
    "uncommitted changes": (setting("commit", "0123456789abcdef0123456789abcdef01234567+changes"), "commit: expected"),
    "trained on other text": (setting("variant.kind", "pretrained"), "variant.kind: expected one of model, control"),
    "counts that are none": (setting("variant.kind", "counts"), "config: expected of a counts data, given data, net"),
    "a seed left out": (_no_seed_to_choose, "config: expected of a network data, network, run, given data, network"),
    "another seed": (setting("seed", 45), "seed: 45, but config.run.seed is 42"),
    "a study": (setting("variant.group", "parts"), "variant.group: expected 'leaderboard', given 'parts'"),
    "a name that leads elsewhere": (setting("variant.name", "../mine"), "variant.name: expected up to 50 letters"),
    "a sentence of several cells": (setting("variant.sentence", "a | b"), "variant.sentence: expected one line"),
    "a label of several lines": (setting("variant.label", "a\nb"), "variant.label: expected one line"),
    "an unknown key": (_another_alike, "perplexity: unknown key"),
    "an earlier format": (setting("format", 2), "expected a record of format 3, given 2"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_breaks_a_rule_is_refused_and_named(broken: str, tmp_path: Path, place: Place) -> None:
    alter, sentence = BROKEN[broken]
    rows = new_rows()
    alter(rows[0])
    paths = written(rows[1:], tmp_path)
    altered = tmp_path / "altered.json"
    altered.write_text(with_checksum(rows[0]), encoding="utf-8")
    found = check_files([altered, *paths], place).problems
    assert [one for one in found if sentence in one and str(altered) in one], found


def with_checksum(row: Row) -> str:
    """As somebody would write it who does not shrink from it: NaN too, which ``write_json`` refuses."""
    return json.dumps({**row, "own_sha256": sha256_bytes(json.dumps(row, sort_keys=True).encode())})


def test_parameters_that_are_thrown_away_count(tmp_path: Path, place: Place) -> None:
    rows = new_rows("best")
    for row in rows:
        row["trainable_parameters"] = MAX_TRAINED_PARAMETERS - 1_000
    found = problems(rows, tmp_path, place)
    total = MAX_TRAINED_PARAMETERS - 1_000 + discarded_parameters(rows[0])
    assert len(found) == 3 and all(f"over the budget: {total:,} trained parameters" in one for one in found)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path, place: Place) -> None:
    rows = new_rows()
    for path, value in (("cpu_seconds", 10_000.0), ("commit", None), ("device", "NVIDIA H200"), ("corpus", "brown")):
        put(rows[0], path, value)
    put(rows[1], "validation_perplexity", 10.0)
    (tmp_path / "none.json").write_text("{", encoding="utf-8")
    paths = [*written(rows, tmp_path), tmp_path / "none.json", tmp_path / "missing.json"]
    found = check_files(paths, place).problems
    for words in ("over the budget", "commit", "device", "corpus: expected chitchat"):
        assert sum(words in one and str(paths[0]) in one for one in found) == 1
    assert all(sum(str(path) in one for one in found) == 1 for path in (paths[1], *paths[3:]))
    assert "expected the seeds 42, 43, 44 (more are welcome), given 42, 44" in found[-1]  # 43 is no record
    assert len(found) == 8


@given(path=st.sampled_from(sorted(EXPECTED)), value=st.one_of(st.integers(0, 10**6), st.text(max_size=70)))
def test_no_other_value_passes_for_the_boards_text(path: str, value: object) -> None:
    (row,) = new_rows(seeds=[42])
    assert row_problems(row) == []
    put(row, path, value)
    assert any(sentence.startswith(f"{path}: expected") for sentence in row_problems(row))


@given(conversation=st.integers(0, 19), factor=st.floats(0.5, 1 - 1e-6))
def test_no_conversation_can_be_made_better_without_it_showing(conversation: int, factor: float) -> None:
    (row,) = new_rows(seeds=[42])
    check_row_record(row, Path("row.json"))
    row["validation_conversations"]["nats"][conversation] *= factor
    with pytest.raises(RunError, match="validation_perplexity is .*, but the sum of validation_conversations gives"):
        check_row_record(row, Path("row.json"))


@pytest.mark.parametrize("seeds", [(42, 43), (43, 44, 45), (42,)])
def test_a_missing_seed_is_named(seeds: tuple[int, ...], tmp_path: Path, place: Place) -> None:
    rows = [*new_rows("trained", seeds=seeds)]
    (sentence,) = problems(rows, tmp_path, place)
    given = ", ".join(map(str, seeds))
    assert sentence.endswith(
        f"{NAME}, 57,173 training tokens: expected the seeds 42, 43, 44 (more are welcome), given {given}"
    )


def test_one_seed_will_do_where_a_row_takes_long(tmp_path: Path, place: Place) -> None:
    assert problems(new_rows(tokens=LARGE, seeds=[42]), tmp_path, place) == []


def test_a_seed_that_is_a_copy_is_named(tmp_path: Path, place: Place) -> None:
    rows = new_rows()
    rows[1] = json.loads(json_text(rows[0]))
    rows[1]["seed"] = rows[1]["config"]["run"]["seed"] = 43
    (sentence,) = problems(rows, tmp_path, place)
    assert "seeds 42 and 43 have the same losses to the last digit" in sentence


def test_seeds_of_two_configurations_are_no_entry(tmp_path: Path, place: Place) -> None:
    rows = new_rows()
    rows[2]["config"]["network"]["width"] = 400
    (sentence,) = problems(rows, tmp_path, place)
    assert "expected one configuration, given rows of several" in sentence


def test_a_row_given_twice_is_named(tmp_path: Path, place: Place) -> None:
    rows = new_rows()
    (sentence,) = problems([*rows, rows[0]], tmp_path, place)
    assert "expected each row once" in sentence


def test_a_baseline_of_ones_own_goes_from_its_run_to_the_check(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair_counts(train: Any, validation: Any, size: int) -> tuple[Any, dict[str, Any]]:
        """Half the probability of the token after the one before, half of the token alone."""
        frequencies = fit_unigram(train, size).log_probabilities.exp().double()
        nats = -(0.5 * frequencies[validation[1:]] + 0.5 * pair_shares(train, validation)).log()
        return nats, {}

    kept = dict(BASELINES)
    try:
        register_baseline("pairs", Baseline("pairs of tokens", "pairs of tokens, counted", "counts", pair_counts))
        monkeypatch.setattr("sys.argv", ["controls", "--names", "pairs", "--out", str(tmp_path)])
        controls.main()
    finally:
        BASELINES.clear()
        BASELINES.update(kept)
    (path,) = tmp_path.glob("pairs-80s-*.json")
    found = check_files([path], place).problems
    assert all("commit: expected" in sentence for sentence in found)  # a checkout with changes, while one works on it


def pair_shares(train: Any, validation: Any) -> Any:
    """Of each validation token how often it followed the one before it in training, as a share `[M - 1]`."""
    pairs: dict[tuple[int, int], int] = {}
    firsts: dict[int, int] = {}
    for one, other in zip(train[:-1].tolist(), train[1:].tolist()):
        pairs[one, other] = pairs.get((one, other), 0) + 1
        firsts[one] = firsts.get(one, 0) + 1
    judged = zip(validation[:-1].tolist(), validation[1:].tolist())
    return torch.tensor([pairs.get(pair, 0) / firsts.get(pair[0], 1) for pair in judged], dtype=torch.float64)
