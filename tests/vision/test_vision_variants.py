"""Variants of one configuration: what they change, their runs, and figures with known answers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from newllm_core.vision.variant_series import VariantRuns, VariantSeries
from scipy.stats import binomtest, t

from newllm_core.comparison.accuracy import accuracy_difference, comparison_table, mean_accuracy, readable_table
from newllm_core.comparison.groups import ComparisonError
from newllm_core.config.language import RunConfig
from newllm_core.vision.config import (
    VisionDataConfig,
    VisionModelConfig,
    VisionTrainConfig,
    augmentation_pack,
    model_preset,
)
from newllm_core.vision.experiment import Record, score_cards
from newllm_core.vision.report.comparison import plot_variants
from newllm_core.vision.report.score_table import card_lines, score_table
from newllm_core.vision.settings import VisionSettings
from newllm_core.vision.variants import CENTRE, Variant

CIFAR = VisionSettings(data=VisionDataConfig(dataset="cifar10-jpeg"), model=model_preset("quick"))
SMALL = VisionSettings(
    data=VisionDataConfig(dataset="colour", image_size=16, num_train_images=96),
    model=VisionModelConfig(
        width=16, depth=1, heads=2, patch=4, stem="off", image_size=16, num_classes=3, attention_dropout=0.0
    ),
    augmentation=augmentation_pack("off"),
    train=VisionTrainConfig(epochs=2, warmup_epochs=0, batch_size=16, learning_rate=0.01, ema_decay=None),
    run=RunConfig(num_threads=1),
)
VARIANTS = [CENTRE, Variant("images", "grey", {"colour": "grey"}), Variant("images", "fewer", {"num_train_images": 48})]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[VariantRuns]:
    folder = tmp_path_factory.mktemp("variants")
    return VariantSeries(SMALL, VARIANTS, [1, 2], read_test=True, folder=folder).run()


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
        "config": {"model": {"width": 8, "depth": 1}, "train": {"epochs": 1}},
    }  # fmt: skip


def made_up(name: str, *correct: int, group: str = "group") -> VariantRuns:
    return VariantRuns(Variant(group, name), tuple(record(one, seed=seed) for seed, one in enumerate(correct)))


# --- figures --------------------------------------------------------------------------------------------------------


def test_one_seed_has_wilsons_interval_and_newcombes_difference() -> None:
    """Newcombe 1998, table II, example (a): 56/70 against 48/80 gives 0.20 with 0.0524 … 0.3339 (method 10)."""
    runs = [VariantRuns(Variant("g", name), (record(c, n),)) for name, c, n in (("a", 56, 70), ("b", 48, 80))]
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
    assert forth.value == pytest.approx(-back.value)
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert forth.interval[0] <= forth.value + 1e-9 and forth.value <= forth.interval[1] + 1e-9


def test_different_seeds_and_missing_figures_are_refused() -> None:
    with pytest.raises(ComparisonError, match="same seeds"):
        accuracy_difference(made_up("a", 1, 2), made_up("b", 1), "test")
    with pytest.raises(ComparisonError, match="selection images"):
        mean_accuracy(made_up("a", 1), "selection")
    with pytest.raises(ComparisonError, match="'train'"):
        mean_accuracy(made_up("a", 1), "train")


def test_the_table_has_a_row_a_variant_and_says_what_is_not_distinguishable() -> None:
    reference = made_up("reference", 500, 510, 520)
    same, better = made_up("same", 505, 505, 521), made_up("better", 700, 712, 719)
    table = comparison_table([reference, same, better], reference, "test")
    assert table["distinguishable"].tolist() == [False, False, True]
    assert table.loc[("group", "better"), "difference"] == pytest.approx((20 + 20.2 + 19.9) / 3)
    shown = readable_table(table)["difference"].tolist()
    assert shown[0] == "–" and shown[1].endswith("(not distinguishable)") and shown[2].startswith("+20.0 [")


def test_the_picture_fills_the_dots_that_differ() -> None:
    reference = made_up("reference", 500, 510, 520, group="reference")
    runs = [reference, made_up("same", 505, 505, 521), made_up("better", 700, 712, 719)]
    (axis,) = plot_variants(runs, reference, "test").axes
    means = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in means] == [True, True, False]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "reference", "group: same", "group: better",
    ]  # fmt: skip
    assert "test images" in axis.get_xlabel()


def test_the_score_table_has_targets_where_there_are_any() -> None:
    """94.05 % at λ = 20 is 0.7113 (nkat.md section 2)."""
    theory = {"theory": {"tpe_scalar": 20, "tpe_params": 0.5}}
    records: dict[str, Record] = {"colour": record(500) | theory, "cifar10-jpeg": record(9405, 10_000) | theory}
    names = list(records)
    table = score_table(records, names)
    assert table["target %"].isna().tolist() == [True, False] and table.loc["cifar10-jpeg", "target %"] == 60
    assert table.loc["cifar10-jpeg", "tpe_scalar"] == pytest.approx(0.7113, abs=5e-5)
    assert (table["low"] < table["accuracy %"]).all() and (table["accuracy %"] < table["high"]).all()
    first, second, third = card_lines("tpe_scalar", score_cards(records, names)["tpe_scalar"])
    assert first == "Global tpe_scalar over colour, cifar10-jpeg: 0.545 of at most 0.756 (target 0.7)"
    assert second.startswith("consistency") and third.endswith("that ran: 1.000")
