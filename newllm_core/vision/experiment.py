"""One vision run: data → training → one reading of the test set → `run.json`; and several data sets → score cards.

A finished run is read, a partial one goes on after its last epoch, as on the language line.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from newllm_core.intervals import wilson_interval
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import RESULTS_DIR, RunError, has_valid_checksum, load_tensors, read_json
from newllm_core.runs.folder import RECORD_NAME, Record, RunFolder, is_complete
from newllm_core.runs.identity import Identity
from newllm_core.runs.key_kinds import FORMAT
from newllm_core.runs.reproducibility import computed_by, resolve_device, seed_everything
from newllm_core.runs.world import refuse_ranks
from newllm_core.vision.config import SMOKE_GATE_ACCURACY, SMOKE_GATE_EPOCHS, VisionDataConfig
from newllm_core.vision.data import (
    ImageData,
    Normalisation,
    OneTestReading,
    images_read,
    load_image_data,
    read_test_images,
)
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.record_keys import check_vision_record
from newllm_core.vision.score import (
    ScoreCard,
    ScoreError,
    attainable_maximum,
    score_card,
    theory_params,
    theory_scalars,
    tpe_score,
)
from newllm_core.vision.settings import (
    VisionSettings,
    require_fit,
    run_identity,
    settings_of,
)
from newllm_core.vision.training import EpochFigures, Evaluation, TrainingResult, evaluate, train_vision

logger = logging.getLogger("newllm")

WEIGHTS_NAME, CHECKPOINT_DIR = "model.safetensors", "checkpoint"
VISION_DIR = RESULTS_DIR / "vision"
SCORES = ("tpe_scalar", "tpe_params")  # by the λ they divide by


def vision_place(run_dir: Path, identity: Identity, copy_to: str | None = None) -> RunFolder:
    """A run on images as it is kept in ``run_dir``."""
    checkpoint, weights = run_dir / CHECKPOINT_DIR, run_dir / WEIGHTS_NAME
    return RunFolder(run_dir / RECORD_NAME, checkpoint, identity, check_vision_record, (weights,), copy_to)


def run_vision(
    settings: VisionSettings,
    run_dir: Path,
    *,
    images: ImageData | None = None,
    read_test: bool = True,
    report: Callable[[EpochFigures], None] = lambda figures: None,
    show_progress: bool = True,
) -> Record:
    """Train, choose the epoch on the selection images, read the test set once, and write the record.

    Args:
        run_dir: gets `run.json` and the weights, and until then checkpoints.
        images: those of ``settings.data``, when they are loaded already.
        read_test: False for runs among which one is chosen; `test` is null then. A later call with True reads it.
        report: called with every epoch, also of a run that is finished; what it raises ends the run, which can go on.

    Raises ConfigError (the model does not fit the data), DataError, NotFiniteError, or RunError (another
    configuration in the folder, ``images`` that are not those of ``settings.data``, or several processes of torchrun).
    """
    refuse_ranks("image runs")
    if images is not None:
        _refuse_other_images(images, settings.data)
    place = vision_place(run_dir, run_identity(settings, images), settings.run.copy_to)
    with place.held() as held:
        if held.record is None:
            record, model = _trained(settings, held.checkpoints, images, report, show_progress)
            if read_test:
                record |= _test(record, model, settings.data)
            return held.finish(record, {WEIGHTS_NAME: model.state_dict()})
        for row in held.record["training"]["epochs"]:
            report(EpochFigures(**row))
        if not read_test or held.record["test"] is not None:
            return held.record
        seed_everything(settings.run.seed, settings.run.num_threads)
        model, record = load_trained(run_dir)
        return held.keep({**record, **_test(record, model.to(resolve_device(settings.run.device)), settings.data)})


def _refuse_other_images(images: ImageData, data: VisionDataConfig) -> None:
    """Else a run would be trained on some and tested on others."""
    given, expected = dict(images.read), images_read(data)
    if given != expected or images.provenance["dataset"] != data.dataset:
        raise RunError(
            f"run_vision: expected the images of {data.dataset}, {expected or 'drawn ones'}; given those of "
            f"{images.provenance['dataset']}, {given or 'drawn ones'}"
        )


def _trained(
    settings: VisionSettings,
    checkpoints: CheckpointPlace,
    images: ImageData | None,
    report: Callable[[EpochFigures], None],
    show_progress: bool,
) -> tuple[Record, NkatModel]:
    """The record without test figures, and the model that it is of."""
    start = datetime.now(UTC).isoformat(timespec="seconds")
    seed_everything(settings.run.seed, settings.run.num_threads)
    device = resolve_device(settings.run.device)
    images = load_image_data(settings.data) if images is None else images
    require_fit(settings.model, images)
    result = train_vision(images, settings, device, checkpoints, report=report, show_progress=show_progress)
    record = {**_record(settings, images, result, device), "start": start, "test": None}
    return {**record, "tpe_score": _scores(record)}, result.model


def _record(
    settings: VisionSettings, images: ImageData, result: TrainingResult, device: torch.device
) -> dict[str, Any]:
    """All of a run's record but its test figures and scores."""
    machine = computed_by(device)
    return {
        "format": FORMAT,
        "dataset": settings.data.dataset,
        "data": {**images.provenance, "classes": list(images.classes)},
        "seed": settings.run.seed,
        "parameters": result.model.parameter_counts(),
        "theory": {"tpe_scalar": theory_scalars(result.model), "tpe_params": theory_params(result.model)},
        "training": {
            "epochs": [asdict(epoch) for epoch in result.epochs],
            "best_epoch": result.best_epoch,
            "steps_per_epoch": result.steps_per_epoch,
        },
        "smoke_gate": _smoke_gate(result.epochs),
        "selection": evaluation_record(evaluate(result.model, images.selection, images.normalisation)),
        "seconds": sum(epoch.seconds for epoch in result.epochs),
        **machine,
        "versions": {**machine["versions"], "kornia": metadata.version("kornia")},
    }


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracy with its 95 % interval (Wilson), loss in nats an image."""
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(wilson_interval(evaluation.num_correct, evaluation.num_images)),
        "loss": evaluation.loss,
        "correct": evaluation.num_correct,
        "images": evaluation.num_images,
    }


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Both scores, on the selection and on the test images; what was not measured is None."""
    scores: dict[str, dict[str, float | None]] = {}
    for name in SCORES:
        theory = record["theory"][name]
        scores[name] = {"maximum": attainable_maximum(theory)}
        for part in ("selection", "test"):
            scores[name][part] = None if record[part] is None else tpe_score(record[part]["accuracy"], theory)
    return scores


