"""Lists of experiments, on real text at a small size: their points, early refusals, and going on where one stopped."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_experiment import SMALL as TWO_EPOCHS

from newllm_core.config.language import Settings
from newllm_core.config.schema import ConfigError, changed
from newllm_core.data import DataError
from newllm_core.experiment import run as experiment_module
from newllm_core.experiment.estimate import Estimate
from newllm_core.experiment.identity import phase1_folder_name, run_folder_name, settings_of
from newllm_core.losses import ALGORITHM_DESCRIPTIONS, DIVERSITY_ALGORITHMS, register_diversity_loss
from newllm_core.runs.files import RunError, read_json, write_json
from newllm_core.runs.identity import figures_of
from newllm_core.studies import sweep as series_module
from newllm_core.studies.sweep import (
    Folders,
    Record,
    Series,
    SeriesError,
    comparison_points,
    grid,
    one_axis_at_a_time,
)

# The experiment of test_experiment, shortened.
SMALL = dataclasses.replace(
    TWO_EPOCHS,
    data=dataclasses.replace(TWO_EPOCHS.data, validation_range=(10, 11)),
    phase1=dataclasses.replace(TWO_EPOCHS.phase1, min_iterations=1, max_iterations=2),
    phase2=dataclasses.replace(TWO_EPOCHS.phase2, max_epochs=1),
)
# Two points that differ in Phase 2 alone, and one with another Phase 1.
POINTS = [SMALL, changed(SMALL, {"phase2_learning_rate": 0.01}), changed(SMALL, {"diversity_algorithm": "ODCM"})]


def phase1_name(point: Settings) -> str:
    return phase1_folder_name(point.data, point.model, point.phase1, point.run)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def must_not_run(*arguments: Any, **options: Any) -> None:
    raise AssertionError("computed again")


def counted_runs(patch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list[Path]:
    """The run folders that `run_experiment` is called with from now on; one call is interrupted instead of run."""
    calls: list[Path] = []
    real = series_module.run_experiment

    def counting(*arguments: Any, **options: Any) -> Record:
        calls.append(arguments[4])
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    patch.setattr(series_module, "run_experiment", counting)
    return calls


def forbid_training(patch: pytest.MonkeyPatch) -> None:
    for name in ("train_phase1", "train_phase2"):
        patch.setattr(experiment_module, name, must_not_run)


def difference(one: Settings, other: Settings) -> list[str]:
    """The `section.field` names in which two points differ."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in vars(one))
    return [f"{section}.{name}" for section, a, b in pairs for name in vars(a) if getattr(a, name) != getattr(b, name)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Folders:
    """The folders of the list of POINTS, run without interruption. Tests only read them."""
    folders = folders_in(tmp_path_factory.mktemp("complete"), data_dir)
    Series(POINTS, folders).run()
    return folders


@pytest.fixture
def folders(tmp_path: Path, data_dir: Path) -> Folders:
    return folders_in(tmp_path, data_dir)


def folders_in(root: Path, data_dir: Path) -> Folders:
    return Folders(root / "experiments", root / "phase1", root / "reference", data_dir)


@pytest.fixture
def _registry_as_before() -> Iterator[None]:
    kept = [(table, dict(table)) for table in (DIVERSITY_ALGORITHMS, ALGORITHM_DESCRIPTIONS)]
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


def record_of(folders: Folders, point: Settings) -> Record:
    return read_json(folders.experiments / run_folder_name(point) / "run.json")


# --- which points ---------------------------------------------------------------------------------------------------

distinct_values = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True).map(sorted)


@given(distinct_values, distinct_values, distinct_values)
@hypothesis_settings(deadline=None, max_examples=40)
def test_a_grid_has_every_combination_once_and_its_first_axis_changes_slowest(
    samples: list[int], widths: list[int], seeds: list[int]
) -> None:
    points = grid(SMALL, {"num_samples": samples, "context_dim": widths, "seed": seeds})
    values = [(point.data.num_samples, point.model.context_dim, point.run.seed) for point in points]
    # Of ascending values, "first axis slowest" is the lexicographic order.
    assert values == sorted(set(values))
    assert len(values) == len(samples) * len(widths) * len(seeds)
    assert [set(axis) for axis in zip(*values)] == [set(samples), set(widths), set(seeds)]
    varied = {"data.num_samples", "model.context_dim", "run.seed"}
    assert all(set(difference(SMALL, point)) <= varied for point in points)


def test_values_keep_the_order_in_which_they_are_given() -> None:
    points = grid(SMALL, {"diversity_algorithm": ["ODCM", "MCDL"], "seed": [9, 3]})
    given_order = [("ODCM", 9), ("ODCM", 3), ("MCDL", 9), ("MCDL", 3)]
    assert [(point.phase1.diversity_algorithm, point.run.seed) for point in points] == given_order


