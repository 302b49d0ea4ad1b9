"""The runs of the language line: whole experiments, and rows of the leaderboard."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import BASELINES, baseline_config
from newllm_core.baselines.train import train_network
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import config_hash
from newllm_core.data import corpus_key, load_embeddings, load_token_streams
from newllm_core.experiment.estimate import estimate
from newllm_core.experiment.folder_names import identity_of, phase1_folder_name, run_folder_name
from newllm_core.experiment.prepare import Prepared, prepare, refuse_short_texts, refuse_short_training
from newllm_core.experiment.run import experiment_place, phase1_only_place, run_experiment, run_phase1_only
from newllm_core.losses import diversity_loss
from newllm_core.runs.files import DATA_DIR, REFERENCE_DIR, RESULTS_DIR
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.reproducibility import resolve_device
from newllm_core.studies.row_keys import check_row_record
from newllm_core.studies.rows import run_row
from newllm_core.studies.sweep import Cost, Point, Record, scaled_cost

LEADERBOARD_DIR = RESULTS_DIR / "leaderboard"
CHECKPOINTS_FOLDER = "checkpoints"  # beside the rows: of rows that were interrupted
_TIMED_SEGMENTS = 4
_TIMED_VALIDATION = 512  # tokens


@dataclass(frozen=True)
class Folders:
    """Where experiments are read and written."""

    experiments: Path = RESULTS_DIR / "experiments"
    phase1: Path = RESULTS_DIR / "phase1"
    reference: Path = REFERENCE_DIR / "experiments"  # committed records; only read by runs
    data: Path = DATA_DIR


def _check_settings(points: Sequence[Settings], data_dir: Path) -> None:
    """Everything that can be refused before anything is trained.

    Also makes the token cache of the largest point, of which the smaller ones are prefixes. Raises ValueError for an
    unknown diversity algorithm (it names the known ones), DataError when the corpus or a text is too small or the
    embeddings have another width, RunError for a device that is absent.
    """
    for point in points:
        diversity_loss(point.phase1.diversity_algorithm)
        resolve_device(point.run.device)
    seen: set[tuple[str, int]] = set()
    for point in sorted(points, key=lambda one: one.data.num_samples, reverse=True):
        streams = load_token_streams(point.data, data_dir)
        refuse_short_texts(point.data, streams, point.model, point.phase1)
        kind = point.data.embeddings, point.model.embed_dim
        if kind not in seen:
            size = streams.train.vocabulary.size
            load_embeddings(point.data, kind[1], point.run.seed, streams.train.tokens, data_dir, size)
            seen.add(kind)


@dataclass(frozen=True)
class ExperimentRunner:
    """Data → Phase 1 → Phase 2, a folder each; those that differ in Phase 2 alone share Phase 1.

    Finished records that are committed count as finished. With ``phase1_only`` a run ends after Phase 1, and its record
    has no `phase2`.
    """

    folders: Folders = Folders()
    phase1_only: bool = False

    def key(self, point: Point) -> str:
        """Name of the run's folder, and of its committed record."""
        return self._phase1_name(point.settings) if self.phase1_only else run_folder_name(point.settings)

    def _phase1_name(self, settings: Settings) -> str:
        return phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)

    def finished(self, point: Point) -> Record | None:
        """Its own record, else a committed one, which is only read: a checkpoint of its own is of a run at work."""
        own = self._place(point)
        committed = replace(own, record_path=self.folders.reference / f"{self.key(point)}.json", files=())
        return own.finished() or committed.read()

    def _place(self, point: Point) -> RunFolder:
        run_dir, phase1_dir = self._run_dir(point), self._phase1_dir(point)
        place = phase1_only_place if self.phase1_only else experiment_place
        return place(point.settings, run_dir, phase1_dir)

    def _run_dir(self, point: Point) -> Path:
        return self.folders.experiments / self.key(point)

    def _phase1_dir(self, point: Point) -> Path:
        return self.folders.phase1 / self._phase1_name(point.settings)

    def check(self, points: Sequence[Point]) -> None:
        _check_settings([point.settings for point in points], self.folders.data)

    def alike(self, point: Point) -> Hashable:
        settings, phase1 = point.settings, point.settings.phase1
        sizes = phase1.max_iterations, phase1.batch_tokens
        return settings.data, settings.model, sizes, settings.phase2, settings.run.num_threads

    def cost(self, point: Point) -> Cost:
        settings = point.settings
        one = estimate(prepare(settings.data, settings.model, settings.run, self.folders.data), settings)
        return Cost(one.phase1_seconds if self.phase1_only else one.longest_seconds, one.memory_gb)

    def run(self, point: Point) -> Record:
        settings, data_dir = point.settings, self.folders.data
        run_dir, phase1_dir = self._run_dir(point), self._phase1_dir(point)
        if self.phase1_only:
            return run_phase1_only(settings, run_dir, phase1_dir, data_dir)
        return run_experiment(
            settings.data, settings.model, settings.phase1, settings.phase2, run_dir,
            run=settings.run, data_dir=data_dir, phase1_dir=phase1_dir,
        )  # fmt: skip

    def take_up(self, point: Point) -> None:
        with self._place(point).held():
            pass


