"""A search that was interrupted draws the same trials; a damaged journal is recovered or named; the hopeless stop."""

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from test_vision_search import BASE, GATE, LEARNS, LEARNS_NOTHING, SEARCH

from newllm_core.runs.files import RunError, read_json
from newllm_core.vision.search import run as search
from newllm_core.vision.search.journal import JOURNAL_NAME, SearchError, recover_journal
from newllm_core.vision.search.plan import PLAN_NAME, SearchPlan
from newllm_core.vision.search.pruner import MedianOfFinished
from newllm_core.vision.search.run import SUMMARY_NAME, run_search
from newllm_core.vision.search.study import load_study, requeue_interrupted

SPACE = {"learning_rate": CategoricalDistribution((LEARNS, LEARNS_NOTHING)), "temperature": FloatDistribution(0.6, 1.0)}
# Two at random, then by the sampler's model of what was found.
PLAN = SearchPlan(BASE, GATE, search=dataclasses.replace(SEARCH, num_trials=5, startup_trials=2), space=SPACE)


def drawn(summary: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What was tried and what came out, without the trials that were interrupted."""
    finished = [trial for trial in summary["trials"] if trial["state"] != "fail"]
    return [(trial["parameters"], trial["values"], trial["missing_at_gate"], trial["epochs"]) for trial in finished]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Any, ...]]]:
    """A search that ran through, with one worker."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, drawn(run_search(PLAN, folder, show_progress=False))


class KilledError(BaseException):
    """As the end of the process: nothing after it is written."""


def test_search_that_was_interrupted_in_a_trial_draws_what_one_that_ran_through_draws(
    whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = search._Worker._watch
    reports = itertools.count(1)

    def interrupted(self: Any, trial: Any, figures: Any) -> None:
        if next(reports) in (2, 4, 7):  # epochs, counted over all starts
            raise KilledError
        watch(self, trial, figures)

    monkeypatch.setattr(search._Worker, "_watch", interrupted)
    for _ in range(3):
        with pytest.raises(KilledError):
            run_search(PLAN, tmp_path, show_progress=False)
    monkeypatch.undo()
    summary = run_search(PLAN, tmp_path, show_progress=False)
    assert summary["counts"]["fail"] == 3 and summary["most_workers"] == 1
    assert drawn(summary) == whole[1]


def test_trial_that_was_interrupted_while_it_was_drawn_is_drawn_again(
    whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    few = dataclasses.replace(PLAN, search=dataclasses.replace(PLAN.search, num_trials=2))
    run_search(few, tmp_path, show_progress=False)
    load_study(tmp_path).ask({"learning_rate": SPACE["learning_rate"]})  # its temperature was never written
    summary = run_search(PLAN, tmp_path, show_progress=False)
    assert [trial["state"] for trial in summary["trials"]].count("fail") == 1
    assert drawn(summary) == whole[1]


def interrupt_third(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials finished, and the third, drawn from the sampler's model of them, cut off in its first epoch."""
    watch, reports = search._Worker._watch, itertools.count(1)

    def interrupted(self: Any, trial: Any, figures: Any) -> None:
        if next(reports) == 5:
            raise KilledError
        watch(self, trial, figures)

    with monkeypatch.context() as patch:
        patch.setattr(search._Worker, "_watch", interrupted)
        with pytest.raises(KilledError):
            run_search(PLAN, folder, show_progress=False)


def test_interrupted_trial_is_not_lost_when_its_search_is_killed_while_it_takes_it_from_the_queue(
    whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_third(tmp_path, monkeypatch)
    study = load_study(tmp_path)
    requeue_interrupted(study)
    study.ask({"learning_rate": SPACE["learning_rate"]})  # the one that was queued; its temperature was never written
    assert drawn(run_search(PLAN, tmp_path, show_progress=False)) == whole[1]


def test_interrupted_trial_is_queued_once_when_its_search_is_killed_between_queueing_and_marking(
    whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(*arguments: Any, **named: Any) -> None:
        raise KilledError

    interrupt_third(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", tell)
        with pytest.raises(KilledError):
            run_search(PLAN, tmp_path, show_progress=False)
    summary = run_search(PLAN, tmp_path, show_progress=False)
    assert drawn(summary) == whole[1] and summary["counts"]["waiting"] == 0


# --- the journal


def copy_of(folder: Path, target: Path, content: bytes) -> Path:
    """A search's folder with another journal; records of its trials are there."""
    shutil.copytree(folder, target)
    (target / JOURNAL_NAME).write_bytes(content)
    return target


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_journal_whose_end_was_lost_is_recovered_with_a_notice(
    cut: int, whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (whole[0] / JOURNAL_NAME).read_bytes()
    folder = copy_of(whole[0], tmp_path / "search", content[:-cut])
    with caplog.at_level(logging.WARNING, "newllm"):
        summary = run_search(PLAN, folder, show_progress=False)
    assert "was damaged, so what follows" in caplog.text
    assert (folder / f"{JOURNAL_NAME}.damaged").read_bytes() == content[:-cut]
    assert drawn(summary) == whole[1] == drawn(read_json(folder / SUMMARY_NAME))


def test_every_cut_of_a_journal_leaves_whole_events(whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path) -> None:
    content = (whole[0] / JOURNAL_NAME).read_bytes()
    (tmp_path / f"{JOURNAL_NAME}.lock").touch()  # of a process that was killed while it wrote
    for length in range(0, len(content), 97):
        (tmp_path / JOURNAL_NAME).write_bytes(content[:length])
        recover_journal(tmp_path)
        kept = (tmp_path / JOURNAL_NAME).read_bytes()
        assert (
            content.startswith(kept) and content[:length].startswith(kept) and b"\n" not in content[len(kept) : length]
        )
    assert not (tmp_path / f"{JOURNAL_NAME}.lock").exists()


def test_journal_that_is_damaged_before_its_end_goes_on_from_what_is_whole(
    whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (whole[0] / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    place = len(lines) // 2
    altered = lines[place].replace(b"0", b"1", 1)  # a digit: it is JSON still
    folder = copy_of(whole[0], tmp_path / "search", b"".join([*lines[:place], altered, *lines[place + 1 :]]))
    with pytest.raises(SearchError, match=f"{JOURNAL_NAME}: the journal is damaged .* run the search again"):
        load_study(folder).get_trials()
    summary = run_search(PLAN, folder, show_progress=False)
    assert f"line {place + 1} of {len(lines)} was damaged" in caplog.text
    assert drawn(summary) == whole[1]


def test_journal_of_an_earlier_version_is_refused_and_stays(tmp_path: Path) -> None:
    content = b'{"op_code":0,"worker_id":"a"}\n'
    (tmp_path / JOURNAL_NAME).write_bytes(content)
    with pytest.raises(SearchError, match="of an earlier version.* Use another folder"):
        run_search(PLAN, tmp_path, show_progress=False)
    assert (tmp_path / JOURNAL_NAME).read_bytes() == content


def test_deleting_the_plan_cannot_mix_two(whole: tuple[Path, list[tuple[Any, ...]]], tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "search", (whole[0] / JOURNAL_NAME).read_bytes())
    (folder / PLAN_NAME).unlink()
    other = dataclasses.replace(PLAN, base=dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, epochs=1)))
    with pytest.raises(RunError, match=f"{JOURNAL_NAME} holds another run: train.epochs = 2, asked for 1"):
        run_search(other, folder, show_progress=False)
    assert not (folder / PLAN_NAME).exists()
    assert drawn(run_search(PLAN, folder, show_progress=False)) == whole[1]


# --- the pruner


def study_of(*histories: tuple[TrialState, list[float]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for state, values in histories:
        epochs = dict(enumerate(values, start=1))
        study.add_trial(create_trial(state=state, value=values[-1], intermediate_values=epochs))
    return study


def stops(study: optuna.Study, values: list[float], startup: int = 2, warmup: int = 1) -> bool:
    trial = study.ask()
    for epoch, value in enumerate(values, start=1):
        trial.report(value, epoch)
    return MedianOfFinished(startup, warmup).prune(study, study.get_trials()[-1])


BELOW_GATE, ABOVE_GATE = TrialState.PRUNED, TrialState.COMPLETE


def test_trials_below_the_gate_count_as_something_to_compare_with() -> None:
    study = study_of((BELOW_GATE, [0.2, 0.3]), (BELOW_GATE, [0.4, 0.5]), (BELOW_GATE, [0.3, 0.4]))
    assert stops(study, [0.2]) and stops(study, [0.1, 0.39])
    assert not stops(study, [0.3]) and not stops(study, [0.2, 0.4]) and not stops(study, [0.45, 0.1])


def test_no_trial_is_stopped_before_there_is_enough_to_compare_with() -> None:
    study = study_of((ABOVE_GATE, [0.9, 0.9, 0.9]), (BELOW_GATE, [0.8]))
    assert not stops(study, [0.1], startup=3) and not stops(study, [0.1], warmup=2) and not stops(study, [])
    assert stops(study, [0.1, 0.1], warmup=2)
    assert not stops(study, [0.1, 0.1, 0.1, 0.1])  # none has reached a fourth epoch


def test_hopeless_trials_stop_early_behind_a_gate_that_none_passes(tmp_path: Path) -> None:
    changes = {"pruner": "median", "pruner_startup_trials": 2, "pruner_warmup_epochs": 0}
    gated = dataclasses.replace(
        PLAN.search, num_trials=7, startup_trials=20, gate="score", gate_threshold=99.0, **changes
    )
    base = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, epochs=3))
    plan = dataclasses.replace(PLAN, base=base, search=gated)
    trials = run_search(plan, tmp_path, show_progress=False)["trials"]
    assert {trial["state"] for trial in trials} == {"pruned"}
    stopped = [len(trial["epochs"]) for trial in trials if "median" in trial["figures"]["stopped"]]
    assert stopped and max(stopped) < 3
