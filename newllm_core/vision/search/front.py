"""Of a study with two objectives: the trials that no other beats in both, with intervals of their accuracies."""

from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from newllm_core.intervals import Estimate, mean_of_shares
from newllm_core.runs.files import read_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import load_study, objective_names, trial_folder


def front_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Fewest parameters first, which is the lowest accuracy too."""
    return sorted(study.best_trials, key=lambda trial: trial.values[1])


def mean_accuracy(folder: Path, study: optuna.Study, trial: FrozenTrial) -> Estimate:
    """A trial's mean accuracy over data sets, with its 95 % interval over selection images: of a single seed, and not
    widened for having been chosen among many. Raises SearchError for a record that is not there."""
    shares = []
    for name in trial.user_attrs["accuracy"]:
        path = trial_folder(folder, study, trial) / name / RECORD_NAME
        if not path.is_file():
            raise SearchError(f"{path}: trial {trial.number} has finished, but its record is not there")
        found = read_json(path)["selection"]
        shares.append(Estimate(found["accuracy"], tuple(found["accuracy_interval"])))
    return mean_of_shares(shares)


def front_table(folder: Path) -> pd.DataFrame:
    """A row a trial of the front: objectives, accuracy of each data set on selection images, and what was drawn."""
    study = load_study(folder)
    rows = []
    for trial in front_trials(study):
        low, high = mean_accuracy(folder, study, trial).interval or (None, None)
        figures = dict(zip(objective_names(study), trial.values))
        rows.append({"trial": trial.number, **figures, "low": low, "high": high,
                     **trial.user_attrs["accuracy"], **trial.params})  # fmt: skip
    return pd.DataFrame(rows)
