"""The runs of the vision line, for `studies.sweep`: a folder each, found again by their configuration."""

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch

from newllm_core.config.schema import changed, config_values
from newllm_core.data.errors import DataError
from newllm_core.runs.folder import is_complete
from newllm_core.runs.identity import Identity
from newllm_core.runs.reproducibility import resolve_device, seed_everything
from newllm_core.studies.sweep import Cost, Point, scaled_cost
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import ImageData, LabelledImages, load_image_data, locate_source
from newllm_core.vision.experiment import VISION_DIR, Record, run_vision, vision_place
from newllm_core.vision.settings import VisionSettings, run_identity, run_name
from newllm_core.vision.training import train_vision

_TIMED_SELECTION = 32  # images; enough to run the evaluation at all


class VisionRunner:
    """Image runs below ``folder``; a data set is loaded once for all that train on it.

    ``read_test``: False where something is chosen by the runs; their figures are then of the selection images.
    """

    def __init__(self, *, read_test: bool, folder: Path = VISION_DIR) -> None:
        self.read_test, self.folder = read_test, folder
        self._images: dict[VisionDataConfig, ImageData] = {}

    def run_dir(self, point: Point) -> Path:
        return self.folder / run_name(point.settings)

    def key(self, point: Point) -> Hashable:
        # Two variants of one configuration stay two rows of a table, and are trained once.
        return point.variant.name, self.run_dir(point)

    def finished(self, point: Point) -> Record | None:
        if not is_complete(self.run_dir(point)):
            return None
        try:
            identity = run_identity(point.settings)
        except DataError:  # its images are not on this machine: nothing to hold their hashes against
            identity = Identity(config_values(point.settings))
        record = vision_place(self.run_dir(point), identity).finished()
        return None if record is None or (self.read_test and record["test"] is None) else record

    def check(self, points: Sequence[Point]) -> None:
        for data in {point.settings.data for point in points}:
            locate_source(data)

    def alike(self, point: Point) -> Hashable:
        return point.variant.name

    def cost(self, point: Point) -> Cost:
        if is_complete(self.run_dir(point)):  # only the test images are left to be read
            return Cost(0.0)
        return estimated_cost(point.settings, self._load(point.settings.data))

    def run(self, point: Point) -> Record:
        run_dir = self.run_dir(point)
        images = None if is_complete(run_dir) else self._load(point.settings.data)
        return run_vision(point.settings, run_dir, images=images, read_test=self.read_test, show_progress=False)

    def take_up(self, point: Point) -> None:
        settings = point.settings
        with vision_place(self.run_dir(point), run_identity(settings), settings.run.copy_to).held():
            pass

    def _load(self, data: VisionDataConfig) -> ImageData:
        if data not in self._images:
            self._images[data] = load_image_data(data)
        return self._images[data]


def estimated_cost(settings: VisionSettings, images: ImageData) -> Cost:
    """Of a whole run on ``images``, from the second of two epochs of a single step; without reading the test set."""
    batch = min(settings.train.batch_size, len(images.train))
    timed = dataclasses.replace(
        images, train=_first(images.train, batch), selection=_first(images.selection, _TIMED_SELECTION)
    )
    short = changed(settings, {"epochs": 2, "warmup_epochs": 0})
    seed_everything(settings.run.seed, settings.run.num_threads)
    result = train_vision(timed, short, resolve_device(settings.run.device), show_progress=False)
    piece, whole = (batch, len(timed.selection)), (len(images.train), len(images.selection))
    return scaled_cost(settings.train.epochs, result.epochs[-1].seconds, piece, whole)


def _first(images: LabelledImages, count: int) -> LabelledImages:
    return images.subset(torch.arange(min(count, len(images))))
