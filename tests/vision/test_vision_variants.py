"""Variants of one configuration: what they change, their runs, and figures with known answers."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from newllm_core.comparison.accuracy import VariantRuns, accuracy_difference, accuracy_table, mean_accuracy, variants_of
from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.tables import readable_table
from newllm_core.config.language import RunConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data.errors import DataError
from newllm_core.vision import experiment, variant_series
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
from newllm_core.vision.variant_series import VariantSeries, estimated_seconds
from newllm_core.vision.variants import CENTRE, Variant, diagnosis_variants, term_variants
from reproduce import reference_nkat

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
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
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
    variant = {"name": name, "label": name, "group": group}
    records = [record(one, seed=seed) | {"variant": variant} for seed, one in enumerate(correct)]
    return VariantRuns(variant, tuple(records))


# --- variants -------------------------------------------------------------------------------------------------------


def test_every_variant_of_the_diagnosis_is_possible_on_cifar_and_differs_from_the_centre() -> None:
    found = {one.name: one.settings(CIFAR) for one in diagnosis_variants(8000)}
    assert len({*map(str, found.values())}) == len(found)
    assert CIFAR not in found.values()


@pytest.mark.parametrize(
    ("name", "patches", "channels"),
    [
        ("28 × 28 grey", 49, 1),
        ("patch 7, no stem, 28 × 28", 16, 3),
        ("patch 4, no stem", 64, 3),
        ("patch 2, no stem", 256, 3),
        ("strides (2, 2)", 16, 3),
        ("small stem", 64, 3),
    ],
)
def test_patches_of_a_variant(name: str, patches: int, channels: int) -> None:
    (variant,) = (one for one in diagnosis_variants(8000) if one.name == name)
    model = variant.settings(CIFAR).model
    assert (model.num_patches, model.channels) == (patches, channels)


def test_the_parts_of_the_rescue_pack_make_the_whole() -> None:
    parts = [one.changes for one in diagnosis_variants(8000) if one.name.startswith("+ ")]
    together = {name: value for part in parts for name, value in part.items()}
    (whole,) = (one.changes for one in diagnosis_variants(8000) if one.name == "rescue pack")
    assert together == whole


def test_term_variants_differ_in_the_term_alone() -> None:
    first, *others = [one.settings(CIFAR) for one in term_variants((0.05,))]
    assert first.model.nkat == "off"
    for other in others:
        model = dataclasses.replace(other.model, nkat="off", nkat_strength=first.model.nkat_strength)
        assert dataclasses.replace(other, model=model) == first


def test_an_unknown_parameter_of_a_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="widht"):
        Variant("size", "wide", {"widht": 8}).settings(CIFAR)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="each name once"):
        VariantSeries(SMALL, [CENTRE, CENTRE], [1], read_test=False)


def test_grey_loses_the_colour_task_and_colour_keeps_it(runs: list[Record]) -> None:
    centre, grey, _ = (mean_accuracy(one, "test").value for one in variants_of(runs))
    assert centre > 80 and grey < 50  # chance: 33 %


def test_finished_runs_are_read_and_cost_nothing(
    runs: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = VariantSeries(SMALL, VARIANTS[:1], [1], read_test=False, folder=tmp_path)
    before = series.estimate()
    assert (before.num_runs, before.num_finished) == (1, 0) and 0 < before.seconds < math.inf
    assert str(before).startswith("1 runs, 0 finished; the others about ")
    (first,) = series.run()
    assert first["test"] is None and first["variant"]["name"] == "centre"
    monkeypatch.setattr(variant_series, "load_image_data", None)  # would fail if images were needed
    again = VariantSeries(SMALL, VARIANTS[:1], [1], read_test=False, folder=tmp_path)
    assert str(again.estimate()) == "1 runs, all finished"
    assert again.run() == [first]
    assert first["training"]["epochs"][0]["train_loss"] == pytest.approx(
        runs[0]["training"]["epochs"][0]["train_loss"], rel=1e-6
    )


def test_a_missing_data_set_stops_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Variant("data", "lost", {"dataset": "mnist-idx", "path": str(tmp_path / "nowhere"), "data_image_size": 16})
    monkeypatch.setattr(experiment, "train_vision", None)  # would fail if anything were trained
    with pytest.raises(DataError, match="nowhere"):
        VariantSeries(SMALL, [CENTRE, lost], [1], read_test=False, folder=tmp_path).run()


def test_an_estimate_grows_with_epochs_and_images() -> None:
    images = variant_series.load_image_data(SMALL.data)
    longer = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, epochs=2000))
    assert estimated_seconds(longer, images) > 20 * estimated_seconds(SMALL, images)


# --- figures --------------------------------------------------------------------------------------------------------


def test_one_seed_has_wilsons_interval_and_newcombes_difference() -> None:
    """Newcombe 1998, table II, example (a): 56/70 against 48/80 gives 0.20 with 0.0524 … 0.3339 (method 10)."""
    runs = [VariantRuns({"name": name}, (record(c, n),)) for name, c, n in (("a", 56, 70), ("b", 48, 80))]
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


def test_the_score_table_has_targets_where_there_are_any() -> None:
    """94.05 % at λ = 20 is 0.7113 (nkat.md section 2)."""
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


# --- reference figures ----------------------------------------------------------------------------------------------


def test_the_reference_runs_are_possible_and_none_is_another() -> None:
    """What `python -m reproduce.reference_nkat` will train: the profile's lists, before any image is read."""
    lists = reference_nkat.all_series()
    assert [len(one.run_dirs()) for one in lists.values()] == [6, 9, 1, 1, 1]
    rescue, baseline = lists["rescue"].points["rescue"], lists["rescue"].points["baseline"]
    assert all(one.augmentation != other.augmentation for one, other in zip(rescue, baseline, strict=True))
    assert all(one.model == other.model and one.train == other.train for one, other in zip(rescue, baseline))
    dirs = [path for name in ("rescue", "long mnist-5k", "long fashion-mnist") for path in lists[name].run_dirs()]
    assert len(set(dirs)) == len(dirs)
    reference_nkat.search_plan().check()
