"""Training of the vision line: resumption to the last bit, one reading of the test set, what stops a run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import save_always
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.config.schema import ConfigError, changed, config_values, parameter_fields
from newllm_core.losses import NotFiniteError
from newllm_core.runs.files import RunError, read_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.runs.identity import figures_of
from newllm_core.studies.sweep import Sweep
from newllm_core.vision.__main__ import main
from newllm_core.vision.config import (
    DATASET_NAMES,
    VisionDataConfig,
    VisionModelConfig,
    VisionTrainConfig,
    augmentation_pack,
    model_preset,
)
from newllm_core.vision.data import ImageData, LabelledImages, load_image_data, splits
from newllm_core.vision.experiment import (
    CHECKPOINT_DIR,
    evaluation_record,
    load_trained,
    run_vision,
    score_cards,
)
from newllm_core.vision.runner import VisionRunner
from newllm_core.vision.score import ScoreError, tpe_score
from newllm_core.vision.settings import (
    VisionSettings,
    expected_form,
    for_data_set,
    run_name,
    settings_of,
)
from newllm_core.vision.training import EpochFigures, Evaluation, evaluate
from newllm_core.vision.variants import vision_variant

COLOUR = VisionDataConfig(dataset="colour", image_size=16, num_train_images=128)
SMALL = VisionSettings(
    data=COLOUR,
    model=VisionModelConfig(image_size=16, num_classes=3, width=16, depth=2, heads=2, patch=2, stem="tiny"),
    augmentation=augmentation_pack("rescue", channel_shuffle_probability=0.1, cutout_size=4),
    train=VisionTrainConfig(epochs=4, warmup_epochs=1, batch_size=48, learning_rate=3e-3),
    run=RunConfig(num_threads=1),
)
SHORT = changed(SMALL, {"epochs": 2, "randaugment_operations": 0, "stem": "off", "patch": 4})


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load_image_data(COLOUR)


@pytest.fixture(scope="module")
def finished(images: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("vision") / "run"
    run_vision(SHORT, run_dir, images=images, show_progress=False)
    return run_dir


def interrupt_after(epoch: int) -> Callable[[EpochFigures], None]:
    def report(figures: EpochFigures) -> None:
        if figures.epoch == epoch:
            raise Interruption

    return report


def interrupted(settings: VisionSettings, run_dir: Path, images: ImageData, epoch: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        save_always(patch)
        run_vision(settings, run_dir, images=images, report=interrupt_after(epoch), show_progress=False)


@pytest.fixture
def readings_of_test_images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets whose test images were read; the reading itself is the real one."""
    readings: list[str] = []
    read_split = splits.read_split

    def counted(config: VisionDataConfig, split: str) -> Any:
        if split == "test":
            readings.append(config.dataset)
        return read_split(config, split)

    monkeypatch.setattr(splits, "read_split", counted)
    return readings


# --- resumption


