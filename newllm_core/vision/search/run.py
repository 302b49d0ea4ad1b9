"""Search over model and training with Optuna (docs/method.md, section 12.5): one study, two stages, several workers.

Stage A trains the gate's data set and reports every epoch; a trial that misses the gate violates the study's constraint
and is pruned. Stage B trains the other data sets and returns Global. Every figure is of selection images: test images
are read for the winner alone, by `test_winner`.

A search can be killed at any time. Started again, it goes on with the trials that were running, each from the last
checkpoint of its own run folder, and draws the trials that it would have drawn.
"""

import multiprocessing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from newllm_core.config.schema import ConfigError
from newllm_core.losses import NotFiniteError
from newllm_core.runs.checkpoint import discard_checkpoint
from newllm_core.runs.disk import RunError
from newllm_core.runs.files import write_json
from newllm_core.runs.host_memory import memory_errors_named
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import ImageData, load_image_data
from newllm_core.vision.experiment import CHECKPOINT_DIR, WEIGHTS_NAME, Record, run_vision, score_cards
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.score import ScoreCard, theory_params, theory_scalars, tpe_score
from newllm_core.vision.search.journal import SearchError, recover_journal
from newllm_core.vision.search.plan import PLAN_NAME, SearchPlan, keep_plan
from newllm_core.vision.search.pruner import MedianOfFinished
from newllm_core.vision.search.study import (
    GATE,
    alone,
    as_worker,
    asking,
    best_numbers,
    count_workers,
    create_study,
    ended_trials,
    load_study,
    num_drawn,
    requeue_interrupted,
    search_summary,
    trial_folder,
)
from newllm_core.vision.training import EpochFigures

SUMMARY_NAME = "search.json"
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
_POLL_SECONDS = 1.0


def run_search(plan: SearchPlan, folder: Path, *, workers: int = 1, show_progress: bool = True) -> dict[str, Any]:
    """Run or continue a study until it has `num_trials` finished or pruned trials; returns what `search.json` holds.

    Args:
        folder: of the study; holds the journal, the plan and a folder per trial.
        workers: processes. With one, a study is repeatable, however often it is interrupted; with more, which trial
            sees which others' results depends on timing, and `most_workers` of the summary says so.

    Raises ConfigError for an impossible plan, DataError for images that are not there, RunError when the folder holds
    another plan, SearchError when a search is running there or a worker failed; finished trials stay.
    """
    if workers < 1:
        raise ConfigError(f"run_search: expected at least 1 worker, given {workers}")
    plan.check()
    with alone(folder) as share_with_workers, memory_errors_named(folder):
        recover_journal(folder)
        if (folder / PLAN_NAME).is_file():
            keep_plan(plan, folder)  # raises before a study is made beside another plan
        study = create_study(plan, folder)
        keep_plan(plan, folder)
        requeue_interrupted(study)
        count_workers(study, workers)
        _refuse_missing_images(plan, study)
        share_with_workers()
        try:
            if workers == 1:
                _Worker(plan, folder, show_progress).work()
            else:
                _run_workers(plan, folder, workers, show_progress)
        finally:
            summary = search_summary(plan, study)
            write_json(folder / SUMMARY_NAME, summary)
    return summary


def _refuse_missing_images(plan: SearchPlan, study: optuna.Study) -> None:
    """Raises DataError now where a worker would meet it in the middle of a trial; a finished search needs no images."""
    if len(ended_trials(study)) < plan.search.num_trials:
        for data in plan.data_sets:
            load_image_data(data)


def _run_workers(plan: SearchPlan, folder: Path, workers: int, show_progress: bool) -> None:
    # spawn: a forked process cannot use CUDA, nor threads that its parent has started.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(plan, folder), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        _await(processes, load_study(folder), plan.search.num_trials, show_progress)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    failed = [number for number, process in enumerate(processes) if process.exitcode]
    if failed:
        raise SearchError(
            f"{folder}: {len(failed)} of {workers} workers failed (see their messages above); finished trials are "
            "kept, and starting the search again goes on"
        )


def _await(processes: list[Any], study: optuna.Study, num_trials: int, show_progress: bool) -> None:
    with progress_bar(total=num_trials, desc="trials", unit="trial", disable=not show_progress) as bar:
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(timeout=_POLL_SECONDS / len(processes))
            bar.update(len(ended_trials(study)) - bar.n)


def _work(plan: SearchPlan, folder: Path) -> None:
    with as_worker(folder):
        _Worker(plan, folder, show_progress=False).work()


def _search_has_ended() -> bool:
    search = multiprocessing.parent_process()
    return search is not None and not search.is_alive()