@dataclass(frozen=True)
class RowRunner:
    """Rows of the leaderboard, a file each: variants of `variants`, all on the same tokens and judged token by token.

    An interrupted row goes on from its last checkpoint, and what several have in common, a Phase 1 or a network, is
    trained once.

    Attributes:
        network_changes: of every BaselineConfig. Raises ConfigError for an unknown name or an impossible value.
    """

    folder: Path = LEADERBOARD_DIR
    network_changes: Mapping[str, Any] = field(default_factory=dict)
    data_dir: Path = DATA_DIR

    def __post_init__(self) -> None:
        baseline_config("gru", **self.network_changes)

    def _sections(self, point: Point) -> dict[str, Any]:
        """The configs that a row's figures depend on: counts have no seed, networks no phases."""
        settings, kind = point.settings, point.variant.kind
        if kind in ("model", "control"):
            return {part: getattr(settings, part) for part in ("data", "model", "phase1", "phase2", "run")}
        if kind == "network":
            changes = {"embed_dim": settings.model.embed_dim, **self.network_changes}
            network = baseline_config(point.variant.name, **changes)
            return {"data": settings.data, "network": network, "run": settings.run}
        return {"data": settings.data}

    def key(self, point: Point) -> Path:
        """The row's file; one for all seeds where none touches the figures."""
        sections, data = self._sections(point), point.settings.data
        corpus = f"-{corpus_key(data)}" if data.corpus == "file" else ""
        seed = f"-seed{point.settings.run.seed}" if "run" in sections else ""
        name = f"{point.variant.name}{corpus}-{data.num_samples}s{seed}-{config_hash(*sections.values())}"
        return self.folder / f"{name}.json"

    def _place(self, point: Point) -> RunFolder:
        path = self.key(point)
        checkpoint = self.folder / CHECKPOINTS_FOLDER / path.stem
        copy_to = point.settings.run.copy_to
        return RunFolder(path, checkpoint, identity_of(self._sections(point)), check_row_record, copy_to=copy_to)

    def finished(self, point: Point) -> Record | None:
        return self._place(point).finished()

    def check(self, points: Sequence[Point]) -> None:
        _check_settings([point.settings for point in points], self.data_dir)
        for point in points:
            network, data = self._sections(point).get("network"), point.settings.data
            if network is not None:
                least = network.num_streams * network.segment_tokens + 1
                purpose = f"more than num_streams · segment_tokens of {point.variant.name}"
                refuse_short_training(data, load_token_streams(data, self.data_dir), least, purpose)

    def alike(self, point: Point) -> Hashable:
        return point.variant.name

    def cost(self, point: Point) -> Cost:
        settings = point.settings
        prepared = prepare(settings.data, settings.model, settings.run, self.data_dir)
        network = self._sections(point).get("network")
        if network is not None:
            return _network_cost(network, prepared)
        if point.variant.name in BASELINES:
            return Cost(BASELINES[point.variant.name].seconds_per_token * len(prepared.train_tokens))
        one = estimate(prepared, settings)
        return Cost(one.longest_seconds, one.memory_gb)

    def run(self, point: Point) -> Record:
        with self._place(point).held() as held:
            if held.record is not None:
                return held.record
            network = self._sections(point).get("network")
            row = run_row(point, network, self.folder, held.checkpoints, self.data_dir)
            return held.finish(row, {})

    def take_up(self, point: Point) -> None:
        with self._place(point).held():
            pass


def _network_cost(config: BaselineConfig, prepared: Prepared) -> Cost:
    """From the second of two short epochs, by the tokens that are trained on and judged."""
    tokens = min(len(prepared.train_tokens), _TIMED_SEGMENTS * config.num_streams * config.segment_tokens + 1)
    judged = min(len(prepared.validation_tokens), _TIMED_VALIDATION)
    train, validation = prepared.train_tokens[:tokens], prepared.validation_tokens[:judged]
    # The softmax of training is over the types of the whole text, of which a piece has few.
    sample = config.unseen_sample
    if sample is not None:
        sample += len(prepared.train_tokens.unique()) - len(train.unique())
    short = replace(config, max_epochs=2, patience=2, unseen_sample=sample)
    timed = train_network(prepared.model, train, validation, short, prepared.run.seed)
    whole = len(prepared.train_tokens), len(prepared.validation_tokens)
    return scaled_cost(config.max_epochs, timed.epochs[-1].seconds, (tokens, judged), whole)
