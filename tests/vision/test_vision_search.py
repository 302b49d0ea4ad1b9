"""The search: killed and continued by two workers on one study, gates, repeatability, what an impossible plan says."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from newllm_core.config.hyperparameters import RunConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data.errors import DataError
from newllm_core.intervals import wilson_interval
from newllm_core.runs import checkpoint
from newllm_core.runs.files import RunError, read_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.training.loop import TrainingLoop
from newllm_core.vision.config import (
    VisionDataConfig,
    VisionModelConfig,
    VisionTrainConfig,
    augmentation_pack,
    model_preset,
)
from newllm_core.vision.experiment import CHECKPOINT_DIR, WEIGHTS_NAME, score_cards
from newllm_core.vision.report.search import (
    plot_search_epochs,
    plot_search_history,
    plot_search_importance,
    search_pictures,
)
from newllm_core.vision.score import tpe_score
from newllm_core.vision.search import run as search
from newllm_core.vision.search.config import SEARCH_SPACES, SearchConfig, search_profile
from newllm_core.vision.search.front import front_table
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.search.run import SUMMARY_NAME, run_search, test_winner
from newllm_core.vision.search.study import alone, load_study
from newllm_core.vision.settings import VisionSettings
from newllm_core.vision.training import EpochFigures

GATE = VisionDataConfig(dataset="colour", image_size=16, num_train_images=96)
# A learning rate learns the colours or learns nothing: which side of the gate a trial is on, is no matter of luck.
LEARNS, LEARNS_NOTHING = 0.02, 1e-7
SPACE: dict[str, BaseDistribution] = {
    "learning_rate": CategoricalDistribution((LEARNS, LEARNS_NOTHING)),
    "temperature": FloatDistribution(0.6, 1.0),
}
BASE = VisionSettings(
    model=VisionModelConfig(width=16, depth=1, heads=2, patch=4, stem="off", colour_norm="off", attention_dropout=0.0),
    augmentation=augmentation_pack("off"),
    train=VisionTrainConfig(epochs=2, warmup_epochs=0, batch_size=8),
    run=RunConfig(num_threads=1),
)
# All trials are drawn at random, so what they try depends on their number alone, not on who finishes first.
SEARCH = SearchConfig(num_trials=5, gate_threshold=0.6, startup_trials=20, pruner="off")


def small_plan(other: VisionDataConfig | None = None, **changes: Any) -> SearchPlan:
    return SearchPlan(BASE, GATE, () if other is None else (other,), dataclasses.replace(SEARCH, **changes), SPACE)


def idx_folder(folder: Path) -> VisionDataConfig:
    """Sixty small images of noise with ten labels, as the second data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 16, 16), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return VisionDataConfig(dataset="mnist-idx", path=str(folder), image_size=16)


def search_and_be_killed(folder: Path, data: Path) -> None:
    """Runs in a process of its own, which ends without warning after the first epoch of its third run."""
    runs: list[Path] = []
    save = TrainingLoop.save

    def save_and_die(loop: TrainingLoop[EpochFigures]) -> None:
        save(loop)
        assert loop.place is not None
        runs.extend([loop.place.folder] if loop.place.folder not in runs else [])
        if len(runs) == 3 and loop.rows:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.CHECKPOINT_SHARE = math.inf
    TrainingLoop.save = save_and_die  # type: ignore[method-assign]
    run_search(small_plan(idx_folder(data)), folder, show_progress=False)