class _Worker:
    """One process of a search; keeps the images it has loaded."""

    def __init__(self, plan: SearchPlan, folder: Path, show_progress: bool) -> None:
        self.plan, self.folder, self.show_progress = plan, folder, show_progress
        self.study = load_study(folder)
        search = plan.search
        self.study.pruner = (
            MedianOfFinished(search.pruner_startup_trials, search.pruner_warmup_epochs)
            if search.pruner == "median"
            else optuna.pruners.NopPruner()
        )
        self.images: dict[VisionDataConfig, ImageData] = {}

    def work(self) -> None:
        """Until there are enough trials; a worker whose search was killed ends after the trial that it is at."""
        while not _search_has_ended() and (trial := self._next_trial()) is not None:
            self._run_trial(trial)

    def _next_trial(self) -> Trial | None:
        """A new trial, or an interrupted one; None when there are enough."""
        # One worker asks at a time: together they stop at exactly as many trials as were asked for.
        with asking(self.folder):
            trials = self.study.get_trials(deepcopy=False)
            if sum(trial.state in _COUNTED for trial in trials) >= self.plan.search.num_trials:
                return None
            # A sampler's draws depend on the seed and on the trials drawn so far, never on which worker asks or on how
            # often the search was started: the same seed at a restart would propose the first trials again.
            number = num_drawn(self.study)
            seed = derived_generator("search", self.plan.search.seed, number).initial_seed() % 2**32
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.plan.search.startup_trials)
            return self.study.ask(dict(self.plan.space))

    def _run_trial(self, trial: Trial) -> None:
        try:
            values = self._values(trial)
        except optuna.TrialPruned as pruned:
            self._prune(trial, str(pruned))
        except NotFiniteError as error:
            if "accuracy" not in trial.user_attrs:  # in stage A: as if it had learned nothing
                trial.set_constraint(GATE, self.plan.search.gate_threshold)
            self._prune(trial, f"not finite: {error}")
        except RunError:  # of disk, memory or a damaged file: the trial stays interrupted, and is gone on with
            raise
        except Exception as error:
            trial.set_user_attr("stopped", f"{type(error).__name__}: {error}")
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            self.study.tell(trial, values)

    def _prune(self, trial: Trial, reason: str) -> None:
        """A pruned trial keeps its records; its weights, tens of megabytes, are not needed again."""
        trial.set_user_attr("stopped", reason)
        for data in self.plan.data_sets:
            run_dir = trial_folder(self.folder, self.study, trial) / data.dataset
            discard_checkpoint(run_dir / CHECKPOINT_DIR)
            for path in run_dir.glob(f"{WEIGHTS_NAME}*"):
                path.unlink()
        self.study.tell(trial, state=TrialState.PRUNED)

    def _values(self, trial: Trial) -> list[float]:
        """Both stages: Global, or mean accuracy and parameters in millions. Raises TrialPruned or NotFiniteError."""
        search, gate_name = self.plan.search, self.plan.gate_data.dataset
        records = {gate_name: self._run(trial, self.plan.gate_data, partial(self._watch, trial))}
        self._keep_figures(trial, records)
        missing = self._set_constraint(trial, records[gate_name]["selection"]["accuracy"])
        if missing > 0:
            raise optuna.TrialPruned(f"{search.gate} is {missing:.4f} below the gate of {search.gate_threshold:g}")
        for data in self.plan.other_data:
            records[data.dataset] = self._run(trial, data, lambda figures: None)
            self._keep_figures(trial, records)
        card = score_cards(records, self.plan.names, "selection")[search.score]
        if search.objective == "global":
            assert card.global_score is not None  # a block has at least two scalars, so λ > 0
            return [card.global_score]
        return [sum(card.accuracy.values()) / len(card.accuracy), records[gate_name]["theory"]["tpe_params"]]

    def _run(self, trial: Trial, data: VisionDataConfig, report: Callable[[EpochFigures], None]) -> Record:
        if data not in self.images:
            self.images[data] = load_image_data(data)
        run_dir = trial_folder(self.folder, self.study, trial) / data.dataset
        return run_vision(
            self.plan.settings(trial.params, data), run_dir,
            images=self.images[data], read_test=False, report=report, show_progress=self.show_progress,
        )  # fmt: skip

    def _watch(self, trial: Trial, figures: EpochFigures) -> None:
        """Report an epoch of stage A. Raises TrialPruned."""
        if self.plan.search.objective != "global":
            return  # Optuna prunes by one objective only
        trial.report(figures.selection_accuracy, figures.epoch)
        if trial.should_prune():
            # As far as it was trained, so that it does not pass for one that met the gate.
            self._set_constraint(trial, figures.selection_accuracy)
            raise optuna.TrialPruned(f"below the median at epoch {figures.epoch}")

    def _set_constraint(self, trial: Trial, accuracy: float) -> float:
        """How much is missing at the gate; above 0 the trial is infeasible."""
        value: float | None = accuracy
        if self.plan.search.gate == "score":
            model = NkatModel(self.plan.settings(trial.params, self.plan.gate_data).model)
            theory = theory_scalars(model) if self.plan.search.score == "tpe_scalar" else theory_params(model)
            value = tpe_score(accuracy, theory)
        assert value is not None  # λ > 0
        missing = self.plan.search.gate_threshold - value
        trial.set_constraint(GATE, missing)
        return missing

    def _keep_figures(self, trial: Trial, records: Mapping[str, Record]) -> None:
        trial.set_user_attr("accuracy", {name: record["selection"]["accuracy"] for name, record in records.items()})
        trial.set_user_attr("parameters", {name: record["parameters"]["total"] for name, record in records.items()})


def test_winner(plan: SearchPlan, folder: Path) -> dict[str, ScoreCard]:
    """Read the test images of every data set, once, for the best trial; its score cards. Raises SearchError."""
    study = load_study(folder)
    best = best_numbers(study)
    if len(best) != 1:
        raise SearchError(f"{folder}: expected one best trial, found {len(best)}; choose one of {best}")
    winner = study.get_trials(deepcopy=False)[best[0]]
    records = {
        data.dataset: run_vision(
            plan.settings(winner.params, data),
            trial_folder(folder, study, winner) / data.dataset,
            show_progress=False,
        )
        for data in plan.data_sets
    }
    return score_cards(records, plan.names)


test_winner.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name begins with
