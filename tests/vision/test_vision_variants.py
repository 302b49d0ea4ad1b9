"""Variants of image runs compared, on made-up records: figures with known answers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from newllm_core.comparison.accuracy import VariantRuns, accuracy_difference, accuracy_table, mean_accuracy
from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.tables import readable_table
from newllm_core.vision.experiment import Record, score_cards
from newllm_core.vision.report.comparison import plot_epochs, plot_variants
from newllm_core.vision.report.score_table import card_lines, score_table


def record(correct: int, images: int = 1000, seed: int = 1, part: str = "test") -> Record:
    """Figures of a run as `experiment` writes them, without the run."""
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    figures = {
        "accuracy": correct / images, "accuracy_interval": [interval.low, interval.high], "loss": 1.0,
        "correct": correct, "images": images,
    }  # fmt: skip
    other = "selection" if part == "test" else "test"
    return {
        part: figures, other: None, "seed": seed, "parameters": {"total": 10}, "seconds": 2.0,
        "data": {"title": "made up", "train_images": 5},
        "config": {"model": {"width": 8, "depth": 1}, "train": {"epochs": 1}, "run": {"seed": seed}},
    }  # fmt: skip


def made_up(name: str, *correct: int, group: str = "group") -> VariantRuns:
    variant = {"name": name, "label": name, "group": group}
    records = [record(one, seed=seed) | {"variant": variant} for seed, one in enumerate(correct)]
    return VariantRuns(name, tuple(records), group)


# --- figures --------------------------------------------------------------------------------------------------------


def test_one_seed_has_wilsons_interval_and_newcombes_difference() -> None:
    """Newcombe 1998, table II, example (a): 56/70 against 48/80 gives 0.20 with 0.0524 … 0.3339 (method 10)."""
    runs = [VariantRuns(name, (record(c, n),), "group") for name, c, n in (("a", 56, 70), ("b", 48, 80))]
    difference = accuracy_difference(*runs, "test")
    assert difference.value == pytest.approx(20)
    assert difference.interval == pytest.approx((5.24, 33.39), abs=0.005)
    assert difference.is_distinguishable
    assert mean_accuracy(runs[0], "test").interval == pytest.approx((69.2, 87.7), abs=0.1)


def test_several_seeds_are_paired() -> None:
    """Differences of 1, 2 and 3 points whatever the seeds' own levels: 2 ± t(2) / sqrt(3)."""
    difference = accuracy_difference(made_up("a", 510, 720, 930), made_up("b", 500, 700, 900), "test")
    margin = t.ppf(0.975, 2) / math.sqrt(3)
    assert difference.value == pytest.approx(2)
    assert difference.interval == pytest.approx((2 - margin, 2 + margin))
    assert not difference.is_distinguishable


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_differences_are_antisymmetric_and_hold_their_value(mine: list[int], others: list[int]) -> None:
    one, two = made_up("a", *mine), made_up("b", *others[: len(mine)])
    forth, back = accuracy_difference(one, two, "test"), accuracy_difference(two, one, "test")
    assert forth.value == pytest.approx(-back.value) and forth.interval is not None and back.interval is not None
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert forth.interval[0] <= forth.value + 1e-9 and forth.value <= forth.interval[1] + 1e-9


def test_only_common_seeds_are_paired() -> None:
    whole, part = made_up("a", 510, 720, 930), made_up("b", 500, 700)
    assert accuracy_difference(whole, part, "test").by_seed == pytest.approx((1, 2))


def test_different_seeds_and_missing_figures_are_refused() -> None:
    another = VariantRuns("b", (record(1, seed=7),), "group")
    with pytest.raises(ComparisonError, match=r"a seed that both have, given \(0, 1\) of a and \(7,\) of b"):
        accuracy_difference(made_up("a", 1, 2), another, "test")
    with pytest.raises(ComparisonError, match="selection images"):
        mean_accuracy(made_up("a", 1), "selection")
    with pytest.raises(ComparisonError, match="'train'"):
        mean_accuracy(made_up("a", 1), "train")


