"""How contenders grow: planted laws come back from rows, the page and the picture say them, rows of another rule are
none."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newllm_core.comparison.groups import ComparisonError
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError, load_token_streams
from newllm_core.report.growth import plot_growth, spread
from newllm_core.runs.files import DATA_DIR, read_json, write_json
from newllm_core.scaling.growth import GrowthAnalysis, analyse_growth, growth_from_record, growth_record
from newllm_core.studies.runners import RowRunner
from newllm_core.studies.size_rule import REFERENCE_TOKENS, size_changes
from newllm_core.studies.sweep import Record, Sweep
from newllm_core.studies.variants import variant
from reproduce import growth, growth_page, growth_plan
from reproduce.controls import REFERENCE_NAME
from reproduce.growth_page import NO_ROWS, page_of, tables_of, write_page
from reproduce.growth_plan import NAMES, SIZES, Plan, sizes_of

SEEDS = (42, 43)
COUNTS = [300, 700, 1000, 500, 900, 400]
TOKENS = {10: 7_141, 20: 13_150, 40: 28_194, 80: 57_173, 160: 117_814}
# Perplexity at 57,173 tokens, α, how many sizes.
PLANTED = {"kneser-ney-5": (300, -0.15, 5), REFERENCE_NAME: (170, -0.22, 5), "best": (165, -0.26, 5),
           "notes": (500, -0.3, 3)}  # fmt: skip


def planted_rows(seeds: Sequence[int] = SEEDS, names: Sequence[str] = tuple(PLANTED)) -> list[Record]:
    """What `run_row` writes, without the run: exact laws, and noise of seeds and conversations that all share."""
    noise = np.random.default_rng(0).normal(scale=0.02, size=(len(TOKENS), max(seeds) + 1, len(COUNTS)))
    own = np.random.default_rng(1)
    found = []
    for name in names:
        perplexity, alpha, count = PLANTED[name]
        for number, (samples, tokens) in enumerate(list(TOKENS.items())[:count]):
            for seed in [None] if name == "kneser-ney-5" else seeds:
                loss = math.log(perplexity) + alpha * math.log(tokens / REFERENCE_TOKENS)
                losses = loss + noise[number, seed or 0] + own.normal(scale=0.002, size=len(COUNTS))
                found.append(row(name, samples, tokens, seed, losses * COUNTS))
    return found


def row(name: str, samples: int, tokens: int, seed: int | None, nats: Any) -> Record:
    config: dict[str, Any] = {"data": {"num_samples": samples, "selection_range": [980, 1000]}}
    return {
        "variant": variant(name).record(), "seed": seed, "tokens": {"train": tokens, "validation": sum(COUNTS) + 1},
        "corpus": "made up", "embeddings": "none", "chosen_on": "selection", "bits_per_byte": 1.75, "cpu_seconds": 90.0,
        "validation_conversations": {"nats": list(nats), "tokens": COUNTS}, "trainable_parameters": 7,
        "config": config if seed is None else {**config, "run": {"seed": seed}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def analysis() -> GrowthAnalysis:
    return analyse_growth(planted_rows(), NAMES, REFERENCE_NAME, num_resamples=400)


# --- analysis -------------------------------------------------------------------------------------------------------


def test_planted_exponents_come_back_in_every_window(analysis: GrowthAnalysis) -> None:
    assert [one.name for one in analysis.contenders] == ["kneser-ney-5", REFERENCE_NAME, "best", "notes"]
    for one in analysis.contenders:
        _, alpha, sizes = PLANTED[one.name]
        assert one.whole is not None and len(one.sizes) == sizes and len(one.windows) == max(0, sizes - 3)
        for window in (one.whole, *one.windows):
            assert window.alpha.value == pytest.approx(alpha, abs=0.02) and window.alpha.interval is not None


def test_differences_are_paired_over_the_sizes_that_both_have(analysis: GrowthAnalysis) -> None:
    pairs = {(one.one, one.other): one for one in analysis.pairs}
    assert len(pairs) == 6
    best = pairs[REFERENCE_NAME, "best"]
    assert best.difference.value == pytest.approx(0.04, abs=0.004) and best.difference.is_distinguishable
    assert pairs[REFERENCE_NAME, "notes"].samples == (10, 20, 40) and best.samples == tuple(TOKENS)
    windows = [(one.one, one.samples) for one in analysis.windows]
    assert windows == [(name, tuple(TOKENS)[first:][:4]) for name in ("kneser-ney-5", "best") for first in (0, 1)]
    alone = analysis.named("best")
    assert alone is not None and alone.whole is not None
    one, two = best.difference.interval, alone.whole.alpha.interval
    assert one is not None and two is not None and one[1] - one[0] < two[1] - two[0]  # what is shared cancels


def test_ratios_are_held_against_the_reference_alone(analysis: GrowthAnalysis) -> None:
    held, best = analysis.named(REFERENCE_NAME), analysis.named("best")
    assert held is not None and all(size.ratio is None for size in held.sizes)
    assert best is not None
    ratio = best.sizes[3].ratio
    assert ratio is not None and ratio.value == pytest.approx(165 / 170, abs=0.005) and len(ratio.by_seed) == 2


def test_a_contender_alone_has_no_pairs_and_two_sizes_have_no_law() -> None:
    alone = analyse_growth(planted_rows(names=["best"]), NAMES, REFERENCE_NAME, num_resamples=100)
    assert not alone.windows and not alone.pairs and alone.contenders[0].sizes[0].ratio is None
    first = [one for one in planted_rows() if one["tokens"]["train"] <= TOKENS[20]]
    small = analyse_growth(first, NAMES, REFERENCE_NAME, num_resamples=100)
    assert all(one.whole is None and one.floor is None and not one.windows for one in small.contenders)
    assert not small.pairs and all(len(one.sizes) == 2 for one in small.contenders)
    plot_growth(small)


def test_no_rows_and_rows_of_several_configurations_are_refused() -> None:
    with pytest.raises(ComparisonError, match="expected rows of some of kneser-ney-5"):
        analyse_growth(planted_rows(names=["best"]), ["kneser-ney-5", "gpt"], REFERENCE_NAME)
    mixed = planted_rows(names=["best"])
    mixed[0]["config"]["phase2"] = {"dropout": 0.5}
    with pytest.raises(ComparisonError, match="expected one configuration"):
        analyse_growth(mixed, NAMES, REFERENCE_NAME)


def test_the_record_is_the_analysis(analysis: GrowthAnalysis) -> None:
    stored = json.loads(json.dumps(growth_record(analysis), allow_nan=False))
    assert growth_from_record(stored) == analysis


# --- picture --------------------------------------------------------------------------------------------------------


def test_the_picture_names_every_line_with_its_exponent_and_the_last_ratio(analysis: GrowthAnalysis) -> None:
    left, right = plot_growth(analysis).axes
    said = ["\n".join(text.get_text() for text in axis.texts) for axis in (left, right)]
    for one in analysis.contenders:
        assert one.whole is not None
        assert f"{one.label}\nα = {one.whole.alpha.text('{:.3f}').replace('-', '−')}" in said[0]
        last = one.sizes[-1].ratio
        assert last is None or f"{one.label}\n× {last.text('{:.2f}')}" in said[1]
    assert any(list(line.get_ydata()) == [1, 1] for line in right.lines)


labels = st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.2)), min_size=1, max_size=8)


@given(labels)
def test_labels_do_not_overlap_and_stay_where_they_wish_where_there_is_room(wishes: list[tuple[float, float]]) -> None:
    wanted, heights = zip(*sorted(wishes))
    places = spread(wanted, heights)
    for first, second, one, other in zip(places, places[1:], heights, heights[1:]):
        assert second - first >= (one + other) / 2 - 1e-9
    free = all(
        second - first >= (one + other) / 2
        for first, second, one, other in zip(wanted, wanted[1:], heights, heights[1:])
    )
    assert not free or places == pytest.approx(wanted)
    assert np.mean(places) == pytest.approx(np.mean(wanted), abs=0.5 * sum(heights))


# --- page -----------------------------------------------------------------------------------------------------------


def test_the_committed_page_says_what_the_records_and_the_rule_say() -> None:
    committed = Plan()
    assert page_of(committed) == committed.page.read_text(encoding="utf-8"), (
        "python -m reproduce.growth --page writes it anew, --report after new rows"
    )
    assert committed.analysis.exists() == committed.picture.exists()


def test_the_committed_analysis_is_that_of_the_committed_rows() -> None:
    committed = growth_from_record(read_json(Plan().analysis))
    again = analyse_growth(Plan().rows(), NAMES, REFERENCE_NAME, num_resamples=100)
    told, figures = zip(*map(_told, (committed, again)), strict=True)
    assert told[0] == told[1] and figures[0] == pytest.approx(figures[1])


def _told(analysis: GrowthAnalysis) -> tuple[list[Any], list[float]]:
    """Who has which sizes and pairs; and every figure but the intervals, which depend on how often is drawn."""
    told: list[Any] = [
        (one.name, size.samples, size.tokens, size.num_seeds, size.chosen_on, size.ratio is None)
        for one in analysis.contenders
        for size in one.sizes
    ]
    told += [(one.one, one.other, one.samples, one.least_seeds) for one in (*analysis.windows, *analysis.pairs)]
    figures = [one.difference.value for one in (*analysis.windows, *analysis.pairs)]
    for one in analysis.contenders:
        figures += [window.alpha.value for window in (one.whole, *one.windows) if window is not None]
        for size in one.sizes:
            figures += [size.perplexity.value, size.bits_per_byte, size.cpu_seconds]
            figures += [] if size.ratio is None else [size.ratio.value]
    return told, figures


def test_a_difference_says_that_some_sizes_have_one_seed() -> None:
    rows = [one for one in planted_rows() if one["seed"] != 43 or one["tokens"]["train"] == TOKENS[80]]
    mixed = analyse_growth(rows, NAMES, REFERENCE_NAME, num_resamples=200)
    said = {(one.one, one.other): one.verdict for one in mixed.pairs}
    assert said[REFERENCE_NAME, "best"] == "distinguishable, with one seed at some sizes"
    single = analyse_growth(planted_rows((42,)), NAMES, REFERENCE_NAME, num_resamples=200)
    assert {one.verdict for one in single.pairs if one.difference.is_distinguishable} == {
        "distinguishable for this seed alone"
    }


def test_a_page_of_rows_has_their_figures_and_one_without_says_so(tmp_path: Path, analysis: GrowthAnalysis) -> None:
    plan = Plan(tmp_path)
    without = page_of(plan)
    assert without.count(NO_ROWS) == len(tables_of(plan)) - 1  # all but the rule
    write_json(plan.analysis, growth_record(analysis))
    page = write_page(plan).read_text(encoding="utf-8")
    assert NO_ROWS not in page and "(growth.png)" in page
    best = analysis.named("best")
    assert best is not None and best.whole is not None
    assert f"- **the better model**: α {best.whole.alpha.text('{:.3f}')} over 10–160 conversations" in page
    assert "distinguishable, falls faster. At 160 conversations" in page
    assert f"| 80 (57,173) | {analysis.contenders[0].sizes[3].perplexity.text('{:.1f}')}; 1.750 |" in page


def test_the_rule_on_the_page_is_the_rules_own() -> None:
    text = growth_page.rule()
    for name in ("best", "gpt"):
        wanted = size_changes(name, 8 * REFERENCE_TOKENS)["max_epochs"]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} | `max_epochs`"))
        assert line.split(" | ")[-2] == str(wanted)


# --- plan -----------------------------------------------------------------------------------------------------------


def test_all_sizes_fit_the_corpus_and_another_doubling_does_not() -> None:
    data = growth_plan.base(2 * SIZES[-1]).data
    with pytest.raises(DataError, match="3061 exist") as refused:
        load_token_streams(data, DATA_DIR)
    assert SIZES[-1] <= 3061 < 2 * SIZES[-1] and "5120 training samples asked for" in str(refused.value)
    assert sizes_of("best") == list(SIZES) and sizes_of("notes")[-1] < SIZES[-1]
    assert sizes_of("notes", [640]) == [640]


@pytest.mark.parametrize("name", NAMES)
def test_at_the_leaderboards_size_a_row_is_the_leaderboards_and_elsewhere_another(name: str) -> None:
    plan = Plan()
    own = plan.sweep(name, 80, REFERENCE_TOKENS, [42])
    theirs = Sweep(growth_plan.base(80), [variant(name)], [42], RowRunner(growth_plan.LEADERBOARD))
    assert own.runner.key(own.points[0]) == theirs.runner.key(theirs.points[0])
    elsewhere = plan.sweep(name, 160, TOKENS[160], [42])
    path = elsewhere.runner.key(elsewhere.points[0])
    assert isinstance(path, Path) and path.parent == growth_plan.ROWS


def test_only_rows_of_todays_rule_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(tmp_path)
    for one in planted_rows(seeds=[42]):
        samples, tokens = one["config"]["data"]["num_samples"], one["tokens"]["train"]
        sweep = plan.sweep(one["variant"]["name"], samples, tokens, [42])
        path = sweep.runner.key(sweep.points[0])
        assert isinstance(path, Path)
        write_json(path, one)
    assert len(plan.rows()) == len(planted_rows(seeds=[42]))
    monkeypatch.setattr(growth_plan, "size_changes", lambda name, tokens: {"dropout": 0.55} if name == "best" else {})
    left = plan.rows()
    assert "best" not in {one["variant"]["name"] for one in left} and left
    growth.report(plan)
    assert plan.picture.exists() and plan.page.exists()


def test_the_command_runs_what_is_missing_and_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(tmp_path)

    def command(*sizes: int, estimate: bool) -> str:
        growth.run(plan, ["kneser-ney-5"], sizes, [42], estimate=estimate)
        return capsys.readouterr().out

    assert "all that is missing: at most about" in command(2, estimate=True) and not plan.rows()
    command(2, estimate=False)
    assert [one["config"]["data"]["num_samples"] for one in plan.rows()] == [2]
    again = command(5, 2, estimate=True).splitlines()  # smallest first
    assert again[0] == "kneser-ney-5, 2 conversations: 1 runs, all finished" and "0 finished" in again[1]
    growth.report(plan)
    page = plan.page.read_text(encoding="utf-8")
    assert "| kneser-ney-5 |" in page and "has no three sizes yet" in page  # nobody to hold it against


def test_another_corpus_in_ultrachats_schema_goes_through_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    talks = [[f"Who counts to {number}?", f"I do: {number}, and then {number + 1}."] for number in range(1030)]
    roles = ("user", "assistant")
    file.write_text(
        "".join(
            json.dumps({"messages": [{"role": role, "content": text} for role, text in zip(roles, talk)]}) + "\n"
            for talk in talks
        )
    )
    plan = Plan(tmp_path / "rows", file)
    growth.run(plan, ["kneser-ney-5"], [10, 20], [42], estimate=False)
    growth.report(plan)
    assert {one["corpus"] for one in plan.rows()} == {"file"} and plan.page.exists()
    assert "kneser-ney-5, 20 conversations: 1 runs, 0 finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected a folder of their own, given none"):
        Plan(None, file)
