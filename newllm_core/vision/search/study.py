"""A study on disk: who may use it, interrupted trials, and its summary as JSON."""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from newllm_core.runs.disk import disk_errors_named
from newllm_core.runs.lock import locked
from newllm_core.runs.reproducibility import current_commit, library_versions
from newllm_core.vision.search.journal import JOURNAL_NAME, SearchError, journal_storage
from newllm_core.vision.search.plan import SearchPlan, refuse_other_plan

logger = logging.getLogger("newllm")

LOCK_NAME, TRIALS_DIR = "search.lock", "trials"
STUDY_NAME, GATE = "nkat", "gate"
_MOST_WORKERS = "most_workers"  # user attribute of the study
_PLAN = "plan"  # user attribute: whoever deletes the plan's file must not mix two
_FIRST_NUMBER = "first_number"  # user attribute: the number under which an interrupted trial was started


@contextmanager
def alone(folder: Path) -> Iterator[Callable[[], None]]:
    """The right to declare running trials interrupted; calling what is yielded turns it into a worker's.

    Workers hold a share of the same lock, so those of a killed search that still run are not taken for dead. Raises
    SearchError while there are any.
    """
    path = folder / LOCK_NAME
    with disk_errors_named(path):
        folder.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SearchError(f"{folder}: a search is running here, or one of its workers still is") from error
        yield partial(fcntl.flock, stream, fcntl.LOCK_SH)


def as_worker(folder: Path) -> AbstractContextManager[None]:
    """To be held by a process of its own while it works."""
    return locked(folder / LOCK_NAME, shared=True)


def asking(folder: Path) -> AbstractContextManager[None]:
    """Held by one worker at a time while it asks for a trial."""
    return locked(folder / "ask.lock")


def create_study(plan: SearchPlan, folder: Path) -> optuna.Study:
    """The folder's study, made if it is not there. Raises RunError where it is of another plan, which it knows."""
    directions = [StudyDirection.MAXIMIZE]
    if plan.search.objective == "accuracy_and_parameters":
        directions.append(StudyDirection.MINIMIZE)
    study = optuna.create_study(
        storage=journal_storage(folder), study_name=STUDY_NAME, directions=directions, load_if_exists=True
    )
    if _PLAN in study.user_attrs:
        refuse_other_plan(study.user_attrs[_PLAN], plan, folder / JOURNAL_NAME)
    else:
        study.set_user_attr(_PLAN, plan.identity().record())
    return study


def load_study(folder: Path) -> optuna.Study:
    """For reading: pictures, tables. Raises SearchError when there is none."""
    if not (folder / JOURNAL_NAME).is_file():
        raise SearchError(f"{folder}: no study here; expected {JOURNAL_NAME}, which run_search makes")
    return optuna.load_study(study_name=STUDY_NAME, storage=journal_storage(folder))


def requeue_interrupted(study: optuna.Study) -> None:
    """Queue trials that were running when the search was killed, to be continued, and mark them as failed.

    In this order, and from what a queued trial was to be given: a search that is killed here, or while it takes a trial
    from the queue, loses none.
    """
    space = _space(study)
    waiting = {first_number(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        parameters, number = trial.system_attrs.get("fixed_params", trial.params), first_number(trial)
        if set(parameters) == space and number not in waiting:
            study.enqueue_trial(parameters, user_attrs={_FIRST_NUMBER: number})
            logger.info("trial %d was interrupted; it will be continued", trial.number)
        study.tell(trial.number, state=TrialState.FAIL)


def num_drawn(study: optuna.Study, before: int | None = None) -> int:
    """How many trials were drawn, of those with a number below ``before``: a continued one once, one that was killed
    while it was drawn not at all."""
    trials, space = study.get_trials(deepcopy=False)[:before], _space(study)
    return sum(first_number(trial) == trial.number and _is_drawn(trial, space) for trial in trials)


def _is_drawn(trial: FrozenTrial, space: set[str]) -> bool:
    """All its parameters are known; Optuna writes them one after the other."""
    return set(trial.params) == space


def _space(study: optuna.Study) -> set[str]:
    return set(study.user_attrs[_PLAN]["config"]["space"])


def gate_data_set(study: optuna.Study) -> str:
    return str(study.user_attrs[_PLAN]["config"]["gate"]["dataset"])


def count_workers(study: optuna.Study, workers: int) -> None:
    """Note the most that a study was run by: trials of more than one are not repeatable."""
    study.set_user_attr(_MOST_WORKERS, max(workers, study.user_attrs.get(_MOST_WORKERS, 1)))


def first_number(trial: FrozenTrial | Trial) -> int:
    """The number under which a trial was drawn, before any interruption."""
    return int(trial.user_attrs.get(_FIRST_NUMBER, trial.number))


def trial_folder_name(study: optuna.Study, trial: FrozenTrial | Trial) -> str:
    """By how many were drawn before it: the same in a search that was interrupted as in one that ran through."""
    return f"trial-{num_drawn(study, before=first_number(trial)):04d}"


def trial_folder(folder: Path, study: optuna.Study, trial: FrozenTrial | Trial) -> Path:
    return folder / TRIALS_DIR / trial_folder_name(study, trial)


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those that have come to their end, behind the gate or pruned."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those that passed the gate and were trained on all data sets."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def objective_names(study: optuna.Study) -> list[str]:
    """What the study makes large or small, of selection images."""
    if len(study.directions) == 1:
        return ["Global"]
    return ["mean accuracy", f"parameters of the network for {gate_data_set(study)}, millions"]


def search_summary(plan: SearchPlan, study: optuna.Study) -> dict[str, Any]:
    """All trials as JSON values; `best` holds the numbers of the best feasible trials, none or one for Global."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    return {
        "config": plan.record(),
        "counts": {state.name.lower(): states.count(state) for state in TrialState},
        "best": best_numbers(study),
        "most_workers": study.user_attrs.get(_MOST_WORKERS),  # with 1, the same search draws the same trials
        "trials": [_trial_record(trial, trial_folder_name(study, trial)) for trial in trials],
        "versions": {**library_versions(), "optuna": optuna.__version__},
        "commit": current_commit(),
    }


def best_numbers(study: optuna.Study) -> list[int]:
    """The best feasible trial, or with two objectives all that no other beats in both; [] without any."""
    numbers = [trial.number for trial in study.best_trials]
    return numbers if len(study.directions) > 1 else numbers[:1]


def _trial_record(trial: FrozenTrial, folder_name: str) -> dict[str, Any]:
    return {
        "number": trial.number,
        "folder": folder_name,
        "state": trial.state.name.lower(),
        "parameters": trial.params,
        "values": trial.values if trial.state == TrialState.COMPLETE else None,
        "missing_at_gate": trial.constraints.get(GATE),
        "epochs": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
        "figures": {name: value for name, value in trial.user_attrs.items() if name != _FIRST_NUMBER},
    }
