"""A Phase 1 that rows have in common: trained once, and no figure of a row knows the difference."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import stop_after
from test_runners import SMALL, run_one, small

from newllm_core.config.hyperparameters import ModelConfig, Settings
from newllm_core.config.schema import changed
from newllm_core.experiment.phase1_cache import CONTEXT_WEIGHTS, PHASE1_RECORD
from newllm_core.model import NewLLM
from newllm_core.runs.files import RunError, read_json, write_json
from newllm_core.studies import rows as rows_module
from newllm_core.studies.rows import PHASE1_FOLDER
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Point, Record, Variant
from newllm_core.studies.variants import VARIANTS, LeaderboardVariant, variant

READ_IN_PHASE2: dict[str, Any] = {
    "tie_weights": False, "freeze_embedding": False, "context_routing": "final", "readout": "sum", "token_gate": True,
    "adapter_rank": 2, "logit_scale": 1.0,
}  # fmt: skip
READ_IN_PHASE1: dict[str, Any] = {
    "context_dim": 5, "num_layers": 2, "num_input_tokens": 2, "weight_std": 0.2, "bias_std": 0.1,
    "initial_exponent": -0.2, "token_input": "first-layer", "time_scales": True, "embed_dim": 6,
}  # fmt: skip


def figures(row: Record) -> Record:
    """Without what a clock says."""
    details = {name: value for name, value in row["details"].items() if name != "phase1_seconds"}
    return {**row, "details": details} | dict.fromkeys(("start", "seconds", "cpu_seconds", "commit"))


def test_every_field_of_the_model_is_read_in_one_phase() -> None:
    """A new field must say where it belongs, or two different Phase 1 would be taken for one."""
    assert {spec.name for spec in dataclasses.fields(ModelConfig)} == {*READ_IN_PHASE1, *READ_IN_PHASE2}
    plain = ModelConfig()
    assert all(
        dataclasses.replace(plain, **{name: READ_IN_PHASE1[name]}).phase1_part() != plain for name in READ_IN_PHASE1
    )


@pytest.mark.parametrize("name", READ_IN_PHASE2)
def test_what_phase_2_reads_leaves_the_context_block_as_it_is(name: str) -> None:
    plain = ModelConfig(context_dim=4, embed_dim=6)
    other_config = dataclasses.replace(plain, **{name: READ_IN_PHASE2[name]})
    assert other_config.phase1_part() == plain
    matrix = torch.randn(9, 6)
    one, other = (NewLLM(config, matrix).context_block.state_dict() for config in (plain, other_config))
    assert all(torch.equal(one[key], other[key]) for key in one)


# SIGReg draws random directions, and the readouts' weights take other amounts of random numbers.
DRAWING = dataclasses.replace(SMALL, phase1=dataclasses.replace(SMALL.phase1, diversity_algorithm="SIGReg"))


@pytest.mark.parametrize(
    ("first", "other", "base"),
    [("trained", "shuffled", SMALL), ("best-fixed-point", "best-adapter-fixed-point", DRAWING)],
    ids=["contexts", "readout"],
)
def test_rows_that_differ_in_phase_2_alone_share_phase_1_and_have_the_figures_of_their_own(
    first: str, other: str, base: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_point = {**variant("best-fixed-point").changes, "adapter_rank": 2}
    made_up = LeaderboardVariant("best-adapter-fixed-point", "made up for this test", fixed_point)
    monkeypatch.setitem(VARIANTS, made_up.name, made_up)
    data_dir = tmp_path / "data"
    alone = run_one(other, base, tmp_path / "alone", {}, data_dir)
    run_one(first, base, tmp_path / "rows", {}, data_dir)
    monkeypatch.setattr(rows_module, "train_phase1", None)  # would fail if it were trained again
    (kept,) = (tmp_path / "rows" / PHASE1_FOLDER).glob(f"*/{PHASE1_RECORD}")
    record = read_json(kept)
    write_json(kept, {**record, "cpu_seconds": 1000.0})
    shared = run_one(other, base, tmp_path / "rows", {}, data_dir)
    assert figures(shared) == figures(alone)
    assert shared["details"]["phase1_seconds"] == record["figures"]["phase1_seconds"]
    assert 900 < shared["cpu_seconds"] < 1100  # both phases are counted


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    run_one("untrained", SMALL, tmp_path / "rows", {}, data_dir)
    (weights,) = (tmp_path / "rows" / PHASE1_FOLDER).glob(f"*/{CONTEXT_WEIGHTS}")
    shutil.copy(weights.with_name("phase1.json"), weights)
    with pytest.raises(RunError, match="checksum"):
        run_one("last-token", SMALL, tmp_path / "rows", {}, data_dir)


def test_an_experiment_of_the_same_configuration_lends_a_row_no_copy_of_its_phase_1(tmp_path: Path) -> None:
    """A row draws other random directions, so the experiment's checkpoint would give it other figures."""
    copied, data_dir = changed(DRAWING, {"copy_to": str(tmp_path / "drive")}), tmp_path / "data"
    same = Point(Variant("same", "same"), small("trained").settings(copied))
    folders = Folders(tmp_path / "experiments", tmp_path / "phase1", tmp_path / "reference", data_dir)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 1", 2, patch)  # the copy of the first iteration is there
        ExperimentRunner(folders).run(same)
    alone = run_one("trained", DRAWING, tmp_path / "alone", {}, data_dir)
    assert figures(run_one("trained", copied, tmp_path / "rows", {}, data_dir)) == figures(alone)
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "drive").glob("*phase1-*")} == {"phase1", "row-phase1"}