def test_resumed_run_is_bit_identical(images: ImageData, tmp_path: Path) -> None:
    whole = run_vision(SMALL, tmp_path / "whole", images=images, show_progress=False)
    for epoch in (1, 3):
        interrupted(SMALL, tmp_path / "resumed", images, epoch)
        torch.rand(7)  # what else a process draws does not matter
    resumed = run_vision(SMALL, tmp_path / "resumed", images=images, show_progress=False)
    assert figures_of(resumed) == figures_of(whole)
    weights, expected = (load_trained(tmp_path / name)[0].state_dict() for name in ("resumed", "whole"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_checkpoint_holds_all_weights_and_goes_when_the_run_is_finished(images: ImageData, tmp_path: Path) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    folder = tmp_path / CHECKPOINT_DIR
    assert sorted(path.suffix for path in folder.iterdir()) == sorted(2 * [".json", ".pt", ".safetensors"])
    states = torch.load(max(folder.glob("*.pt")), weights_only=True)
    assert {"optimizer", "schedule"} <= set(states["parts"]) and "generator" in states
    assert not (tmp_path / RECORD_NAME).exists()
    run_vision(SHORT, tmp_path, images=images, show_progress=False)
    assert not folder.exists() and (tmp_path / RECORD_NAME).is_file()


def test_rounded_products_train_alike_and_are_judged_by_exact_ones(
    images: ImageData, finished: Path, tmp_path: Path
) -> None:
    rounded = changed(SHORT, {"products": "bfloat16"})
    record = run_vision(rounded, tmp_path / "run", images=images, read_test=False, show_progress=False)
    exact = read_json(finished / RECORD_NAME)
    losses = [[epoch["train_loss"] for epoch in one["training"]["epochs"]] for one in (record, exact)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    model, _ = load_trained(tmp_path / "run")
    assert evaluate(model, images.selection, images.normalisation).loss == record["selection"]["loss"]


def test_report_sees_every_epoch_also_those_before_an_interruption(images: ImageData, tmp_path: Path) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    seen: list[EpochFigures] = []
    for _ in range(2):  # the second time the run is finished
        run_vision(SHORT, tmp_path, images=images, report=seen.append, show_progress=False)
    assert [figures.epoch for figures in seen] == [1, 2, 1, 2] and seen[:2] == seen[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"learning_rate": 1e-3}, "train.learning_rate = 0.003"), ({"seed": 1}, "run.seed = 42")],
)
def test_folder_of_another_configuration_is_refused(
    images: ImageData, finished: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = changed(SHORT, changes)
    interrupted(SHORT, tmp_path, images, 1)
    for folder in (finished, tmp_path):
        with pytest.raises(RunError, match=message):
            run_vision(other, folder, images=images, show_progress=False)


def test_checkpoint_of_other_images_is_refused(images: ImageData, tmp_path: Path) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    provenance = {**images.provenance, "sources": {"generator": "another"}}
    with pytest.raises(RunError, match="read.sources = {'generator': 'colour task, seed 0'}"):
        run_vision(SHORT, tmp_path, images=dataclasses.replace(images, provenance=provenance), show_progress=False)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".json"])
def test_checkpoints_that_were_all_altered_are_refused(images: ImageData, tmp_path: Path, suffix: str) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    for path in (tmp_path / CHECKPOINT_DIR).glob(f"*{suffix}"):
        path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(RunError, match=f"{suffix}: the file .*does not match its checksum"):
        run_vision(SHORT, tmp_path, images=images, show_progress=False)


# --- selection and test


def test_test_set_is_read_once_per_run(images: ImageData, tmp_path: Path, readings_of_test_images: list[str]) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    assert readings_of_test_images == []
    for _ in range(2):
        record = run_vision(SHORT, tmp_path, images=images, show_progress=False)
        assert readings_of_test_images == ["colour"] and record["test"]["readings"] == 1


def test_selection_never_touches_test_images(
    tmp_path: Path, readings_of_test_images: list[str], finished: Path
) -> None:
    record = run_vision(SHORT, tmp_path, read_test=False, show_progress=False)
    assert readings_of_test_images == []
    assert record["test"] is None and record["tpe_score"]["tpe_scalar"]["test"] is None
    assert record["selection"]["images"] == 200
    later = run_vision(SHORT, tmp_path, show_progress=False)
    assert readings_of_test_images == ["colour"]
    assert (
        figures_of(later)
        == figures_of(read_json(finished / RECORD_NAME))
        == figures_of(read_json(tmp_path / RECORD_NAME))
    )


def test_kept_weights_are_the_averaged_ones_of_the_best_epoch(finished: Path, images: ImageData) -> None:
    model, record = load_trained(finished)
    training = record["training"]
    accuracies = [row["selection_accuracy"] for row in training["epochs"]]
    assert training["best_epoch"] == 1 + accuracies.index(max(accuracies))
    measured = evaluate(model, images.selection, images.normalisation)
    best = training["epochs"][training["best_epoch"] - 1]
    assert (measured.loss, measured.accuracy) == (best["selection_loss"], best["selection_accuracy"])