@dataclasses.dataclass(frozen=True)
class Continued:
    folder: Path
    plan: SearchPlan
    killed_states: list[str]
    interrupted: dict[str, Any]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """A search that was killed once and continued by two workers."""
    root = tmp_path_factory.mktemp("search")
    folder, data = root / "study", root / "idx"
    code = (
        "from pathlib import Path; import test_vision_search as tests; "
        f"tests.search_and_be_killed(Path({str(folder)!r}), Path({str(data)!r}))"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    trials = load_study(folder).get_trials()
    running = next(trial for trial in trials if trial.state == TrialState.RUNNING)
    assert len(list((folder / "trials").glob(f"*/*/{CHECKPOINT_DIR}"))) == 1
    plan = small_plan(idx_folder(data))
    summary = run_search(plan, folder, workers=2, show_progress=False)
    interrupted = {"number": running.number, "parameters": running.params}
    return Continued(folder, plan, [trial.state.name for trial in trials], interrupted, summary)


def test_killed_search_goes_on_with_two_workers_to_exactly_the_trials_asked_for(continued: Continued) -> None:
    assert continued.killed_states.count("RUNNING") == 1
    counts = continued.summary["counts"]
    assert counts["complete"] + counts["pruned"] == SEARCH.num_trials
    assert (counts["fail"], counts["running"], counts["waiting"]) == (1, 0, 0)
    assert continued.summary == read_json(continued.folder / SUMMARY_NAME)


def test_interrupted_trial_is_continued_in_its_own_folder(continued: Continued) -> None:
    folder = f"trial-{continued.interrupted['number']:04d}"
    failed, again = [trial for trial in continued.summary["trials"] if trial["folder"] == folder]
    assert failed["state"] == "fail" and again["state"] in ("complete", "pruned")
    assert failed["parameters"] == again["parameters"] == continued.interrupted["parameters"]


def test_trials_below_the_gate_are_pruned_before_the_other_data_sets(continued: Continued) -> None:
    pruned = [trial for trial in continued.summary["trials"] if trial["state"] == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial["parameters"]["learning_rate"] == LEARNS_NOTHING
        assert trial["missing_at_gate"] == pytest.approx(0.6 - trial["figures"]["accuracy"]["colour"])
        assert "below the gate of 0.6" in trial["figures"]["stopped"]
        folder = continued.folder / "trials" / trial["folder"]
        assert [path.name for path in folder.iterdir()] == ["colour"]
        assert not list(folder.rglob(WEIGHTS_NAME))


def test_trials_that_pass_return_global_over_all_data_sets(continued: Continued) -> None:
    complete = [trial for trial in continued.summary["trials"] if trial["state"] == "complete"]
    assert complete
    for trial in complete:
        assert trial["parameters"]["learning_rate"] == LEARNS and trial["missing_at_gate"] <= 0
        names = ("colour", "mnist-idx")
        records = {
            name: read_json(continued.folder / "trials" / trial["folder"] / name / RECORD_NAME) for name in names
        }
        assert trial["values"] == [score_cards(records, names, "selection")["tpe_scalar"].global_score]
    best = max(complete, key=lambda trial: trial["values"][0])
    assert continued.summary["best"] == [best["number"]]


def test_search_never_reads_test_images_but_for_the_winner(continued: Continued) -> None:
    records = list((continued.folder / "trials").rglob(RECORD_NAME))
    assert all(read_json(path)["test"] is None for path in records)
    for _ in range(2):
        cards = test_winner(continued.plan, continued.folder)
        tested = [read_json(path)["test"] for path in records if read_json(path)["test"] is not None]
        assert [test["readings"] for test in tested] == [1, 1]
    assert sorted(cards["tpe_scalar"].accuracy.values()) == sorted(test["accuracy"] for test in tested)


def test_finished_search_does_nothing_and_a_longer_one_goes_on(continued: Continued) -> None:
    trials = continued.summary["trials"]
    assert run_search(continued.plan, continued.folder, show_progress=False)["trials"] == trials
    search = dataclasses.replace(SEARCH, num_trials=6)
    longer = run_search(dataclasses.replace(continued.plan, search=search), continued.folder, show_progress=False)
    assert longer["trials"][:-1] == trials


def test_folder_of_another_search_is_refused(continued: Continued) -> None:
    for change, message in (
        ({"search": dataclasses.replace(SEARCH, gate_threshold=0.5)}, "search.gate_threshold = 0.6, asked for 0.5"),
        ({"other_data": ()}, "another space"),
        ({"space": {**SPACE, "top_k": IntDistribution(4, 8)}}, "another space"),
    ):
        with pytest.raises(RunError, match=message):
            run_search(dataclasses.replace(continued.plan, **change), continued.folder)


def test_pictures_of_a_search_leave_pyplot_as_it_was(continued: Continued) -> None:
    before = dict(matplotlib.rcParams)
    figures = [plot(continued.folder) for plot in (plot_search_history, plot_search_epochs)]
    assert dict(matplotlib.rcParams) == before and not pyplot.get_fignums()
    for figure in figures:
        assert "trials finished" in figure.axes[0].get_title() and "pruned" in figure.axes[0].get_title()


def test_importance_is_not_drawn_from_few_trials(continued: Continued) -> None:
    assert list(search_pictures(continued.folder)) == ["epochs", "history"]
    with pytest.raises(SearchError, match="expected at least 10 trials that ended stage A"):
        plot_search_importance(continued.folder)


def search_without_end(folder: Path) -> None:
    run_search(small_plan(num_trials=10_000), folder, workers=2, show_progress=False)


def test_workers_of_a_search_that_was_killed_end_with_their_trials(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import test_vision_search as tests; "
        f"tests.search_without_end(Path({str(tmp_path)!r}))"
    )
    # A file of its own: workers are started from the main module.
    (tmp_path / "main.py").write_text(f"if __name__ == '__main__':\n    {code}\n", encoding="utf-8")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], env={**os.environ, "PYTHONPATH": paths})
    try:
        wait_until(lambda: len(list(tmp_path.glob(f"trials/*/*/{RECORD_NAME}"))) >= 2)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: is_free(tmp_path))
    assert 2 <= len(list(tmp_path.glob("trials/*"))) < 1000


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def is_free(folder: Path) -> bool:
    try:
        with alone(folder):
            return True
    except SearchError:
        return False


