"""Sweeps of experiments, on real text at a small size: their points, early refusals, going on where one stopped."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_experiment import SMALL as TWO_EPOCHS

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError
from newllm_core.experiment import run as experiment_module
from newllm_core.experiment.estimate import RunEstimate
from newllm_core.experiment.folder_names import phase1_folder_name, run_folder_name, settings_of
from newllm_core.experiment.run import PHASE2_CHECKPOINT
from newllm_core.losses import ALGORITHM_DESCRIPTIONS, DIVERSITY_ALGORITHMS, register_diversity_loss
from newllm_core.runs.files import RunError, read_json, write_json, write_text
from newllm_core.runs.identity import figures_of
from newllm_core.studies import runners as runners_module
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Cost, Record, Sweep, SweepError, Variant, grid, one_axis_at_a_time

# The experiment of test_experiment, shortened.
SMALL = dataclasses.replace(
    TWO_EPOCHS,
    data=dataclasses.replace(TWO_EPOCHS.data, validation_range=(10, 11)),
    phase1=dataclasses.replace(TWO_EPOCHS.phase1, min_iterations=1, max_iterations=2),
    phase2=dataclasses.replace(TWO_EPOCHS.phase2, max_epochs=1),
)
# Two that differ in Phase 2 alone, and one with another Phase 1.
THREE = [
    Variant("base", "the base"),
    Variant("faster", "a higher learning rate", {"phase2_learning_rate": 0.01}),
    Variant("ODCM", "another loss", {"diversity_algorithm": "ODCM"}),
]
POINTS = [variant.settings(SMALL) for variant in THREE]
SEED = SMALL.run.seed


def sweep_of(
    variants: Sequence[Variant] = THREE, folders: Folders | None = None, seeds: Sequence[int] = (SEED,), *,
    phase1_only: bool = False,
) -> Sweep:  # fmt: skip
    return Sweep(SMALL, variants, seeds, ExperimentRunner(folders or Folders(), phase1_only))


def settings_in(sweep: Sweep) -> list[Settings]:
    return [point.settings for point in sweep.points]


def plain(records: Sequence[Record | None]) -> list[Record]:
    """As they lie in their folders."""
    return [{key: value for key, value in record.items() if key != "variant"} for record in records if record]


def phase1_name(point: Settings) -> str:
    return phase1_folder_name(point.data, point.model, point.phase1, point.run)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def must_not_run(*arguments: Any, **options: Any) -> None:
    raise AssertionError("computed again")


def counted_runs(patch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list[Path]:
    """The run folders that `run_experiment` is called with from now on; one call is interrupted instead of run."""
    calls: list[Path] = []
    real = runners_module.run_experiment

    def counting(*arguments: Any, **options: Any) -> Record:
        calls.append(arguments[4])
        if len(calls) == interrupt_at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    patch.setattr(runners_module, "run_experiment", counting)
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
    """The folders of a sweep of THREE, run without interruption. Tests only read them."""
    folders = folders_in(tmp_path_factory.mktemp("complete"), data_dir)
    sweep_of(folders=folders).run()
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

distinct_values = st.lists(st.integers(2, 50), min_size=1, max_size=4, unique=True).map(sorted)


@given(distinct_values, distinct_values, distinct_values)
@hypothesis_settings(deadline=None, max_examples=40)
def test_a_grid_has_every_combination_once_and_its_first_axis_changes_slowest(
    samples: list[int], widths: list[int], seeds: list[int]
) -> None:
    variants = grid({"num_samples": samples, "context_dim": widths})
    points = settings_in(sweep_of(variants, seeds=seeds))
    values = [(point.data.num_samples, point.model.context_dim, point.run.seed) for point in points]
    # Of ascending values, "first axis slowest" is the lexicographic order.
    assert values == sorted(set(values))
    assert len(values) == len(samples) * len(widths) * len(seeds)
    assert [set(axis) for axis in zip(*values)] == [set(samples), set(widths), set(seeds)]
    varied = {"data.num_samples", "model.context_dim", "run.seed"}
    assert all(set(difference(SMALL, point)) <= varied for point in points)


def test_values_keep_the_order_in_which_they_are_given() -> None:
    points = settings_in(sweep_of(grid({"diversity_algorithm": ["ODCM", "MCDL"]}), seeds=[9, 3]))
    given_order = [("ODCM", 9), ("ODCM", 3), ("MCDL", 9), ("MCDL", 3)]
    assert [(point.phase1.diversity_algorithm, point.run.seed) for point in points] == given_order


def test_repeated_values_give_no_second_point() -> None:
    # 1 and 1.0 are the same configuration.
    assert len(sweep_of(grid({"dist_reg_weight": [1, 0.5, 1.0, 1]}), seeds=[3, 3]).points) == 2
    same = Variant("same", "the base again", {"max_epochs": SMALL.phase2.max_epochs})
    assert settings_in(sweep_of([THREE[0], THREE[1], same])) == POINTS[:2]


def test_a_grid_without_axes_is_its_base() -> None:
    assert [variant.settings(SMALL) for variant in (*grid({}), *one_axis_at_a_time({}))] == [SMALL, SMALL]


def test_variants_are_named_by_their_values() -> None:
    names = [variant.name for variant in one_axis_at_a_time({"seed": [1], "context_dim": [5, 6]})]
    assert names == ["base", "seed = 1", "context_dim = 5", "context_dim = 6"]
    assert grid({"seed": [1], "context_dim": [5]})[0].label == "seed = 1, context_dim = 5"


@given(distinct_values, distinct_values, distinct_values)
@hypothesis_settings(deadline=None, max_examples=40)
def test_one_axis_at_a_time_starts_with_the_centre_and_changes_one_parameter(
    samples: list[int], widths: list[int], seeds: list[int]
) -> None:
    axes = {"num_samples": samples, "context_dim": widths, "phase1_patience": seeds}
    centre, *others = dict.fromkeys(variant.settings(SMALL) for variant in one_axis_at_a_time(axes))
    assert centre == SMALL
    changes = [difference(SMALL, point) for point in others]
    assert all(len(changed) == 1 for changed in changes)
    # The axes come one after the other, and the centre's own values are not points of their own.
    assert [name for name, _ in itertools.groupby(itertools.chain(*changes))] == [
        name
        for name, values, own in (
            ("data.num_samples", samples, SMALL.data.num_samples),
            ("model.context_dim", widths, SMALL.model.context_dim),
            ("phase1.patience", seeds, SMALL.phase1.patience),
        )
        if set(values) - {own}
    ]
    assert {point.data.num_samples for point in [centre, *others]} == {SMALL.data.num_samples, *samples}
    assert {point.model.context_dim for point in [centre, *others]} == {SMALL.model.context_dim, *widths}
    assert {point.phase1.patience for point in [centre, *others]} == {SMALL.phase1.patience, *seeds}


Lister = Callable[[dict[str, Any]], list[Variant]]
both_lists = pytest.mark.parametrize("make", [grid, one_axis_at_a_time])


@both_lists
def test_an_unknown_axis_names_the_nearest_known_ones(make: Lister) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'num_sample'\. Did you mean 'num_samples'\?"):
        sweep_of(make({"num_sample": [1]}))
    shared = "unknown parameter 'learning_rate'. Did you mean 'phase1_learning_rate' or 'phase2_learning_rate'?"
    with pytest.raises(ConfigError) as refusal:
        sweep_of(make({"learning_rate": [0.1]}))
    assert str(refusal.value).startswith(shared)


@both_lists
@pytest.mark.parametrize("values", [[], (), "ODCM", "", 5, None])
def test_an_axis_without_values_and_text_for_a_list_are_refused(make: Lister, values: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        make({"context_dim": [1], "diversity_algorithm": values})
    expected = f"axis 'diversity_algorithm': expected a list with at least one value, given {values!r}"
    assert str(refusal.value) == expected


@both_lists
def test_an_impossible_value_is_refused_when_the_list_is_made(make: Lister) -> None:
    with pytest.raises(ConfigError, match="Phase1Config.dist_reg_weight: expected at most 1, given 1.5"):
        sweep_of(make({"dist_reg_weight": [0.5, 1.5]}))


@pytest.mark.parametrize("variants", [[], [THREE[0], THREE[0]]], ids=["none", "twice"])
def test_no_variant_and_two_of_one_name_are_refused(variants: list[Variant]) -> None:
    with pytest.raises(ConfigError, match="at least one and each name once, given (none|base, base)"):
        sweep_of(variants)
    with pytest.raises(ConfigError, match="seeds: expected at least one"):
        sweep_of(seeds=[])


# --- refused before anything is trained -----------------------------------------------------------------------------


def test_more_samples_than_the_corpus_has_is_refused_before_anything_is_trained(folders: Folders) -> None:
    sweep = sweep_of(grid({"num_samples": [2, 100_000]}), folders)
    with pytest.raises(DataError, match=r"100000 training samples asked for, \d+ exist"):
        sweep.run()
    assert not folders.experiments.exists() and not folders.phase1.exists()


def test_a_text_too_short_for_the_last_variant_is_refused_before_anything_is_trained(folders: Folders) -> None:
    many = {"objective": "contrastive", "prediction_streams": 100_000}
    with pytest.raises(DataError, match="2 for each of prediction_streams=100000"):
        sweep_of([THREE[0], Variant("many", "many streams", many)], folders).run()
    assert not folders.experiments.exists() and not folders.phase1.exists()


def test_an_unknown_algorithm_is_refused_before_anything_is_trained(folders: Folders) -> None:
    sweep = sweep_of(grid({"diversity_algorithm": ["MCDL", "mcdl"]}), folders)
    for refused in (sweep.run, sweep.estimate):
        with pytest.raises(ValueError, match="unknown diversity algorithm 'mcdl'; known: MCDL, ODCM, PR, SIGReg"):
            refused()
    assert not folders.experiments.exists() and not folders.phase1.exists()


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_sweep_gives_one_record_a_point_in_order(complete: Folders) -> None:
    records = sweep_of(folders=complete).run()
    assert [settings_of(record) for record in records] == POINTS
    assert [record["variant"] for record in records] == [variant.record() for variant in THREE]
    assert records[0]["phase2"]["epochs"] != records[1]["phase2"]["epochs"]
    assert records[0]["phase1"]["spectrum"] != records[2]["phase1"]["spectrum"]


def equals_the_uninterrupted_sweep(records: list[Record], complete: Folders) -> bool:
    return [figures_of(record) for record in plain(records)] == [
        figures_of(record_of(complete, point)) for point in POINTS
    ]


def test_a_sweep_interrupted_in_its_third_point_goes_on_with_it_and_equals_an_uninterrupted_one(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(folders=folders)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted_runs(patch, interrupt_at=3)
        sweep.run()
    assert [record is None for record in sweep.finished()] == [False, False, True]
    calls = counted_runs(monkeypatch)
    records = sweep.run()
    assert [folder.name for folder in calls] == [run_folder_name(POINTS[2])]
    assert equals_the_uninterrupted_sweep(records, complete)


def test_a_finished_point_is_not_computed_again(complete: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_training(monkeypatch)
    assert counted_runs(monkeypatch, interrupt_at=1) == []
    # Another sweep with the same points, in another order.
    records = sweep_of(THREE[::-1], complete).run()
    assert plain(records) == [record_of(complete, point) for point in POINTS[::-1]]


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
    assert plain(sweep_of(THREE[:1], folders).run()) == [committed]
    assert not folders.experiments.exists() and not folders.phase1.exists()


def test_a_points_own_record_is_preferred_to_a_committed_one(complete: Folders, folders: Folders) -> None:
    own = record_of(complete, SMALL)
    write_json(folders.reference / f"{run_folder_name(SMALL)}.json", {**own, "seconds": -1.0})
    both = dataclasses.replace(complete, reference=folders.reference)
    assert plain(sweep_of(THREE[:1], both).finished()) == [own]


def test_a_committed_record_leaves_the_checkpoint_of_an_own_run_alone(complete: Folders, folders: Folders) -> None:
    """As of a notebook that makes it again, which may be at work now."""
    committed = folders.reference / f"{run_folder_name(SMALL)}.json"
    write_json(committed, record_of(complete, SMALL))
    place = folders.experiments / run_folder_name(SMALL) / PHASE2_CHECKPOINT
    for path in (place / "checkpoint-000001-00000000.json", committed.with_name(f".{committed.name}.lock")):
        write_text(path, "{}")
        assert sweep_of(THREE[:1], folders).finished() != [None] and path.exists()


def test_a_committed_record_of_another_configuration_is_refused(complete: Folders, folders: Folders) -> None:
    record = record_of(complete, SMALL)
    record["config"]["phase2"]["gradient_clip"] = 9.0
    path = folders.reference / f"{run_folder_name(SMALL)}.json"
    write_json(path, record)
    with pytest.raises(RunError, match="phase2.gradient_clip = 9.0, asked for 1.0") as refusal:
        sweep_of(THREE[:1], folders).run()
    # The file, not the folder that holds every committed record: the message advises to delete it.
    assert str(refusal.value).startswith(str(path))


def test_a_damaged_record_is_refused(folders: Folders) -> None:
    path = folders.experiments / run_folder_name(SMALL) / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"config": ')
    with pytest.raises(RunError, match="run.json: expected JSON"):
        sweep_of(THREE[:1], folders).finished()


# --- Phase 1 alone --------------------------------------------------------------------------------------------------


def test_phase1_only_records_have_no_phase2_and_are_found_again(
    complete: Folders, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = dataclasses.replace(folders, phase1=complete.phase1)
    points, two = [POINTS[0], POINTS[2]], [THREE[0], THREE[2]]
    with monkeypatch.context() as patch:
        forbid_training(patch)  # Phase 1 of these points is there
        records = sweep_of(two, shared, phase1_only=True).run()
    assert [set(record["config"]) for record in records] == 2 * [{"data", "model", "phase1", "run"}]
    for record, point in zip(records, points):
        assert "phase2" not in record
        assert record["phase1"] == record_of(complete, point)["phase1"]
    assert names_in(folders.experiments) == {phase1_name(point) for point in points}
    monkeypatch.setattr(runners_module, "run_phase1_only", must_not_run)
    assert sweep_of(two, shared, phase1_only=True).run() == json.loads(json.dumps(records))


def test_without_phase2_points_that_differ_in_it_alone_are_one() -> None:
    assert settings_in(sweep_of(phase1_only=True)) == [POINTS[0], POINTS[2]]
    assert settings_in(sweep_of()) == POINTS


def test_a_width_that_the_embeddings_do_not_have_is_refused_before_anything_is_trained(folders: Folders) -> None:
    wrong = Variant("wrong", "embeddings of another width", {"embeddings": "whisper-tiny.en"})
    with pytest.raises(DataError, match="384"):
        sweep_of([THREE[0], wrong], folders).run()
    assert not folders.phase1.exists()


def test_a_sweep_that_takes_longer_than_accepted_is_refused_with_its_hours(folders: Folders) -> None:
    sweep = sweep_of(THREE[:1], folders)
    with pytest.raises(SweepError, match=r"1 runs, 0 finished; the others at most about .*Accepted are 0 hours"):
        sweep.refuse_more_hours_than(0)
    sweep.refuse_more_hours_than(100)


def test_every_variant_is_paired_with_every_seed() -> None:
    axes = {"diversity_algorithm": ["MCDL", "ODCM"], "dist_reg_weight": [0.5]}
    star, full = (settings_in(sweep_of(make(axes), seeds=[1, 2])) for make in (one_axis_at_a_time, grid))
    assert [(p.phase1.diversity_algorithm, p.phase1.dist_reg_weight, p.run.seed) for p in star] == [
        ("MCDL", 0.9, 1), ("MCDL", 0.9, 2), ("ODCM", 0.9, 1), ("ODCM", 0.9, 2), ("MCDL", 0.5, 1), ("MCDL", 0.5, 2),
    ]  # fmt: skip
    assert [(p.phase1.diversity_algorithm, p.phase1.dist_reg_weight) for p in full[::2]] == [
        ("MCDL", 0.5), ("ODCM", 0.5),
    ]  # fmt: skip


def test_a_phase1_only_record_does_not_finish_the_whole_point(complete: Folders, folders: Folders) -> None:
    alone = sweep_of(THREE[2:], dataclasses.replace(folders, phase1=complete.phase1), phase1_only=True)
    alone.run()
    assert None not in alone.finished()
    assert (
        sweep_of(THREE[2:], folders).finished() == sweep_of(THREE[2:], complete, phase1_only=True).finished() == [None]
    )


# --- estimate -------------------------------------------------------------------------------------------------------


def test_the_estimate_counts_finished_points_and_falls_to_all_finished(
    complete: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_training(monkeypatch)
    before = names_in(complete.experiments), names_in(complete.phase1)
    further = [Variant(f"C = {width}", "another width", {"context_dim": width}) for width in (7, 8)]
    partly = sweep_of([*THREE, *further], complete).estimate()
    assert (partly.num_runs, partly.num_finished) == (5, 3)
    assert 0 < partly.cost.seconds < math.inf and partly.cost.memory_gb is not None and partly.cost.memory_gb > 0
    assert str(partly).startswith("5 runs, 3 finished; the others at most about ") and str(partly).endswith(" GiB")
    whole = sweep_of(folders=complete).estimate()
    assert (whole.num_runs, whole.num_finished, whole.cost) == (3, 3, Cost(0.0))
    assert str(whole) == "3 runs, all finished"
    assert (names_in(complete.experiments), names_in(complete.phase1)) == before


def test_an_estimate_of_phase1_alone_is_lower_and_points_alike_cost_alike(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = RunEstimate(seconds_per_iteration=60, max_iterations=2, seconds_per_epoch=120, max_epochs=1, memory_gb=0.5)
    monkeypatch.setattr(runners_module, "estimate", lambda prepared, point: timed)
    whole, alone = (sweep_of(THREE[:1], folders, [1, 2, 3], phase1_only=only).estimate().cost for only in (False, True))
    assert whole == Cost(3 * 240.0, 0.5) and alone == Cost(3 * 120.0, 0.5)


# --- a loss of one's own --------------------------------------------------------------------------------------------


def spread(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.var(dim=0).mean()


def spread_otherwise(contexts: torch.Tensor) -> torch.Tensor:
    return -contexts.std(dim=0).mean()


@pytest.mark.usefixtures("_registry_as_before")
def test_a_changed_source_of_a_registered_loss_refuses_the_old_folders(folders: Folders) -> None:
    register_diversity_loss("spread", "variance", spread)
    mine = [Variant("spread", "a loss of one's own", {"diversity_algorithm": "spread"})]
    sweep = sweep_of(mine, folders)
    records = sweep.run()
    register_diversity_loss("spread", "standard deviation", spread_otherwise)
    with pytest.raises(RunError, match="user_loss.source_sha256 = "):
        sweep.run()
    # Phase 1 alone is refused too.
    without_record = sweep_of(mine, dataclasses.replace(folders, experiments=folders.experiments / "other"))
    with pytest.raises(RunError, match="user_loss.source_sha256 = ") as refusal:
        without_record.run()
    assert str(refusal.value).startswith(str(folders.phase1))
    register_diversity_loss("spread", "variance", spread)
    assert figures_of(sweep.run()) == figures_of(records)