def test_averaging_weights_does_not_change_the_training(finished: Path, images: ImageData, tmp_path: Path) -> None:
    averaged = read_json(finished / RECORD_NAME)["training"]["epochs"]
    settings = changed(SHORT, {"ema_decay": None})
    interrupted(settings, tmp_path, images, 1)
    own = run_vision(settings, tmp_path, images=images, read_test=False, show_progress=False)["training"]["epochs"]
    assert [row["train_loss"] for row in own] == [row["train_loss"] for row in averaged]
    assert averaged[-1]["own_selection_loss"] == own[-1]["selection_loss"] != averaged[-1]["selection_loss"]
    assert averaged[0]["own_selection_loss"] is None and own[-1]["own_selection_loss"] is None


def test_evaluation_is_without_dropout_and_keeps_the_mode(images: ImageData, finished: Path) -> None:
    model = load_trained(finished)[0].train()
    first, second = (evaluate(model, images.selection, images.normalisation) for _ in range(2))
    assert first == second and model.training
    parts = [images.selection.subset(torch.arange(start, start + 50)) for start in range(0, 200, 50)]
    assert sum(evaluate(model, part, images.normalisation).num_correct for part in parts) == first.num_correct


def test_model_learns_the_colour_task(images: ImageData, tmp_path: Path) -> None:
    plain = dataclasses.replace(SHORT, augmentation=augmentation_pack("off"))
    settings = changed(plain, {"epochs": 6, "learning_rate": 0.01, "batch_size": 16})
    record = run_vision(settings, tmp_path, images=images, show_progress=False)
    assert record["test"]["accuracy_interval"][0] > 0.5  # three classes: chance is a third
    assert all(0 < row["learning_rate"] <= 0.01 for row in record["training"]["epochs"])


# --- what stops a run


def test_loss_that_is_not_finite_stops_the_run(images: ImageData, tmp_path: Path) -> None:
    settings = changed(SHORT, {"learning_rate": 1e30})
    with pytest.raises(NotFiniteError, match="NKAT, epoch 1: training loss is nan. Training stops.*no checkpoint was"):
        run_vision(settings, tmp_path, images=images, show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_model_that_does_not_fit_the_images_is_refused(images: ImageData, tmp_path: Path) -> None:
    settings = changed(SHORT, {"num_classes": 10})
    with pytest.raises(ConfigError, match="for colour task: .*num_classes=3; given .*num_classes=10. for_data_set"):
        run_vision(settings, tmp_path, images=images, show_progress=False)


def test_untrained_or_altered_weights_are_refused(images: ImageData, tmp_path: Path) -> None:
    interrupted(SHORT, tmp_path, images, 1)
    with pytest.raises(RunError, match="expected a finished run .*, found none. What an untrained model attends to"):
        load_trained(tmp_path)
    run_vision(SHORT, tmp_path, images=images, read_test=False, show_progress=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match="model.safetensors does not match its checksum"):
        load_trained(tmp_path)


# --- records and scores


def test_record_tells_configuration_theory_and_provenance(finished: Path) -> None:
    record = read_json(finished / RECORD_NAME)
    assert settings_of(record) == SHORT
    assert record["theory"]["tpe_scalar"] == 4 * SHORT.model.depth
    assert record["theory"]["tpe_params"] == record["parameters"]["total"] / 1e6
    assert record["tpe_score"]["tpe_scalar"]["test"] == tpe_score(record["test"]["accuracy"], 8)
    assert record["data"]["sources"] == record["test"]["sources"] == {"generator": "colour task, seed 0"}
    assert {"torch", "kornia"} <= set(record["versions"]) and len(record["training"]["epochs"]) == 2
    assert record["smoke_gate"]["passed"] is None  # shorter than the gate


def test_path_of_the_data_is_not_part_of_a_record() -> None:
    settings = dataclasses.replace(SHORT, data=dataclasses.replace(COLOUR, path="/somewhere"))
    assert "somewhere" not in json.dumps(config_values(settings))
    assert run_name(settings) == run_name(SHORT)


@pytest.mark.parametrize("name", ["seed", "nkat_strength", "crop_padding", "num_train_images", "ema_decay"])
def test_every_section_changes_the_runs_name(name: str) -> None:
    section, field = parameter_fields(VisionSettings)[name]
    other = changed(SHORT, {name: getattr(getattr(SHORT, section), field) / 2 if name == "ema_decay" else 7})
    assert run_name(other) != run_name(SHORT)


@given(st.integers(0, 50), st.integers(1, 50))
@hypothesis_settings(deadline=None)
def test_accuracy_lies_in_its_interval(correct: int, more: int) -> None:
    figures = evaluation_record(Evaluation(1.0, correct, correct + more))
    low, high = figures["accuracy_interval"]
    assert 0 <= low <= figures["accuracy"] <= high <= 1


def test_several_data_sets_give_a_score_card(tmp_path: Path) -> None:
    base = changed(SHORT, {"epochs": 2, "channel_shuffle_probability": 0.0})
    grey = [vision_variant("data sets", "grey", {"dataset": "colour", "colour": "grey"})]
    (record,) = Sweep(base, grey, [SHORT.run.seed], VisionRunner(read_test=True, folder=tmp_path)).run()
    records = {"colour": record}
    assert records["colour"]["config"]["model"]["channels"] == 1
    card = score_cards(records, ["colour"])["tpe_scalar"]
    assert card.global_score == records["colour"]["tpe_score"]["tpe_scalar"]["test"]
    with pytest.raises(ScoreError, match="no accuracy for mnist-5k: .*given colour"):
        score_cards(records, ["colour", "mnist-5k"])
    with pytest.raises(ScoreError, match="expected part 'selection' or 'test', given 'train'"):
        score_cards(records, ["colour"], "train")


def test_run_that_has_not_read_its_test_set_has_no_test_score(images: ImageData, tmp_path: Path) -> None:
    record = run_vision(SHORT, tmp_path, images=images, read_test=False, show_progress=False)
    assert score_cards({"colour": record}, ["colour"], "selection")["tpe_params"].global_score is not None
    with pytest.raises(ScoreError, match="no accuracy for colour"):
        score_cards({"colour": record}, ["colour"])


# --- settings


def test_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'widht'. Did you mean 'width'"):
        changed(SHORT, {"widht": 32})


def test_sections_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="channel shuffle and split_head exclude each other"):
        changed(SHORT, {"split_head": True, "heads": 4})