def _smoke_gate(epochs: Sequence[EpochFigures]) -> dict[str, Any]:
    """Whether a run is above 45 % after 10 epochs, on the selection images; null for a shorter one. For CIFAR-10."""
    reached = epochs[SMOKE_GATE_EPOCHS - 1].selection_accuracy if len(epochs) >= SMOKE_GATE_EPOCHS else None
    return {
        "epochs": SMOKE_GATE_EPOCHS,
        "threshold": SMOKE_GATE_ACCURACY,
        "selection_accuracy": reached,
        "passed": None if reached is None else reached > SMOKE_GATE_ACCURACY,
    }


def _test(record: Record, model: NkatModel, data: VisionDataConfig) -> Record:
    """What the test images add to a record: the only place of a run where they are read."""
    reading = OneTestReading()
    test = read_test_images(data, reading)
    figures = evaluation_record(evaluate(model, test, normalisation_of(record)))
    found = {"test": {**figures, "readings": reading.readings, "sources": dict(test.sources)}}
    return {**found, "tpe_score": _scores({**record, **found})}


def normalisation_of(record: Mapping[str, Any]) -> Normalisation:
    """The one that a run's model was trained with."""
    stored = record["data"]["normalisation"]
    return Normalisation(tuple(stored["mean"]), tuple(stored["std"]))


def load_trained(run_dir: Path) -> tuple[NkatModel, Record]:
    """The trained model of a finished run, on the CPU and in evaluation mode, and the run's record.

    Raises RunError when there is none, or when its weights were altered since.
    """
    if not is_complete(run_dir) or not (run_dir / WEIGHTS_NAME).is_file():
        raise RunError(
            f"{run_dir}: expected a finished run ({RECORD_NAME} and {WEIGHTS_NAME}), found none. What an untrained "
            "model attends to says nothing; train it first with run_vision"
        )
    if not has_valid_checksum(run_dir / WEIGHTS_NAME):
        raise RunError(f"{run_dir / WEIGHTS_NAME} does not match its checksum; delete {run_dir} and train again")
    record: Record = read_json(run_dir / RECORD_NAME)
    model = NkatModel(settings_of(record).model, record["seed"])
    model.load_state_dict(load_tensors(run_dir / WEIGHTS_NAME))
    return model.eval(), record


def score_cards(records: Mapping[str, Record], names: Sequence[str], part: str = "test") -> dict[str, ScoreCard]:
    """The card of each score over the named data sets, from the accuracies of ``part`` ("test" or "selection").

    Raises ScoreError when a named data set has no record, or no figures of this part.
    """
    if part not in ("selection", "test"):
        raise ScoreError(f"score_cards: expected part 'selection' or 'test', given {part!r}")
    accuracy = {name: record[part]["accuracy"] for name, record in records.items() if record[part] is not None}
    return {
        score: score_card(accuracy, {name: record["theory"][score] for name, record in records.items()}, names)
        for score in SCORES
    }
