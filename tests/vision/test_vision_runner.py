"""Image runs in a sweep: variants, what they change, going on, and the committed runs."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data.errors import DataError
from newllm_core.studies.sweep import Sweep
from newllm_core.vision import experiment
from newllm_core.vision import runner as runner_module
from newllm_core.vision.config import (
    VisionDataConfig,
    VisionModelConfig,
    VisionTrainConfig,
    augmentation_pack,
    model_preset,
)
from newllm_core.vision.experiment import Record
from newllm_core.vision.runner import VisionRunner, estimated_cost
from newllm_core.vision.settings import VisionSettings, for_data_set
from newllm_core.vision.variants import (
    CENTRE,
    VisionVariant,
    data_set_variants,
    diagnosis_variants,
    term_variants,
    vision_variant,
)
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
VARIANTS = [
    CENTRE, vision_variant("images", "grey", {"colour": "grey"}),
    vision_variant("images", "fewer", {"num_train_images": 48}),
]  # fmt: skip


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
    first, *others = [one.settings(CIFAR) for one in term_variants()]
    assert first.model.nkat == "off"
    for other in others:
        model = dataclasses.replace(other.model, nkat="off", nkat_strength=first.model.nkat_strength)
        assert dataclasses.replace(other, model=model) == first


def test_an_unknown_parameter_of_a_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="widht"):
        vision_variant("size", "wide", {"widht": 8}).settings(CIFAR)


def test_data_sets_bring_their_own_form() -> None:
    colour, grey = (one.settings(CIFAR) for one in data_set_variants(["cifar10-jpeg", "mnist-5k"]))
    assert (colour.model.channels, colour.model.image_size) == (3, 32)
    assert (grey.model.channels, grey.model.image_size, grey.model.stem) == (1, 28, "off")
    assert colour.data.num_train_images is grey.data.num_train_images is None


def test_data_sets_of_settings_that_were_fitted_to_grey_images_are_in_grey(tmp_path: Path) -> None:
    grey = for_data_set(CIFAR, VisionDataConfig(dataset="mnist-5k", mirrorable=True, path=str(tmp_path)))
    (fashion,) = (one.settings(grey) for one in data_set_variants(["fashion-mnist"]))
    assert fashion.data == VisionDataConfig(dataset="fashion-mnist")  # the others' folder and mirroring are theirs
    with pytest.raises(ConfigError, match="expected settings that are not fitted to grey images yet"):
        data_set_variants(["cifar10-jpeg"])[0].settings(grey)


# --- runs -----------------------------------------------------------------------------------------------------------


def sweep_of(variants: Sequence[VisionVariant], seeds: Sequence[int], folder: Path, *, read_test: bool) -> Sweep:
    return Sweep(SMALL, variants, seeds, VisionRunner(read_test=read_test, folder=folder))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return sweep_of(VARIANTS, [1, 2], tmp_path_factory.mktemp("variants"), read_test=True).run()


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each name once"):
        sweep_of([CENTRE, CENTRE], [1], tmp_path, read_test=False)


def test_records_say_which_variant_they_are_and_colour_alone_solves_the_colour_task(records: list[Record]) -> None:
    assert [(one["variant"]["name"], one["seed"]) for one in records] == [
        ("centre", 1), ("centre", 2), ("grey", 1), ("grey", 2), ("fewer", 1), ("fewer", 2),
    ]  # fmt: skip
    assert records[2]["variant"] == VARIANTS[1].record()
    centre, grey = (statistics.fmean(one["test"]["accuracy"] for one in records[k : k + 2]) for k in (0, 2))
    assert centre > 0.7 and grey < 0.5  # chance: a third


def test_finished_runs_are_read_and_cost_nothing(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(VARIANTS[:1], [1], tmp_path, read_test=False)
    before = sweep.estimate()
    assert (before.num_runs, before.num_finished) == (1, 0) and 0 < before.cost.seconds < math.inf
    assert str(before).startswith("1 runs, 0 finished; the others at most about ")
    (first,) = sweep.run()
    assert first["test"] is None
    assert first["training"]["epochs"][0]["train_loss"] == pytest.approx(
        records[0]["training"]["epochs"][0]["train_loss"], rel=1e-6
    )
    again = sweep_of([CENTRE, vision_variant("again", "the same by another name")], [1], tmp_path, read_test=False)
    monkeypatch.setattr(runner_module, "load_image_data", None)  # would fail if images were needed
    assert str(again.estimate()) == "2 runs, all finished"
    assert [one["variant"]["name"] for one in again.run()] == ["centre", "the same by another name"]
    assert again.run()[0] == first


def test_a_test_set_that_was_not_read_is_read_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_of(VARIANTS[:1], [1], tmp_path, read_test=False).run()
    monkeypatch.setattr(experiment, "train_vision", None)  # would fail if anything were trained
    sweep = sweep_of(VARIANTS[:1], [1], tmp_path, read_test=True)
    assert sweep.finished() == [None] and sweep.estimate().cost.seconds == 0
    (record,) = sweep.run()
    assert record["test"]["readings"] == 1 and sweep.finished() == [record]


def test_a_missing_data_set_stops_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"dataset": "mnist-idx", "path": str(tmp_path / "nowhere"), "data_image_size": 16}
    monkeypatch.setattr(experiment, "train_vision", None)  # would fail if anything were trained
    with pytest.raises(DataError, match="nowhere"):
        sweep_of([CENTRE, vision_variant("data", "lost", nowhere)], [1], tmp_path, read_test=False).run()


def test_an_estimate_grows_with_epochs_and_images() -> None:
    images = runner_module.load_image_data(SMALL.data)
    longer = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, epochs=1000))
    assert estimated_cost(longer, images).seconds > 10 * estimated_cost(SMALL, images).seconds


# --- reference figures ----------------------------------------------------------------------------------------------


def test_the_reference_runs_are_possible_and_none_is_another() -> None:
    """What `reference_nkat` will train: the profile's sweeps, before any image is read."""
    sweeps = reference_nkat.all_sweeps()
    assert [len(one.points) for one in sweeps.values()] == [6, 15, 15, 2, 2, 2, 21, 1, 1, 1]
    baseline, rescue = (
        [one.settings for one in sweeps["rescue"].points if one.variant.name == name] for name in ("baseline", "rescue")
    )
    assert all(one.augmentation != other.augmentation for one, other in zip(rescue, baseline, strict=True))
    assert all(one.model == other.model and one.train == other.train for one, other in zip(rescue, baseline))
    keys = [sweeps[name].runner.key(one) for name in ("rescue", "long mnist-5k", "long fashion-mnist")
            for one in sweeps[name].points]  # fmt: skip
    assert len(set(keys)) == len(keys)
    for part in reference_nkat.SEARCHES:
        reference_nkat.search_plan(part).check()


def test_what_theta_became_is_tabled_for_runs_whose_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_nkat, "NKAT", tmp_path)
    monkeypatch.setattr(reference_nkat, "RUNS", tmp_path)
    kinds = [one for one in term_variants() if one.name in ("off", "key_bias")]
    sweep = sweep_of(kinds, [1], tmp_path, read_test=False)
    sweep.run()
    reference_nkat._report_theta("term colour", sweep)
    header, *rows = (tmp_path / "term_colour_theta.txt").read_text("utf-8").splitlines()
    assert header.split()[:3] == ["variant", "seed", "block"] and len(rows) == 1, "one block; off has no θ"
    assert rows[0].split()[:5] == ["key_bias,", "s", "=", "0.0024", "1"] and float(rows[0].split()[-1]) > 0


def test_every_committed_run_is_found() -> None:
    found = {name: [one is not None for one in sweep.finished()] for name, sweep in reference_nkat.all_sweeps().items()}
    assert all(found["rescue"])
    assert all(all(found[f"long {name}"]) for name in reference_nkat.LONG_RUNS)