@pytest.mark.parametrize("dataset", [name for name in DATASET_NAMES if name != "image-folder"])
def test_full_model_fits_every_data_set(dataset: str) -> None:
    base = VisionSettings(
        model=model_preset("quick", colour_norm="residual", split_head=True),
        augmentation=augmentation_pack("rescue"),
    )
    fitted = for_data_set(base, VisionDataConfig(dataset=dataset))
    channels, side, classes = expected_form(fitted.data)
    assert (fitted.model.channels, fitted.model.image_size, fitted.model.num_classes) == (channels, side, classes)
    if channels == 1:
        assert (fitted.model.patch, fitted.model.stem, fitted.model.split_head) == (4, "off", False)
    else:
        assert fitted.model.split_head and fitted.model.stem == "tiny"


def test_expected_form_is_that_of_the_images(images: ImageData) -> None:
    assert expected_form(COLOUR) == (*images.shape[:2], len(images.classes))


def test_own_images_need_a_size() -> None:
    with pytest.raises(ConfigError, match="image-folder: expected image_size"):
        for_data_set(SHORT, VisionDataConfig(dataset="image-folder"))


def test_command_line_runs_and_says_what_it_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run colour --model quick --augmentation off"
    parameters = {
        "data_image_size": 16, "num_train_images": 32, "batch_size": 32, "patch": 4, "stem": "off", "width": 16,
        "depth": 1, "epochs": 1, "warmup_epochs": 0, "learning_rate": "1e-3", "num_threads": 1,
    }  # fmt: skip
    given_parameters = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    main([*words.split(), "--folder", str(tmp_path), *given_parameters])
    record = read_json(tmp_path / RECORD_NAME)
    printed = capsys.readouterr().out
    assert f"test       accuracy {record['test']['accuracy']:.4f}" in printed and "/500" in printed
    assert record["config"]["train"]["learning_rate"] == 1e-3


def test_labelled_images_of_a_selection_are_disjoint_from_training(images: ImageData) -> None:
    def rows(part: LabelledImages) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.images}

    assert not rows(images.train) & rows(images.selection)