def test_repeated_values_give_no_second_point() -> None:
    # 1 and 1.0 are the same configuration.
    assert len(grid(SMALL, {"dist_reg_weight": [1, 0.5, 1.0], "seed": [3, 3]})) == 2
    assert Series([SMALL, POINTS[1], SMALL]).points == POINTS[:2]


def test_a_grid_without_axes_is_its_base() -> None:
    assert grid(SMALL, {}) == [SMALL] == one_axis_at_a_time(SMALL, {})


@given(distinct_values, distinct_values, distinct_values)
@hypothesis_settings(deadline=None, max_examples=40)
def test_one_axis_at_a_time_starts_with_the_centre_and_changes_one_parameter(
    samples: list[int], widths: list[int], seeds: list[int]
) -> None:
    centre, *others = one_axis_at_a_time(SMALL, {"num_samples": samples, "context_dim": widths, "seed": seeds})
    assert centre == SMALL
    changes = [difference(SMALL, point) for point in others]
    assert all(len(changed) == 1 for changed in changes)
    # The axes come one after the other, and the centre's own values are not points of their own.
    assert [name for name, _ in itertools.groupby(itertools.chain(*changes))] == [
        name
        for name, values, own in (
            ("data.num_samples", samples, SMALL.data.num_samples),
            ("model.context_dim", widths, SMALL.model.context_dim),
            ("run.seed", seeds, SMALL.run.seed),
        )
        if set(values) - {own}
    ]
    assert {point.data.num_samples for point in [centre, *others]} == {SMALL.data.num_samples, *samples}
    assert {point.model.context_dim for point in [centre, *others]} == {SMALL.model.context_dim, *widths}
    assert {point.run.seed for point in [centre, *others]} == {SMALL.run.seed, *seeds}


Lister = Callable[[Settings, dict[str, Any]], list[Settings]]
both_lists = pytest.mark.parametrize("make", [grid, one_axis_at_a_time])


@both_lists
def test_an_unknown_axis_names_the_nearest_known_ones(make: Lister) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'num_sample'\. Did you mean 'num_samples'\?"):
        make(SMALL, {"num_sample": [1]})
    shared = "unknown parameter 'learning_rate'. Did you mean 'phase1_learning_rate' or 'phase2_learning_rate'?"
    with pytest.raises(ConfigError) as refusal:
        make(SMALL, {"learning_rate": [0.1]})
    assert str(refusal.value).startswith(shared)


