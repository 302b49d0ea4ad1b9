"""What an image run's `run.json` holds: every key with kind, unit and definition; `docs/records.md` is made of it."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from newllm_core.runs.key_kinds import COMPUTED_KEYS, FORMAT, Key, check_record, config_keys, unequal
from newllm_core.vision.settings import VisionSettings

_NO_AVERAGE = "not the last epoch, or no average"
_NOT_READ = "the test images were not read"
_SHORTER = "fewer epochs were run"


def _evaluation_keys(path: str, of: str) -> dict[str, Key]:
    return {
        f"{path}.accuracy": Key("share", f"{of} whose class was the most probable one"),
        f"{path}.accuracy_interval[]": Key("share", "its 95 % interval (Wilson)"),
        f"{path}.loss": Key("number", "mean cross-entropy", "nats per image"),
        f"{path}.correct": Key("count", "right ones", "images"),
        f"{path}.images": Key("count", "all of them", "images"),
    }


def _score_keys(name: str, divisor: str) -> dict[str, Key]:
    path = f"tpe_score.{name}"
    return {
        f"{path}.maximum": Key("number", f"score of accuracy 1: 1 / log10(1 + {divisor})", missing="λ = 0"),
        f"{path}.selection": Key("number", f"accuracy / log10(1 + {divisor})", missing="λ = 0"),
        f"{path}.test": Key("number", "the same on the test images", missing=f"λ = 0, or {_NOT_READ}"),
    }


VISION_KEYS: dict[str, Key] = {
    "format": Key("count", f"number of this description: {FORMAT}"),
    "dataset": Key("text", "data set, by name (`config.data.dataset`)"),
    "data.dataset": Key("text", "the same name"),
    "data.title": Key("text", "its name in words"),
    "data.sources.*": Key("text", "SHA-256 of each file read, or how images were generated"),
    "data.stored_training_images": Key("count", "before any were held out", "images"),
    "data.train_images": Key("count", "trained on", "images"),
    "data.selection_images": Key("count", "held out of the training images, to choose the epoch on", "images"),
    "data.train_images_per_class[]": Key("count", "by class", "images"),
    "data.image_shape[]": Key("count", "channels, height, width"),
    "data.normalisation.mean[]": Key("number", "subtracted from each channel"),
    "data.normalisation.std[]": Key("positive", "that each channel is divided by"),
    "data.mirrorable": Key(
        "truth", "whether training images could be mirrored, by `augmentation.flip_probability`", optional=True
    ),
    "data.classes[]": Key("text", "names, by number"),
    "seed": Key("count", "of everything drawn (`config.run.seed`)"),
    "read.*": Key("text", "SHA-256 of what was read, by name"),
    "parameters.*": Key("count", "by part, and their total", "parameters"),
    "theory.tpe_scalar": Key("number", "λ: learnable NKAT scalars"),
    "theory.tpe_params": Key("number", "λ: millions of parameters"),
    "training.epochs[].epoch": Key("count", "number of the epoch, from 1"),
    "training.epochs[].train_loss": Key("number", "mean over the epoch's augmented images", "nats per image"),
    "training.epochs[].train_accuracy": Key("share", "of them; right where the largest target is"),
    "training.epochs[].selection_loss": Key("number", "of the averaged weights", "nats per image"),
    "training.epochs[].selection_accuracy": Key("share", "of the averaged weights"),
    "training.epochs[].own_selection_loss": Key("number", "of the model's own weights", "nats per image", _NO_AVERAGE),
    "training.epochs[].own_selection_accuracy": Key("share", "of the model's own weights", missing=_NO_AVERAGE),
    "training.epochs[].gradient_norm": Key("number", "mean over the steps, before clipping"),
    "training.epochs[].learning_rate": Key("number", "of the last step"),
    "training.epochs[].seconds": Key("number", "of training and evaluation", "seconds"),
    "training.best_epoch": Key("count", "whose weights were kept"),
    "training.steps_per_epoch": Key("count", "optimizer steps", "steps"),
    "smoke_gate.epochs": Key("count", "after which the gate looks", "epochs"),
    "smoke_gate.threshold": Key("share", "accuracy to be exceeded"),
    "smoke_gate.selection_accuracy": Key("share", "reached by then", missing=_SHORTER),
    "smoke_gate.passed": Key("truth", "whether it was exceeded", missing=_SHORTER),
    **_evaluation_keys("selection", "selection images"),
    "test": Key("object", "figures of the test images", missing=_NOT_READ),
    **_evaluation_keys("test", "test images"),
    "test.readings": Key("count", "how often the run read the test images: 1"),
    "test.sources.*": Key("text", "SHA-256 of each test file read, or how images were generated"),
    **_score_keys("tpe_scalar", "λ of the scalars"),
    **_score_keys("tpe_params", "λ of the parameters"),
    **COMPUTED_KEYS,
    "start": Key("text", "of the session that finished the run, ISO 8601"),
    "seconds": Key("number", "of all epochs", "seconds"),
}

VISION_CONFIG_KEYS = config_keys(VisionSettings, [spec.name for spec in fields(VisionSettings)])


def check_vision_record(record: Mapping[str, Any], path: Path) -> None:
    """Raises RunError as ``key_kinds.check_record``."""
    check_record(record, path, "an image run's", {**VISION_KEYS, **VISION_CONFIG_KEYS}, _contradictions)


def _contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    epochs, parameters = record["training"]["epochs"], record["parameters"]
    yield from unequal("seed", record["seed"], "config", record["config"]["run"]["seed"])
    yield from unequal("dataset", record["dataset"], "config", record["config"]["data"]["dataset"])
    summed = sum(count for name, count in parameters.items() if name != "total")
    yield from unequal("parameters.total", parameters["total"], "the sum of the parts", summed)
    yield from unequal("theory.tpe_params", record["theory"]["tpe_params"], "parameters", parameters["total"] / 1e6)
    yield from unequal(
        "training.epochs", [epoch["epoch"] for epoch in epochs], "their places", list(range(1, len(epochs) + 1))
    )
    for part in ("selection", "test"):
        figures = record[part]
        if figures is not None:
            yield from unequal(
                f"{part}.accuracy", figures["accuracy"], "correct / images", figures["correct"] / figures["images"]
            )
    if not 1 <= record["training"]["best_epoch"] <= len(epochs):
        yield f"training.best_epoch is {record['training']['best_epoch']}, but {len(epochs)} epochs were run"
        return
    kept = epochs[record["training"]["best_epoch"] - 1]
    yield from unequal("selection.accuracy", record["selection"]["accuracy"], "its epoch", kept["selection_accuracy"])
