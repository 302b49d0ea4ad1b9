"""What the unfinished rows will take, measured on a small piece of each before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import BASELINES, baseline_config
from newllm_core.baselines.train import train_baseline
from newllm_core.config.language import Settings
from newllm_core.experiment.estimate import duration_text, estimate, list_text
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.runs.files import DATA_DIR
from newllm_core.studies.runners import LEADERBOARD_DIR, points_of, row_path, row_settings
from newllm_core.studies.variants import variant

_TIMED_SEGMENTS = 4
_TIMED_VALIDATION = 512  # tokens


@dataclass(frozen=True)
class RowsEstimate:
    """``longest_seconds``: of the unfinished rows on this machine as it is now, if nothing stops early."""

    num_rows: int
    num_finished: int
    longest_seconds: float

    def __str__(self) -> str:
        cost = f"at most about {duration_text(self.longest_seconds)}"
        return list_text("rows", self.num_rows, self.num_finished, cost)


def estimate_rows(
    names: Sequence[str],
    base: Settings,
    seeds: Sequence[int],
    folder: Path = LEADERBOARD_DIR,
    *,
    network_changes: Mapping[str, Any] | None = None,
    data_dir: Path = DATA_DIR,
) -> RowsEstimate:
    """Arguments and errors as of ``runners.run_rows``; trains nothing that is kept."""
    changes = network_changes or {}
    points = points_of(names, base, seeds)
    unfinished = [point for point in points if not row_path(*point, folder, changes).is_file()]
    seconds, known, prepared = 0.0, dict[str, float](), None
    for name, settings in unfinished:
        if name not in known:
            own = row_settings(name, settings)
            if prepared is None or prepared.model.config != own.model:  # most names share their neighbour's model
                prepared = prepare(own.data, own.model, own.run, data_dir)
            known[name] = _seconds(name, own, prepared, changes)
        seconds += known[name]
    return RowsEstimate(len(points), len(points) - len(unfinished), seconds)


def _seconds(name: str, settings: Settings, prepared: Prepared, changes: Mapping[str, Any]) -> float:
    if variant(name).kind == "network":
        network = baseline_config(name, embed_dim=settings.model.embed_dim, **changes)
        return _network_seconds(network, prepared)
    if name in BASELINES:
        return BASELINES[name].seconds_per_token * len(prepared.train_tokens)
    return 60 * estimate(prepared, settings).longest_minutes


def _network_seconds(config: BaselineConfig, prepared: Prepared) -> float:
    """From the second of two short epochs, by the tokens that are trained on and judged."""
    tokens = min(len(prepared.train_tokens), _TIMED_SEGMENTS * config.num_streams * config.segment_tokens + 1)
    judged = min(len(prepared.validation_tokens), _TIMED_VALIDATION)
    train, validation = prepared.train_tokens[:tokens], prepared.validation_tokens[:judged]
    # The softmax of training is over the types of the whole text, of which a piece has few.
    sample = config.unseen_sample
    if sample is not None:
        sample += len(prepared.train_tokens.unique()) - len(train.unique())
    short = replace(config, max_epochs=2, patience=2, unseen_sample=sample)
    timed = train_baseline(prepared.model, train, validation, short, prepared.run.seed)
    # Judging takes about a third of training.
    share = (len(prepared.train_tokens) + len(prepared.validation_tokens) / 3) / (tokens + judged / 3)
    return config.max_epochs * timed.epochs[-1].seconds * share