@both_lists
@pytest.mark.parametrize("values", [[], (), "ODCM", "", 5, None])
def test_an_axis_without_values_and_text_for_a_list_are_refused(make: Lister, values: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(SMALL, {"seed": [1], "diversity_algorithm": values})
    expected = f"axis 'diversity_algorithm': expected a list with at least one value, given {values!r}"
    assert str(refusal.value) == expected


@both_lists
def test_an_impossible_value_is_refused_when_the_list_is_made(make: Lister) -> None:
    with pytest.raises(ConfigError, match="Phase1Config.dist_reg_weight: expected at most 1, given 1.5"):
        make(SMALL, {"dist_reg_weight": [0.5, 1.5]})


# --- refused before anything is trained -----------------------------------------------------------------------------


def test_more_samples_than_the_corpus_has_is_refused_before_anything_is_trained(folders: Folders) -> None:
    series = Series(grid(SMALL, {"num_samples": [2, 100_000]}), folders)
    with pytest.raises(DataError, match=r"100000 training samples asked for, \d{4} exist"):
        series.run()
    assert not folders.experiments.exists() and not folders.phase1.exists()


def test_an_unknown_algorithm_is_refused_before_anything_is_trained(folders: Folders) -> None:
    series = Series(grid(SMALL, {"diversity_algorithm": ["MCDL", "mcdl"]}), folders)
    for refused in (series.run, series.estimate):
        with pytest.raises(ValueError, match="unknown diversity algorithm 'mcdl'; known: MCDL, ODCM, PR, SIGReg"):
            refused()
    assert not folders.experiments.exists() and not folders.phase1.exists()


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_list_gives_one_record_a_point_in_order(complete: Folders) -> None:
    records = Series(POINTS, complete).run()
    assert [settings_of(record) for record in records] == POINTS
    assert records[0]["phase2"]["epochs"] != records[1]["phase2"]["epochs"]
    assert records[0]["phase1"]["spectrum"] != records[2]["phase1"]["spectrum"]


def equals_the_uninterrupted_list(records: list[Record], complete: Folders) -> bool:
    return [figures_of(record) for record in records] == [figures_of(record_of(complete, point)) for point in POINTS]


def test_a_list_interrupted_in_its_third_point_goes_on_with_it_and_equals_an_uninterrupted_one(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = Series(POINTS, folders)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted_runs(patch, interrupt_at=3)
        series.run()
    assert [series.finished_record(point) is None for point in POINTS] == [False, False, True]
    calls = counted_runs(monkeypatch)
    records = series.run()
    assert [folder.name for folder in calls] == [run_folder_name(POINTS[2])]
    assert equals_the_uninterrupted_list(records, complete)


def test_a_list_stopped_after_two_points_goes_on_with_the_third_and_equals_an_uninterrupted_one(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first point and Phase 1 are there: a point that is found counts like one that is run.
    name = run_folder_name(POINTS[0])
    shutil.copytree(complete.experiments / name, folders.experiments / name)
    series = Series(POINTS, dataclasses.replace(folders, phase1=complete.phase1))
    done: list[int] = []

    def stop(finished: int) -> bool:
        done.append(finished)
        return finished == 2

    assert len(series.run(stop)) == 2 and done == [1, 2]
    assert names_in(folders.experiments) == {run_folder_name(point) for point in POINTS[:2]}
    calls = counted_runs(monkeypatch)
    records = series.run()
    assert [folder.name for folder in calls] == [run_folder_name(POINTS[2])]
    assert equals_the_uninterrupted_list(records, complete)


def test_a_finished_point_is_not_computed_again(complete: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_training(monkeypatch)
    assert counted_runs(monkeypatch, interrupt_at=1) == []
    # Another list with the same points, in another order.
    records = Series(POINTS[::-1], complete).run()
    assert records == [record_of(complete, point) for point in POINTS[::-1]]


def test_points_that_differ_in_phase2_alone_share_phase1(complete: Folders) -> None:
    assert phase1_name(POINTS[0]) == phase1_name(POINTS[1]) != phase1_name(POINTS[2])
    assert names_in(complete.phase1) == {phase1_name(POINTS[0]), phase1_name(POINTS[2])}
    first, second, _ = (record_of(complete, point) for point in POINTS)
    # With its seconds: the second point read what the first had written.
    assert first["phase1"] == second["phase1"]


# --- committed records ----------------------------------------------------------------------------------------------


def test_a_committed_record_counts_as_finished(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = record_of(complete, SMALL)
    write_json(folders.reference / f"{run_folder_name(SMALL)}.json", committed)
    forbid_training(monkeypatch)
    assert Series([SMALL], folders).run() == [committed]
    assert not folders.experiments.exists() and not folders.phase1.exists()


def test_a_points_own_record_is_preferred_to_a_committed_one(complete: Folders, folders: Folders) -> None:
    own = record_of(complete, SMALL)
    write_json(folders.reference / f"{run_folder_name(SMALL)}.json", {**own, "seconds": -1.0})
    both = dataclasses.replace(complete, reference=folders.reference)
    assert Series([SMALL], both).finished_record(SMALL) == own


def test_a_committed_record_of_another_configuration_is_refused(complete: Folders, folders: Folders) -> None:
    record = record_of(complete, SMALL)
    record["config"]["phase2"]["max_epochs"] = 9
    path = folders.reference / f"{run_folder_name(SMALL)}.json"
    write_json(path, record)
    with pytest.raises(RunError, match="phase2.max_epochs = 9, asked for 1") as refusal:
        Series([SMALL], folders).run()
    # The file, not the folder that holds every committed record: the message advises to delete it.
    assert str(refusal.value).startswith(str(path))


def test_a_damaged_record_is_refused(folders: Folders) -> None:
    path = folders.experiments / run_folder_name(SMALL) / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"config": ')
    with pytest.raises(RunError, match="run.json: expected JSON"):
        Series([SMALL], folders).finished_record(SMALL)


# --- Phase 1 alone --------------------------------------------------------------------------------------------------


def test_phase1_only_records_have_no_phase2_and_are_found_again(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = dataclasses.replace(folders, phase1=complete.phase1)
    points = [POINTS[0], POINTS[2]]
    with monkeypatch.context() as patch:
        forbid_training(patch)  # Phase 1 of these points is there
        records = Series(points, shared, phase1_only=True).run()
    assert [set(record["config"]) for record in records] == 2 * [{"data", "model", "phase1", "run"}]
    for record, point in zip(records, points):
        assert "phase2" not in record
        assert record["phase1"] == record_of(complete, point)["phase1"]
    assert names_in(folders.experiments) == {phase1_name(point) for point in points}
    monkeypatch.setattr(series_module, "run_phase1", must_not_run)
    assert Series(points, shared, phase1_only=True).run() == json.loads(json.dumps(records))


def test_without_phase2_points_that_differ_in_it_alone_are_one() -> None:
    assert Series(POINTS, phase1_only=True).points == [POINTS[0], POINTS[2]]
    assert Series(POINTS).points == POINTS


def test_a_width_that_the_embeddings_do_not_have_is_refused_before_anything_is_trained(folders: Folders) -> None:
    wrong = changed(SMALL, {"embeddings": "whisper-tiny.en"})
    with pytest.raises(DataError, match="384"):
        Series([SMALL, wrong], folders).run()
    assert not folders.phase1.exists()


def test_a_list_that_takes_longer_than_accepted_is_refused_with_its_hours(folders: Folders) -> None:
    series = Series([SMALL], folders)
    with pytest.raises(SeriesError, match=r"1 points, 0 finished; the others at most about .*Accepted are 0 hours"):
        series.refuse_more_hours_than(0)
    series.refuse_more_hours_than(100)


def test_comparison_points_pair_every_configuration_with_every_seed() -> None:
    axes = {"diversity_algorithm": ["MCDL", "ODCM"], "context_dim": [], "dist_reg_weight": [0.5]}
    star, full = (comparison_points(SMALL, axes, [1, 2], full_grid=whole) for whole in (False, True))
    assert [(p.phase1.diversity_algorithm, p.phase1.dist_reg_weight, p.run.seed) for p in star] == [
        ("MCDL", 0.9, 1), ("MCDL", 0.9, 2), ("ODCM", 0.9, 1), ("ODCM", 0.9, 2), ("MCDL", 0.5, 1), ("MCDL", 0.5, 2),
    ]  # fmt: skip
    assert [(p.phase1.diversity_algorithm, p.phase1.dist_reg_weight) for p in full[::2]] == [
        ("MCDL", 0.5), ("ODCM", 0.5),
    ]  # fmt: skip


def test_a_phase1_only_record_does_not_finish_the_whole_point(complete: Folders, folders: Folders) -> None:
    point = POINTS[2]
    alone = Series([point], dataclasses.replace(folders, phase1=complete.phase1), phase1_only=True)
    alone.run()
    assert alone.finished_record(point) is not None
    assert Series([point], folders).finished_record(point) is None
    assert Series([point], complete, phase1_only=True).finished_record(point) is None


# --- estimate -------------------------------------------------------------------------------------------------------


def test_the_estimate_counts_finished_points_and_falls_to_all_finished(
    complete: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    before = names_in(complete.experiments), names_in(complete.phase1)
    partly = Series([*POINTS, changed(SMALL, {"seed": 7}), changed(SMALL, {"seed": 8})], complete).estimate()
    assert (partly.num_points, partly.num_finished) == (5, 3)
    assert 0 < partly.longest_hours < math.inf and partly.memory_gb > 0
    assert str(partly).startswith("5 points, 3 finished; the others at most about ")
    finished = Series(POINTS, complete).estimate()
    assert (finished.num_points, finished.num_finished, finished.longest_hours) == (3, 3, 0)
    assert str(finished) == "3 points, all finished"
    assert (names_in(complete.experiments), names_in(complete.phase1)) == before


def test_an_estimate_of_phase1_alone_is_lower_and_points_alike_cost_alike(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Estimate(seconds_per_iteration=60, max_iterations=2, seconds_per_epoch=120, max_epochs=1, memory_gb=0.5)
    monkeypatch.setattr(series_module, "estimate", lambda prepared, point: timed)
    points = grid(SMALL, {"seed": [1, 2, 3]})
    whole, alone = (Series(points, folders, phase1_only=only).estimate() for only in (False, True))
    assert whole.longest_hours == pytest.approx(3 * (2 + 2) / 60)
    assert alone.longest_hours == pytest.approx(3 * 2 / 60)
    assert whole.memory_gb == alone.memory_gb == 0.5


# --- a loss of one's own --------------------------------------------------------------------------------------------


def spread(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.var(dim=0).mean()


def spread_otherwise(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.std(dim=0).mean()


@pytest.mark.usefixtures("_registry_as_before")
def test_a_changed_source_of_a_registered_loss_refuses_the_old_folders(folders: Folders) -> None:
    register_diversity_loss("spread", "variance", spread)
    series = Series([changed(SMALL, {"diversity_algorithm": "spread"})], folders)
    records = series.run()
    register_diversity_loss("spread", "standard deviation", spread_otherwise)
    with pytest.raises(RunError, match="user_loss.source_sha256 = "):
        series.run()
    # Phase 1 alone is refused too.
    without_record = Series(series.points, dataclasses.replace(folders, experiments=folders.experiments / "other"))
    with pytest.raises(RunError, match="user_loss.source_sha256 = ") as refusal:
        without_record.run()
    assert str(refusal.value).startswith(str(folders.phase1))
    register_diversity_loss("spread", "variance", spread)
    assert figures_of(series.run()) == figures_of(records)
