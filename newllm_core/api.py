"""What a notebook or a script calls: one run, a sweep of runs, and where their pictures go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import ConfigError, config_hash, unknown_name_message
from newllm_core.experiment.folder_names import phase1_folder_name, run_folder_name
from newllm_core.experiment.prepare import Prepared
from newllm_core.experiment.prepare import prepare as prepare_parts
from newllm_core.experiment.run import load_model, run_experiment, run_phase1, run_phase1_only
from newllm_core.model import NewLLM
from newllm_core.report import phases, text
from newllm_core.report.gallery import Gallery
from newllm_core.runs.files import DATA_DIR, RESULTS_DIR
from newllm_core.runs.runtime import machine_text, mount_drive
from newllm_core.runs.world import joined_ranks
from newllm_core.studies.runners import ExperimentRunner
from newllm_core.studies.sweep import Axes, Runner, Sweep, Variant, grid

Record = Mapping[str, Any]
PICTURES: Mapping[str, Callable[[Record], Figure]] = {
    "phase1": phases.plot_phase1,
    "spectrum": phases.plot_spectrum,
    "forgetting": phases.plot_forgetting,
    "epochs": phases.plot_epochs,
}
TABLES: Mapping[str, Callable[[Record], pd.DataFrame]] = {
    "iterations": lambda record: text.iteration_table(record["phase1"]),
    "spectrum": lambda record: text.spectrum_table(record["phase1"]),
    "epochs": lambda record: text.epoch_table(record["phase2"]),
}
_OF_PHASE2 = ("epochs",)


@dataclass
class Run:
    """A finished run. ``record``: what its `run.json` holds (docs/records.md)."""

    settings: Settings
    record: Record
    folder: Path
    phase1_folder: Path

    def report(self) -> str:
        """Its figures with their counts, as text."""
        return text.report(self.record)

    def show(self, name: str) -> None:
        """Save one of PICTURES in the run's folder, as PNG and SVG, and display it. Raises ConfigError."""
        Gallery(self.folder).show(name, self._chosen("picture", name, PICTURES)(self.record))

    def table(self, name: str) -> pd.DataFrame:
        """A name in TABLES. Raises ConfigError."""
        return self._chosen("table", name, TABLES)(self.record)

    def _chosen(self, kind: str, name: str, known: Mapping[str, Any]) -> Any:
        if name not in known:
            raise ConfigError(unknown_name_message(kind, name, known))
        if name in _OF_PHASE2 and "phase2" not in self.record:
            raise ConfigError(f"{kind} {name!r}: this run ended after Phase 1; nl.run(settings) has both")
        return known[name]

    def save_pretrained(self, folder: str | Path, *, embedding: str = "stored") -> None:
        """The model in a folder of its own, with a card that has this run's figures (``NewLLM.save_pretrained``)."""
        self.model.save_pretrained(folder, embedding=embedding, record=self.record)

    def push_to_hub(
        self, repository: str, *, embedding: str = "stored", private: bool | None = None, token: str | None = None
    ) -> str:
        """The same into a repository on the Hugging Face Hub; returns the commit's address. Raises RunError."""
        return self.model.push_to_hub(repository, embedding=embedding, record=self.record, private=private, token=token)

    @cached_property
    def model(self) -> NewLLM:
        """With the weights that were kept. Raises RunError when what it was trained on has changed since."""
        if "phase2" in self.record:
            return load_model(self.record, self.folder, self.phase1_folder).model
        prepared = prepare(self.settings)
        run_phase1(prepared, self.settings.phase1, self.phase1_folder)  # finished, so it is read
        return prepared.model


def machine() -> str:
    """The line that a notebook begins with: GPU or CPU, memory, versions, the profile that fits.

    Warns where the package has changed on disk since this kernel imported it.
    """
    return machine_text()


def prepare(settings: Settings) -> Prepared:
    """Tokens, embeddings and a model with initial weights. Raises DataError, RunError or ConfigError."""
    return prepare_parts(settings.data, settings.model, settings.run)


def run(settings: Settings, *, phase1_only: bool = False) -> Run:
    """Both phases, or the first alone; a finished run is read, an interrupted one goes on.

    The folder is named by the configuration, below `results/`; runs that differ in Phase 2 alone share Phase 1. Under
    torchrun all of its processes work on the run (docs/usage.md, "Several devices").
    Raises ConfigError, DataError, RunError (a folder of another run) or NotFiniteError.
    """
    phase1_name = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    phase1_folder = RESULTS_DIR / "phase1" / phase1_name
    folder = RESULTS_DIR / "experiments" / (phase1_name if phase1_only else run_folder_name(settings))
    mount_drive(settings.run.copy_to)
    with joined_ranks(settings.run.device):
        if phase1_only:
            record = run_phase1_only(settings, folder, phase1_folder, DATA_DIR)
        else:
            record = run_experiment(
                settings.data, settings.model, settings.phase1, settings.phase2, folder, run=settings.run,
                phase1_dir=phase1_folder,
            )  # fmt: skip
    return Run(settings, record, folder, phase1_folder)


def sweep(base: Any, variants: Sequence[Variant] | Axes, seeds: Sequence[int], runner: Runner | None = None) -> Sweep:
    """Every variant of ``base`` with every seed, to be estimated and run.

    Args:
        base: settings of either line.
        variants: their list, or the values of some parameters by name, of which every combination is run.
        runner: of which kind the runs are; None: whole experiments of the language line.
    """
    chosen = grid(variants) if isinstance(variants, Mapping) else variants
    mount_drive(base.run.copy_to)
    return Sweep(base, chosen, seeds, runner or ExperimentRunner())


def gallery(name: str, of: Sweep | Any) -> Gallery:
    """Where a notebook's pictures and tables go: `results/<name>/<hash of the settings, or of a sweep's points>`."""
    configs = [point.settings for point in of.points] if isinstance(of, Sweep) else [of]
    return Gallery(RESULTS_DIR / name / config_hash(*configs))