def test_the_table_has_a_row_a_variant_and_says_what_is_not_distinguishable() -> None:
    reference = made_up("reference", 500, 510, 520)
    same, better = made_up("same", 505, 505, 521), made_up("better", 700, 712, 719)
    table = accuracy_table([*reference.records, *same.records, *better.records], "test")
    assert table["verdict"].tolist()[1:] == ["not distinguishable", "distinguishable"]
    assert table.loc[("group", "better"), "difference"] == pytest.approx((20 + 20.2 + 19.9) / 3)
    shown = readable_table(table)
    assert shown["difference"].tolist()[0] == "–" and shown["difference"].tolist()[2].startswith("+20.0 [")
    assert shown["verdict"].tolist() == ["–", "not distinguishable", "distinguishable"]


def test_the_picture_fills_the_dots_that_differ() -> None:
    reference = made_up("reference", 500, 510, 520, group="reference")
    runs = [reference, made_up("same", 505, 505, 521), made_up("better", 700, 712, 719)]
    (axis,) = plot_variants([record for one in runs for record in one.records], "test").axes
    means = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in means] == [True, False]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "reference\naccuracy 51.0 %", "same\naccuracy 51.0 %", "better\naccuracy 71.0 %", "reference", "group",
    ]  # fmt: skip
    assert "test images" in axis.get_xlabel() and axis.texts[0].get_text() == "reference"


def with_epochs(runs: list[VariantRuns]) -> list[Record]:
    records = [record for one in runs for record in one.records]
    for number, one in enumerate(records):
        one["training"] = {"epochs": [
            {"epoch": epoch, "train_accuracy": 0.1 * epoch, "selection_accuracy": 0.05 * epoch + 0.1 * number}
            for epoch in (1, 2)
        ]}  # fmt: skip
    return records


def test_the_picture_of_epochs_has_a_colour_a_variant_and_a_line_a_seed() -> None:
    train, selection = plot_epochs(with_epochs([made_up("base", 500, 510), made_up("packed", 505)])).axes
    assert [len({line.get_color() for line in axis.lines}) for axis in (train, selection)] == [2, 2]
    assert [line.get_ydata()[1] for line in selection.lines] == pytest.approx([10, 20, 30])  # type: ignore[index]
    legend = train.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["base", "packed"]


def test_the_picture_of_epochs_leaves_no_variant_out_where_colours_end() -> None:
    runs = [made_up(f"variant {number}", 500) for number in range(21)]  # as many as the diagnosis has
    for axis in plot_epochs(with_epochs(runs)).axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == len(runs)


def test_the_score_table_has_targets_where_there_are_any() -> None:
    """94.05 % at λ = 20 is 0.7113 (docs/method.md, section 12.2)."""
    theory = {"theory": {"tpe_scalar": 20, "tpe_params": 0.5}}
    records: dict[str, Record] = {"colour": record(500) | theory, "cifar10-jpeg": record(9405, 10_000) | theory}
    names = list(records)
    table = score_table(records, names)
    assert table["target %"].isna().tolist() == [True, False] and table.loc["cifar10-jpeg", "target %"] == 60
    assert table.loc["cifar10-jpeg", "tpe_scalar"] == pytest.approx(0.7113, abs=5e-5)
    assert (table["accuracy % low"] < table["accuracy %"]).all()
    assert (table["accuracy %"] < table["accuracy % high"]).all()
    assert readable_table(table).loc["colour", "target %"] == "–"
    first, second, third = card_lines("tpe_scalar", score_cards(records, names)["tpe_scalar"])
    assert first == "Global tpe_scalar over colour, cifar10-jpeg: 0.545 of at most 0.756 (target 0.7)"
    assert second.startswith("consistency") and third.endswith("that ran: 1.000")
