"""Runs of several variants with several seeds: checked and estimated first, resumed, finished ones read."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from newllm_core.config.schema import ConfigError, changed
from newllm_core.experiment.estimate import duration_text, list_text
from newllm_core.runs.folder import is_complete
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.reproducibility import resolve_device, seed_everything
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import ImageData, LabelledImages, load_image_data, locate_source
from newllm_core.vision.experiment import VISION_DIR, Record, run_vision
from newllm_core.vision.settings import VisionSettings, run_name
from newllm_core.vision.training import train_vision
from newllm_core.vision.variants import Variant

_TIMED_SELECTION = 32  # images; enough to run the evaluation at all


@dataclass(frozen=True)
class VisionEstimate:
    """Seconds that the unfinished runs will take on this machine as it is now."""

    num_runs: int
    num_finished: int
    seconds: float

    def __str__(self) -> str:
        return list_text("runs", self.num_runs, self.num_finished, f"about {duration_text(self.seconds)}")


class VariantSeries:
    """Every variant with every seed.

    ``read_test``: False where something is chosen by the runs; their figures are then of the selection images.

    Raises ConfigError for a variant that is impossible, and for two of the same name.
    """

    def __init__(
        self, centre: VisionSettings, variants: Sequence[Variant], seeds: Sequence[int], *,
        read_test: bool, folder: Path = VISION_DIR,
    ) -> None:  # fmt: skip
        names = [variant.name for variant in variants]
        if len(set(names)) < len(names):
            raise ConfigError(f"variants: expected each name once, given {', '.join(names)}")
        self.variants, self.folder, self.read_test = tuple(variants), folder, read_test
        self.points = {
            variant.name: [changed(variant.settings(centre), {"seed": seed}) for seed in seeds] for variant in variants
        }
        self._images: dict[VisionDataConfig, ImageData] = {}

    def run_dirs(self) -> list[Path]:
        """Of all runs, finished or not, in the order of variants and seeds."""
        return [self.folder / run_name(settings) for points in self.points.values() for settings in points]

    def estimate(self) -> VisionEstimate:
        """Times two small steps of each variant; its images are loaded, nothing is kept. Raises DataError."""
        runs = [settings for points in self.points.values() for settings in points]
        unfinished = [settings for settings in runs if not is_complete(self.folder / run_name(settings))]
        seconds = 0.0
        for points in self.points.values():
            left = [settings for settings in points if settings in unfinished]
            if left:
                seconds += len(left) * estimated_seconds(left[0], self._load(left[0].data))
        return VisionEstimate(len(runs), len(runs) - len(unfinished), seconds)

    def run(self) -> list[Record]:
        """Train what is not finished; every record says which variant it is. Raises DataError before the first run."""
        for points in self.points.values():
            if not all(is_complete(self.folder / run_name(settings)) for settings in points):
                locate_source(points[0].data)
        bar = progress_bar(total=sum(map(len, self.points.values())), desc="variants", unit="run")
        found: list[Record] = []
        for variant in self.variants:
            bar.set_postfix_str(variant.name)
            described = {"name": variant.name, "label": variant.name, "group": variant.group}
            for settings in self.points[variant.name]:
                found.append({**self._run(settings), "variant": described})
                bar.update()
        bar.close()
        return found

    def _run(self, settings: VisionSettings) -> Record:
        run_dir = self.folder / run_name(settings)
        images = None if is_complete(run_dir) else self._load(settings.data)
        return run_vision(settings, run_dir, images=images, read_test=self.read_test, show_progress=False)

    def _load(self, data: VisionDataConfig) -> ImageData:
        if data not in self._images:
            self._images[data] = load_image_data(data)
        return self._images[data]


def estimated_seconds(settings: VisionSettings, images: ImageData) -> float:
    """Of a whole run on ``images``, from the second of two epochs of a single step; without reading the test set."""
    batch = min(settings.train.batch_size, len(images.train))
    timed = dataclasses.replace(
        images, train=_first(images.train, batch), selection=_first(images.selection, _TIMED_SELECTION)
    )
    short = changed(settings, {"epochs": 2, "warmup_epochs": 0})
    seed_everything(settings.run.seed, settings.run.num_threads)
    result = train_vision(timed, short, resolve_device(settings.run.device), show_progress=False)
    # An image that is only evaluated costs a forward pass, about a third of a training image.
    timed_images = batch + len(timed.selection) / 3
    all_images = len(images.train) + len(images.selection) / 3
    return settings.train.epochs * result.epochs[-1].seconds * all_images / timed_images


def _first(images: LabelledImages, count: int) -> LabelledImages:
    return images.subset(torch.arange(min(count, len(images))))