# --- one process


def test_one_worker_is_repeatable(tmp_path: Path) -> None:
    # Random for two trials, then by the sampler's model of them.
    plan = small_plan(num_trials=3, startup_trials=2)
    first, second = (run_search(plan, tmp_path / name, show_progress=False) for name in ("a", "b"))
    assert first["trials"] == second["trials"]
    assert len({trial["parameters"]["temperature"] for trial in first["trials"]}) == 3


def test_literal_gate_asks_for_a_score(tmp_path: Path) -> None:
    summary = run_search(small_plan(num_trials=2, gate="score", gate_threshold=1.0), tmp_path, show_progress=False)
    for trial in summary["trials"]:
        score = tpe_score(trial["figures"]["accuracy"]["colour"], 4 * BASE.model.depth)
        assert score is not None and trial["missing_at_gate"] == pytest.approx(1.0 - score)
        assert trial["state"] == ("complete" if score >= 1 else "pruned")


def test_two_objectives_are_accuracy_and_parameters(tmp_path: Path) -> None:
    space = {"width": IntDistribution(8, 16, step=8), "learning_rate": CategoricalDistribution((LEARNS,))}
    plan = dataclasses.replace(
        small_plan(num_trials=3, objective="accuracy_and_parameters", gate_threshold=0.0), space=space
    )
    summary = run_search(plan, tmp_path, show_progress=False)
    for trial in summary["trials"]:
        figures = trial["figures"]
        assert trial["values"] == [figures["accuracy"]["colour"], figures["parameters"]["colour"] / 1e6]
    # The lowest number of parameters is never beaten in both.
    smallest = min(summary["trials"], key=lambda trial: (trial["values"][1], -trial["values"][0]))
    assert smallest["number"] in summary["best"]
    assert list(search_pictures(tmp_path)) == ["front"]
    table = front_table(tmp_path)
    assert sorted(table["trial"]) == sorted(summary["best"]) and list(table["width"]) == sorted(table["width"])
    with pytest.raises(SearchError, match="no trial has reported an epoch"):
        plot_search_epochs(tmp_path)


def test_front_has_intervals_over_the_images_of_all_data_sets(tmp_path: Path) -> None:
    other = idx_folder(tmp_path / "idx")
    run_search(
        small_plan(other, num_trials=1, objective="accuracy_and_parameters", gate_threshold=0.0),
        tmp_path / "study", show_progress=False,
    )  # fmt: skip
    (row,) = front_table(tmp_path / "study").to_dict("records")
    paths = [tmp_path / "study" / "trials" / "trial-0000" / name / RECORD_NAME for name in ("colour", "mnist-idx")]
    (one, two) = (read_json(path)["selection"] for path in paths)
    (low, high), (other_low, other_high) = (wilson_interval(each["correct"], each["images"]) for each in (one, two))
    mean = (one["correct"] / one["images"] + two["correct"] / two["images"]) / 2
    below = math.hypot(one["accuracy"] - low, two["accuracy"] - other_low) / 2
    above = math.hypot(high - one["accuracy"], other_high - two["accuracy"]) / 2
    assert (row["mean accuracy"], row["low"], row["high"]) == pytest.approx((mean, mean - below, mean + above))
    assert 0 <= row["low"] < row["mean accuracy"] < row["high"] <= 1
    paths[1].unlink()
    with pytest.raises(SearchError, match="trial 0 has finished, but its record is not there"):
        front_table(tmp_path / "study")


def test_trial_below_the_median_is_stopped_between_epochs(tmp_path: Path) -> None:
    plan = small_plan(
        num_trials=6, pruner="median", pruner_startup_trials=2, pruner_warmup_epochs=0, gate_threshold=0.5
    )
    summary = run_search(plan, tmp_path, show_progress=False)
    stopped = [trial for trial in summary["trials"] if "median" in trial["figures"].get("stopped", "")]
    assert stopped
    for trial in stopped:
        last = max(trial["epochs"].items(), key=lambda pair: int(pair[0]))[1]
        assert trial["state"] == "pruned" and trial["missing_at_gate"] == pytest.approx(0.5 - last)
        assert not (tmp_path / "trials" / trial["folder"] / "colour" / CHECKPOINT_DIR).exists()


