"""Rows of the leaderboard on real text at a small size: the same targets for all, rows read again, known answers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sweep import SMALL as ONE_CONVERSATION
from transformers import GPT2Config, GPT2LMHeadModel

from newllm_core.baselines import gpt2 as gpt2_module
from newllm_core.baselines.gpt2 import gpt2_nats
from newllm_core.baselines.registry import BASELINES
from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.leaderboard import (
    chosen_text,
    contexts_table,
    expectation_sentences,
    flattery,
    ratios_to_references,
    standings,
    standings_table,
)
from newllm_core.comparison.tables import readable_table
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import ConfigError, changed
from newllm_core.data import DataError
from newllm_core.experiment.folder_names import settings_of
from newllm_core.report.leaderboard import group_pictures, plot_ratios, plot_standings
from newllm_core.runs.files import RunError, read_json, write_json
from newllm_core.studies import rows as rows_module
from newllm_core.studies.rows import changed_contexts, read_rows
from newllm_core.studies.runners import ExperimentRunner, RowRunner
from newllm_core.studies.sweep import Record, Sweep, grid
from newllm_core.studies.variants import LeaderboardVariant, known_variants, variant
from newllm_core.training.phase1 import Phase1Result
from reproduce.controls import ROWS
from reproduce.growth_plan import Plan
from reproduce.reference_experiments import centre

# Two validation conversations, for an interval.
SMALL = dataclasses.replace(
    ONE_CONVERSATION, data=dataclasses.replace(ONE_CONVERSATION.data, validation_range=(14, 16))
)
LEADERS = [name for name, one in known_variants().items() if one.group == "leaderboard"]
NETWORKS = [name for name, one in BASELINES.items() if one.kind == "network"]
NETWORK = {"width": 8, "num_layers": 1, "num_heads": 2, "max_epochs": 1, "num_streams": 2, "segment_tokens": 8}


AT_MOST = {"context_dim": 8, "max_iterations": 2, "check_interval": 1, "max_epochs": 2, "adapter_rank": 2}


def small(name: str) -> LeaderboardVariant:
    """What a variant asks for itself is small too."""
    one = variant(name)
    changes = {key: min(value, AT_MOST[key]) if key in AT_MOST else value for key, value in one.changes.items()}
    return dataclasses.replace(one, changes=changes)


def rows_of(names: Sequence[str], base: Settings, seeds: Sequence[int], runner: RowRunner) -> Sweep:
    return Sweep(base, [small(name) for name in names], seeds, runner)


def run_one(name: str, base: Settings, folder: Path, network_changes: Mapping[str, Any], data_dir: Path) -> Record:
    (row,) = rows_of([name], base, [base.run.seed], RowRunner(folder, network_changes, data_dir)).run()
    return row


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("leaderboard")
    return rows_of(LEADERS, SMALL, [1, 2], RowRunner(folder / "rows", NETWORK, folder / "data")).run()


def row(name: str, nats: list[float], seed: int = 1, tokens: int = 100) -> Record:
    """What `run_row` writes, without the run."""
    return {
        "variant": variant(name).record(), "seed": seed, "tokens": {"train": tokens, "validation": 31},
        "corpus": "made up", "embeddings": "none", "chosen_on": "validation",
        "validation_conversations": {"nats": nats, "tokens": [10, 20]},
        "validation_perplexity": math.exp(sum(nats) / 30), "bits_per_byte": 1.5, "trainable_parameters": 7,
        "cpu_seconds": 60.0, "config": {} if variant(name).kind == "counts" else {"run": {"seed": seed}},
    }  # fmt: skip


def named(rows: list[Record], name: str) -> list[Record]:
    return [one for one in rows if one["variant"]["name"] == name]


# --- runs -----------------------------------------------------------------------------------------------------------


def test_every_leader_runs_and_all_are_judged_on_the_same_targets(rows: list[Record]) -> None:
    assert {one["variant"]["name"] for one in rows} == set(LEADERS)
    assert len({tuple(one["validation_conversations"]["tokens"]) for one in rows}) == 1
    for one in rows:
        parts = one["validation_conversations"]
        assert one["validation_perplexity"] == pytest.approx(math.exp(sum(parts["nats"]) / sum(parts["tokens"])))
        assert one["cpu_seconds"] > 0


def test_counts_have_one_row_and_everything_else_one_a_seed(rows: list[Record]) -> None:
    counted = {name: len(named(rows, name)) for name in LEADERS}
    assert {name for name, count in counted.items() if count == 1} == {"unigram", "kneser-ney-5"}
    assert set(counted.values()) == {1, 2}


def test_only_what_is_trained_is_counted(rows: list[Record]) -> None:
    counts = {name: named(rows, name)[0]["trainable_parameters"] for name in LEADERS}
    block = counts["trained"] - counts["untrained"]
    model = SMALL.model
    assert block == model.context_dim * (model.context_dim + 1 + model.embed_dim + 2)
    assert counts["notes"] == counts["shuffled"] == counts["trained"] and counts["last-token"] == counts["untrained"]
    assert counts["unigram"] == counts["kneser-ney-5"] == 0 and all(counts[name] > 0 for name in NETWORKS)


def test_a_text_too_short_for_a_row_is_refused_before_the_first(tmp_path: Path) -> None:
    wide = {**NETWORK, "num_streams": 1000, "segment_tokens": 100}
    runner = RowRunner(tmp_path / "rows", wide, tmp_path / "data")
    with pytest.raises(DataError, match=r"expected at least 100001, more than num_streams · segment_tokens of gru"):
        rows_of(["unigram", "gru"], SMALL, [1], runner).run()
    assert not list(tmp_path.glob("rows/*.json"))


def test_a_row_is_read_again_and_another_configuration_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data_dir = tmp_path / "rows", tmp_path / "data"
    first = run_one("unigram", SMALL, folder, {}, data_dir)
    monkeypatch.setattr(rows_module, "prepare", None)  # would fail if anything were computed
    assert run_one("unigram", SMALL, folder, {}, data_dir) == first
    (path,) = folder.glob("*.json")
    stored = read_json(path)
    stored["config"]["data"]["num_samples"] += 1
    write_json(path, stored)
    with pytest.raises(RunError, match="num_samples"):
        run_one("unigram", SMALL, folder, {}, data_dir)


def test_rows_of_other_embeddings_have_other_names() -> None:
    narrow = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, embed_dim=64))
    runner = RowRunner()

    def same_file(name: str) -> bool:
        one, other = (rows_of([name], base, [1], runner).points[0] for base in (SMALL, narrow))
        return runner.key(one) == runner.key(other)

    assert not same_file("gru") and not same_file("trained") and same_file("unigram")  # the last reads none


def test_gpt2_is_a_row_without_a_seed_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model needs a network: a small one in the same files."""
    config = GPT2Config(vocab_size=50_257, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    monkeypatch.setattr(gpt2_module, "gpt2_nats", lambda tokens: gpt2_nats(tokens, str(tmp_path / "gpt2")))
    rows = rows_of(["gpt2"], SMALL, [1, 2], RowRunner(tmp_path / "rows", {}, tmp_path / "data")).run()
    assert len(rows) == 1 and rows[0]["trainable_parameters"] == 0
    assert rows[0]["validation_perplexity"] == pytest.approx(50_257, rel=0.2)


def test_unknown_names_and_impossible_values_stop_before_anything_runs(tmp_path: Path) -> None:
    runner = RowRunner(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'unigram'"):
        rows_of(["trained", "unigramm"], SMALL, [1], runner)
    with pytest.raises(ConfigError, match="widht"):
        RowRunner(tmp_path, {"widht": 8})
    better = dataclasses.replace(SMALL, phase2=dataclasses.replace(SMALL.phase2, dropout=0.4))
    with pytest.raises(ConfigError, match="changes to the notes' model: expected dropout=0.0, given 0.4"):
        rows_of(["trained"], better, [1], runner)
    with pytest.raises(DataError, match="100000 training samples asked for"):
        rows_of(["unigram"], changed(SMALL, {"num_samples": 100_000}), [1], runner).run()
    assert not list(tmp_path.iterdir())


def test_the_estimate_is_of_what_is_missing(tmp_path: Path) -> None:
    runner, names = RowRunner(tmp_path / "rows", NETWORK, tmp_path / "data"), ["unigram", "untrained", "gru"]
    rows_of(names[:1], SMALL, [1, 2], runner).run()
    found = rows_of(names, SMALL, [1, 2], runner).estimate()
    assert (found.num_runs, found.num_finished) == (5, 1) and 0 < found.cost.seconds < math.inf
    assert str(found).startswith("5 runs, 1 finished; the others at most about ")
    assert len(list(runner.folder.glob("*.json"))) == 1
    assert str(rows_of(names[:1], SMALL, [1, 2], runner).estimate()) == "1 runs, all finished"


def test_a_row_keeps_the_words_under_which_it_was_made(tmp_path: Path) -> None:
    runner = RowRunner(tmp_path / "rows", {}, tmp_path / "data")
    (first,) = rows_of(["unigram"], SMALL, [1], runner).run()
    assert first["variant"] == variant("unigram").record()
    renamed = dataclasses.replace(variant("unigram"), label="word counts", expected="worst")
    (again,) = Sweep(SMALL, [renamed], [1], runner).run()
    assert again == first


# --- committed rows -------------------------------------------------------------------------------------------------


def test_every_committed_row_is_found_and_says_what_it_is() -> None:
    runner = RowRunner(ROWS)
    committed = read_rows(ROWS)
    assert len(committed) >= 80
    # Rows that a script made which registered its own baseline, as on the leaderboard, are known to it alone.
    for row in (one for one in committed if one["variant"]["name"] in known_variants()):
        data = row["config"]["data"]
        base = changed(centre(), {name: data.get(name) for name in ("num_samples", "selection_range")})
        (point,) = Sweep(base, [variant(row["variant"]["name"])], [row["seed"]], runner).points
        # A row of the larger board is as the rule of size has it, or as at the smaller board's size.
        ruled = Plan().sweep(row["variant"]["name"], data["num_samples"], row["tokens"]["train"], [row["seed"] or 0])
        assert row in (runner.finished(point), *ruled.finished())
        assert row["variant"].keys() == point.variant.record().keys()


def test_every_committed_experiment_is_found() -> None:
    runner = ExperimentRunner()
    paths = sorted(runner.folders.reference.glob("*.json"))
    assert len(paths) >= 30
    for path in paths:
        record = read_json(path)
        (point,) = Sweep(settings_of(record), grid({}), [record["seed"]], runner).points
        assert runner.key(point) == path.stem
        assert runner.finished(point) is not None


# --- contexts of the controls ---------------------------------------------------------------------------------------


def test_contexts_of_the_controls() -> None:
    streams = torch.arange(24.0).view(6, 1, 4), torch.arange(12.0).view(3, 1, 4)
    given = Phase1Result(*streams, history=None)
    assert changed_contexts(given, "own", 1) is given
    assert not changed_contexts(given, "none", 1).train_contexts.any()
    shuffled = changed_contexts(given, "shuffled", 1)
    for before, after in zip(streams, (shuffled.train_contexts, shuffled.validation_contexts)):
        assert not torch.equal(before, after) or len(before) < 4
        torch.testing.assert_close(after[after[:, 0, 0].argsort()], before)
    torch.testing.assert_close(changed_contexts(given, "shuffled", 1).train_contexts, shuffled.train_contexts)


# --- figures --------------------------------------------------------------------------------------------------------


def test_standings_are_sorted_and_their_intervals_hold_the_value() -> None:
    found = standings([row("gru", [20, 50]), row("gru", [21, 52], seed=2), row("unigram", [60, 110])])
    assert [one.name for one in found] == ["gru", "unigram"]
    assert found[0].seeds == (1, 2) and found[0].perplexity.value == pytest.approx(math.exp(71.5 / 30))
    for one in (standing.perplexity for standing in found):
        assert one.interval is not None and one.interval[0] < one.value < one.interval[1]
    record = found[0].record()
    assert record["seeds"] == [1, 2] and record["cpu_seconds"] == 60 and record["name"] == "gru"


def test_rows_that_another_text_chose_count_alone_and_say_by_how_much_the_others_were_flattered() -> None:
    def apart(one: Record) -> Record:
        config = {**one["config"], "data": {"selection_range": [0, 2]}}
        return {**one, "config": config, "chosen_on": "selection" if one["variant"]["name"] == "gru" else "training"}

    before = [row("gru", [20, 50]), row("gru", [20, 50], 2), row("unigram", [60, 110])]
    honest = [apart(row("gru", [20, 53])), apart(row("gru", [20, 50], 3)), apart(row("unigram", [60, 110]))]
    gru, _ = standings([*before, *honest])
    assert gru.seeds == (1, 3) and gru.chosen_on == "selection"
    (shares,) = flattery([*before, *honest]).values()  # counts choose nothing
    assert shares == pytest.approx([1 - math.exp(-3 / 30)])
    assert flattery(before) == {}


def test_a_ratio_is_of_rows_that_the_same_text_chose_where_there_are_such() -> None:
    def on(text: str, one: Record, reference: str | None) -> Record:
        data = {"data": {"selection_range": [0, 2]}} if text == "selection" else {}
        variant = {**one["variant"], "reference": reference}
        return {**one, "config": {**one["config"], **data}, "chosen_on": text, "variant": variant}

    both = [on(text, row("gru", nats), None) for text, nats in (("selection", [20, 53]), ("validation", [20, 50]))]
    old = on("validation", row("best", [19, 49]), "gru")
    new = on("selection", row("best-earlier", [19, 49]), "gru")
    found = standings([*both, old, new])
    ratios = {
        one.name: (chosen_text(one, other), ratio.value) for one, other, ratio in ratios_to_references(found, found)
    }
    assert ratios["best"] == ("validation", pytest.approx(math.exp((68 - 70) / 30)))
    assert ratios["best-earlier"] == ("selection", pytest.approx(math.exp((68 - 73) / 30)))
    counts = on("training", row("unigram", [60, 110]), None)
    (gru, unigram) = standings([both[1], counts])
    assert chosen_text(gru, unigram) == "validation" and chosen_text(unigram, unigram) == "training"
    # Without a common seed on the same text, what there is stands.
    later = {**both[0], "seed": 2}
    ((_, _, ratio),) = ratios_to_references(
        [old_two := standings([on("validation", row("best", [19, 49], 2), "gru")])[0]], standings([later, both[1]])
    )
    assert old_two.seeds == (2,) and len(ratio.by_seed) == 1
    (apart,) = standings([both[0]])
    assert chosen_text(apart, gru) == "selection over validation"


def test_what_phase_1_trains_and_throws_away_is_named() -> None:
    configs = {"model": {"context_dim": 4, "embed_dim": 6}, "phase1": {"objective": "contrastive", "max_iterations": 2}}
    (one,) = standings([{**row("best", [20, 50]), "config": configs}])
    assert one.discarded_parameters == 30 and one.parameters_text == "7 + 30"
    (plain,) = standings([row("gru", [20, 50])])
    assert plain.discarded_parameters == 0 and plain.parameters_text == "7"


def test_a_constant_ratio_has_no_spread_and_is_distinguishable() -> None:
    """0.1 nats a token less, in every conversation and with every seed."""
    rows = [
        row(name, [20 + less * 10, 50 + less * 20], seed)
        for name, less in (("gru", 0), ("lstm", 0.1))
        for seed in (1, 2)
    ]
    gru, lstm = standings(rows)
    ratio = perplexity_ratio(gru, lstm)
    assert ratio.value == pytest.approx(math.exp(-0.1))
    assert ratio.interval == pytest.approx((math.exp(-0.1), math.exp(-0.1))) and ratio.is_distinguishable


def test_counts_are_held_against_every_seed() -> None:
    gru, unigram = standings([row("gru", [20, 50], 1), row("gru", [22, 54], 2), row("unigram", [60, 110])])
    assert len(perplexity_ratio(gru, unigram).by_seed) == 2
    assert perplexity_ratio(unigram, gru).value == pytest.approx(1 / perplexity_ratio(gru, unigram).value)


def test_sentences_say_what_was_expected_and_what_came() -> None:
    found = standings([row("trained", [20, 50]), row("w-1.0", [20, 50]), row("odcm", [10, 30]), row("sigreg", [9, 80])])
    sentences = {text.split(" ")[0]: text for text in expectation_sentences(found)}
    assert set(sentences) == {"w-1.0", "odcm", "sigreg"}
    came = "Came: 1.000 [1.000, 1.000] of the PPL of trained, 1 seed: not distinguishable."
    assert sentences["w-1.0"].endswith(f"Expected: the same: the term's share is small. {came}")
    assert sentences["sigreg"].endswith("not distinguishable.")
    assert sentences["odcm"].endswith("1 seed: distinguishable for this seed alone.")
    assert expectation_sentences(standings([row("w-1.0", [20, 50])])) == []


def test_what_cannot_be_compared_is_refused() -> None:
    other_text = row("lstm", [1.0, 2.0])
    other_text["validation_conversations"] = {"nats": [1.0, 2.0], "tokens": [11, 20]}
    with pytest.raises(ComparisonError, match="the same conversations"):
        standings([row("gru", [20, 50]), other_text])
    with pytest.raises(ComparisonError, match="one configuration"):
        other = row("gru", [20, 51], 2)
        standings([row("gru", [20, 50], 1), {**other, "config": {**other["config"], "network": {"width": 9}}}])
    with pytest.raises(ComparisonError, match="each seed once"):
        standings([row("gru", [20, 50]), row("gru", [20, 51])])
    with pytest.raises(ComparisonError, match="at least one row"):
        standings([])
    gru, lstm = standings([row("gru", [20, 50], 1), row("lstm", [21, 51], 2)])
    with pytest.raises(ComparisonError, match="a seed that both have"):
        perplexity_ratio(gru, lstm)


def test_table_and_picture_name_every_variant(rows: list[Record]) -> None:
    found = standings(rows)
    table = standings_table(found, "untrained")
    assert list(table.index) == [one.name for one in found]
    shown = readable_table(table)
    assert shown.loc["untrained", "× untrained"] == shown.loc["untrained", "verdict"] == "–"
    assert shown.loc["unigram", "seeds"] == "–" and shown.loc["gru", "verdict"] in (
        "distinguishable",
        "not distinguishable",
    )
    (axis,) = plot_standings(found).axes
    assert [label.get_text().split("\n")[0] for label in axis.get_yticklabels()] == [one.label for one in found]
    (axis,) = plot_standings(found, "untrained").axes
    assert axis.texts[list(table.index).index("untrained")].get_text() == "reference"
    with pytest.raises(ValueError, match="a reference among .*, given 'lost'"):
        plot_standings(found, "lost")
    with pytest.raises(ValueError, match="one number of training tokens"):
        plot_standings(standings([row("gru", [20, 50]), row("gru", [20, 50], tokens=50)]))


def test_picture_of_ratios_shows_those_with_a_reference_and_marks_what_is_not_distinguishable() -> None:
    near, far = row("w-1.0", [20.2, 49.9]), row("w-0.5", [22, 54])
    found = standings([row("trained", [20, 50]), near, far, row("gru", [10, 20])])
    (axis,) = plot_ratios(found, found).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        variant(name).label for name in ("w-1.0", "w-0.5")
    ]
    marks = [line for line in axis.lines if line.get_marker() == "D"]  # one seed
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [True, False]
    assert marks[1].get_xdata()[0] == pytest.approx(math.exp(0.2))
    with pytest.raises(ValueError, match="whose reference is there too"):
        plot_ratios(standings([row("gru", [20, 50])]), found)


def test_a_group_has_a_picture_when_someone_can_be_shown(tmp_path: Path) -> None:
    together = [row("trained", [20, 50]), row("w-1.0", [20.2, 49.9]), row("best-no-cache", [20, 50])]
    for number, one in enumerate(together):
        write_json(tmp_path / f"{number}.json", one)
    pictures = group_pictures(standings(read_rows(tmp_path)))
    assert set(pictures) == {"leaderboard", "decisions"}  # of best's parts one is there, but not best
    labels = [label.get_text().split("\n")[0] for label in pictures["leaderboard"].axes[0].get_yticklabels()]
    assert labels == [variant("trained").label]
    assert group_pictures(standings([row("best-no-cache", [20, 50])])) == {}


def test_figures_of_contexts_are_of_those_who_read_them(rows: list[Record]) -> None:
    table = contexts_table(standings(rows))
    assert "untrained" in table.index and not {"gru", "last-token", "shuffled", "unigram"} & set(table.index)
    ranks = [100 * row["details"]["validation_rank"]["share"] for row in rows if row["variant"]["name"] == "untrained"]
    assert float(table.loc["untrained", "ER %"]) == pytest.approx(sum(ranks) / len(ranks), abs=0.051)


def test_a_made_up_row_has_the_fields_of_a_real_one(rows: list[Record]) -> None:
    made: dict[str, Any] = row("gru", [1.0, 2.0])
    assert set(made) <= set(rows[0])
