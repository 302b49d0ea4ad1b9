"""Of a study with two objectives: the trials that no other beats in both, with intervals of their accuracies."""

import math
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from newllm_core.intervals import Interval
from newllm_core.runs.files import read_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.vision.search.study import load_study, objective_names, trial_folder

_NORMAL = 1.959964  # 97.5th percentile of the standard normal distribution


def front_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Fewest parameters first, which is the lowest accuracy too."""
    return sorted(study.best_trials, key=lambda trial: trial.values[1])


def accuracy_interval(folder: Path, study: optuna.Study, trial: FrozenTrial) -> Interval:
    """95 % interval, over selection images, of a trial's mean accuracy over data sets; of a single seed, and not
    widened for having been chosen among many."""
    records = [read_json(path)["selection"] for path in trial_folder(folder, study, trial).glob(f"*/{RECORD_NAME}")]
    # Data sets are independent, so variances of their shares add.
    variance = sum(one["accuracy"] * (1 - one["accuracy"]) / one["images"] for one in records)
    margin = _NORMAL * math.sqrt(variance) / len(records)
    return trial.values[0] - margin, trial.values[0] + margin


def front_table(folder: Path) -> pd.DataFrame:
    """A row a trial of the front: objectives, accuracy of each data set on selection images, and what was drawn."""
    study = load_study(folder)
    rows = []
    for trial in front_trials(study):
        interval = accuracy_interval(folder, study, trial)
        figures = dict(zip(objective_names(study), trial.values))
        rows.append({"trial": trial.number, **figures, "low": interval[0], "high": interval[1],
                     **trial.user_attrs["accuracy"], **trial.params})  # fmt: skip
    return pd.DataFrame(rows)