def test_training_that_diverges_is_pruned_and_violates_the_gate(tmp_path: Path) -> None:
    plan = dataclasses.replace(small_plan(num_trials=1), space={"learning_rate": CategoricalDistribution((1e30,))})
    (trial,) = run_search(plan, tmp_path, show_progress=False)["trials"]
    assert trial["state"] == "pruned" and trial["missing_at_gate"] == 0.6
    assert trial["figures"]["stopped"].startswith("not finite: NKAT, epoch 1")
    with pytest.raises(SearchError, match="at least one trial that passed the gate, found none"):
        plot_search_history(tmp_path)
    with pytest.raises(SearchError, match="expected one best trial, found 0"):
        test_winner(plan, tmp_path)


@pytest.mark.parametrize("changes", [{"path": "absent"}, {"num_train_images": 10**6}])
def test_images_that_are_not_there_are_said_before_the_first_trial(changes: dict[str, Any], tmp_path: Path) -> None:
    other = dataclasses.replace(idx_folder(tmp_path / "idx"), **changes)
    with pytest.raises(DataError):
        run_search(small_plan(other), tmp_path / "study", show_progress=False)
    assert not list(tmp_path.glob("study/trials/*"))


def test_error_in_a_trial_ends_the_search_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are lost while it runs."""
    lost = idx_folder(tmp_path / "idx")
    monkeypatch.setattr(search, "_refuse_missing_images", lambda plan, study: shutil.rmtree(tmp_path / "idx"))
    plan = small_plan(lost, num_trials=1, gate_threshold=0.0)
    with pytest.raises(DataError, match="there is no such file or folder"):
        run_search(plan, tmp_path / "study", show_progress=False)
    (trial,) = read_json(tmp_path / "study" / SUMMARY_NAME)["trials"]
    assert trial["state"] == "fail" and trial["figures"]["stopped"].startswith("DataError: mnist-idx")


def test_search_refuses_a_folder_in_which_one_is_running(tmp_path: Path) -> None:
    with alone(tmp_path) as share_with_workers:
        share_with_workers()
        with pytest.raises(SearchError, match="a search is running here, or one of its workers still is"):
            run_search(small_plan(), tmp_path)


def test_pictures_need_a_study(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no study here; expected study.journal"):
        plot_search_history(tmp_path)


# --- plans


def test_published_spaces_are_possible() -> None:
    data = (VisionDataConfig(dataset="mnist-5k"), VisionDataConfig(dataset="fashion-mnist"))
    for name, presets in (("full", ()), ("quick", ("quick",))):
        base = VisionSettings(model=model_preset(*presets))
        SearchPlan(base, VisionDataConfig(dataset="cifar10-jpeg"), data, space=SEARCH_SPACES[name]).check()


@pytest.mark.parametrize(
    ("changes", "space", "message"),
    [
        ({"stem_strides": (2, 2)}, {"patch": CategoricalDistribution((2, 4))}, "at least 16 patches, given 4"),
        ({"heads": 12}, {"width": IntDistribution(384, 512, step=8)}, "multiple of heads=12, given 392"),
        ({}, {"widht": IntDistribution(8, 16)}, "unknown parameter 'widht'. Did you mean 'width'"),
        ({}, {"top_p": FloatDistribution(0.8, 1.2)}, "top_p: expected at most 1, given 1.2"),
    ],
)
def test_impossible_choice_is_refused_before_anything_is_trained(
    changes: dict[str, Any], space: dict[str, BaseDistribution], message: str, tmp_path: Path
) -> None:
    base = VisionSettings(model=VisionModelConfig(**changes))
    plan = SearchPlan(base, VisionDataConfig(dataset="cifar10-jpeg"), space=space)
    with pytest.raises(ConfigError, match=message):
        run_search(plan, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_data_set_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every data set once, given colour, colour"):
        run_search(small_plan(GATE), tmp_path)
    with pytest.raises(ConfigError, match="at least 1 worker, given 0"):
        run_search(small_plan(), tmp_path, workers=0)


def test_search_profiles_follow_the_notes() -> None:
    assert (search_profile("full").num_trials, search_profile("full").gate_threshold) == (50, 0.60)
    assert search_profile("quick").gate_threshold == 0.30
    assert (search_profile("literal").gate, search_profile("literal").gate_threshold) == ("score", 0.60)
    with pytest.raises(ConfigError, match="unknown search profile 'fast'"):
        search_profile("fast")
    with pytest.raises(ConfigError, match="an accuracy is at most 1, given 1.5"):
        SearchConfig(gate_threshold=1.5)
