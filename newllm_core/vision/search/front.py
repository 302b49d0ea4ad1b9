"""Of a study with two objectives: the trials that no other beats in both, with intervals of their accuracies."""

import math
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from newllm_core.intervals import Interval
from newllm_core.runs.files import read_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.study import load_study, objective_names, trial_folder


def front_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Fewest parameters first, which is the lowest accuracy too."""
    return sorted(study.best_trials, key=lambda trial: trial.values[1])


def accuracy_interval(folder: Path, study: optuna.Study, trial: FrozenTrial) -> Interval:
    """95 % interval, over selection images, of a trial's mean accuracy over data sets; of a single seed, and not
    widened for having been chosen among many. From the Wilson intervals of the data sets' shares, as Newcombe (1998,
    method 10) has it for a difference. Raises SearchError for a record that is not there."""
    below, above = [], []
    for name in trial.user_attrs["accuracy"]:
        path = trial_folder(folder, study, trial) / name / RECORD_NAME
        if not path.is_file():
            raise SearchError(f"{path}: trial {trial.number} has finished, but its record is not there")
        found = read_json(path)["selection"]
        below.append(found["accuracy"] - found["accuracy_interval"][0])
        above.append(found["accuracy_interval"][1] - found["accuracy"])
    mean = trial.values[0]
    return mean - math.hypot(*below) / len(below), mean + math.hypot(*above) / len(above)


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
