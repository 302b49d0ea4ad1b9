"""Stops a trial whose accuracy is below the median of the others at the same epoch, those below the gate included.

Optuna's own median pruner looks at completed trials only. Here a trial that misses the gate is told pruned, so behind a
hard gate it would have nothing to compare with, and hopeless trials would run to the end.
"""

import statistics
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from newllm_core.vision.search.study import ended_trials


@dataclass(frozen=True)
class MedianOfFinished(BasePruner):
    """For a study that maximises one value.

    Attributes:
        startup_trials: finished trials before any is stopped.
        warmup_epochs: of each trial; it is stopped at the end of the last of them at the earliest.
    """

    startup_trials: int
    warmup_epochs: int

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the best accuracy so far is below the median of all finished trials that reached this epoch."""
        finished = ended_trials(study)
        epoch = trial.last_step
        if epoch is None or epoch < self.warmup_epochs or len(finished) < self.startup_trials:
            return False
        others = [one.intermediate_values[epoch] for one in finished if epoch in one.intermediate_values]
        return bool(others) and max(trial.intermediate_values.values()) < statistics.median(others)
