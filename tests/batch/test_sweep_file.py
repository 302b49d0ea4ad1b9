"""Sweeps as files: what they describe, what is refused; run on two workers, and again."""

import dataclasses
from pathlib import Path

import pytest
from test_experiment import SMALL

from newllm_core.__main__ import main
from newllm_core.batch.local_engine import LocalEngine
from newllm_core.batch.sweep_file import SweepFile, load_sweep
from newllm_core.batch.sweeps import run_sweep, summarise
from newllm_core.batch.tasks import count_line, times_finished
from newllm_core.config.schema import ConfigError
from newllm_core.runs.files import PROJECT_ROOT
from newllm_core.runs.identity import figures_of
from newllm_core.studies.runners import ExperimentRunner, Folders, RowRunner
from newllm_core.studies.sweep import Sweep, grid


def written(folder: Path, content: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content)
    return path


def test_a_file_gives_base_axes_and_seeds(tmp_path: Path) -> None:
    file = load_sweep(
        written(
            tmp_path,
            "profile: notebooks/profiles/cpu.yaml\nparameters: {num_threads: 1}\nseeds: [42, 43]\n"
            "axes: {diversity_algorithm: [MCDL, ODCM], dist_reg_weight: [0.5, 1]}\n",
        )
    )
    points = file.sweep.points
    assert (file.name, file.runs, len(points)) == ("mine", "experiments", 8)
    assert points[0].settings.data.num_samples == 80 and points[0].settings.run.num_threads == 1
    values = [(p.settings.phase1.diversity_algorithm, p.settings.phase1.dist_reg_weight) for p in points[::2]]
    assert values == [("MCDL", 0.5), ("MCDL", 1.0), ("ODCM", 0.5), ("ODCM", 1.0)]
    star = written(tmp_path, "design: one-at-a-time\nseeds: [1]\naxes: {context_dim: [64, 65]}")
    assert [point.variant.name for point in load_sweep(star).sweep.points] == [
        "base",
        "context_dim = 64",
        "context_dim = 65",
    ]


@pytest.mark.parametrize(
    "profile", sorted((PROJECT_ROOT / "notebooks" / "profiles").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_profile_is_a_base(profile: Path, tmp_path: Path) -> None:
    runs = "images" if profile.stem.startswith("nkat") else "phase1"
    file = load_sweep(written(tmp_path, f"runs: {runs}\nprofile: {profile}\nseeds: [1]\n"))
    assert len(file.sweep.points) == 1 and file.sweep.points[0].settings.run.seed == 1


def test_a_leaderboard_has_variants(tmp_path: Path) -> None:
    file = load_sweep(written(tmp_path, "runs: leaderboard\nvariants: [trained, gru, unigram]\nseeds: [1, 2]\n"))
    assert isinstance(file.sweep.runner, RowRunner)
    assert [point.variant.name for point in file.sweep.points] == ["trained", "trained", "gru", "gru", "unigram"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("axis: {context_dim: [1]}\nseeds: [1]", "unknown key of a sweep 'axis'. Did you mean 'axes'?"),
        ("axes: {context_dims: [1]}\nseeds: [1]", "unknown parameter 'context_dims'. Did you mean 'context_dim'?"),
        ("axes: {context_dim: [wide]}\nseeds: [1]", "ModelConfig.context_dim: expected int, given 'wide'"),
        ("axes: {context_dim: 5}\nseeds: [1]", "axis 'context_dim': expected a list with at least one value"),
        ("axes: [context_dim]\nseeds: [1]", "axes: expected lines of the form name: value, given ['context_dim']"),
        ("parameters: {num_sample: 1}\nseeds: [1]", "Did you mean 'num_samples'?"),
        ("profile: none.yaml\nseeds: [1]", "none.yaml: no such file"),
        ("profile: [a]\nseeds: [1]", "profile: expected a path, given ['a']"),
        ("runs: experiment\nseeds: [1]", "runs: expected one of experiments, phase1, leaderboard, images"),
        ("design: star\nseeds: [1]", "design: expected one of grid, one-at-a-time, given 'star'"),
        ("variants: [gru]\nseeds: [1]", "variants: expected in a leaderboard"),
        ("runs: leaderboard\nseeds: [1]", "expected variants, names of"),
        ("runs: leaderboard\nvariants: [grou]\nseeds: [1]", "unknown variant 'grou'. Did you mean 'gru'?"),
        ("axes: {context_dim: [8]}", "seeds: expected at least one, given none"),
        ("seeds: [one]", "RunConfig.seed: expected int, given 'one'"),
        ("- 1", "expected lines of the form name: value with runs, profile"),
    ],
)
def test_what_a_file_cannot_say_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content + "\n")
    with pytest.raises(ConfigError) as refusal:
        load_sweep(path)
    assert str(refusal.value).startswith(f"{path}: ") and message in str(refusal.value)


def test_a_wrong_file_ends_the_command_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(written(tmp_path, "seed: [1]\n"))])
    assert ended.value.code == 2
    assert "unknown key of a sweep 'seed'. Did you mean 'seeds'?" in capsys.readouterr().err


def test_two_workers_give_the_records_of_one_process_and_skip_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    short = dataclasses.replace(SMALL.phase1, min_iterations=1, max_iterations=1, validation_passes=2)

    def sweep(root: Path) -> Sweep:
        folders = Folders(root / "experiments", root / "phase1", root / "reference", tmp_path / "data")
        base = dataclasses.replace(SMALL, phase1=short)
        return Sweep(base, grid({"dist_reg_weight": [0.5, 0.9]}), [1], ExperimentRunner(folders, phase1_only=True))

    expected = sweep(tmp_path / "one").run()
    mine, folder = sweep(tmp_path / "two"), tmp_path / "sweep"
    outcomes = run_sweep(mine, LocalEngine(workers=2), folder)
    assert count_line(outcomes) == "2 finished, 0 skipped, 0 failed"
    assert figures_of(mine.finished()) == figures_of(expected)
    assert [times_finished(one.log) for one in outcomes] == [1, 1] and outcomes[0].log != outcomes[1].log
    assert "Phase 1" in outcomes[0].log.read_text(), "the bar of its training"
    assert "[2/2] dist_reg_weight = " in capsys.readouterr().out
    assert count_line(run_sweep(mine, LocalEngine(), folder)) == "0 finished, 2 skipped, 0 failed"
    assert "w = 0.5" in summarise(SweepFile("mine", "phase1", mine), folder)
    next((tmp_path / "two" / "experiments").rglob("run.json")).write_text("damaged")
    told = summarise(SweepFile("mine", "phase1", mine), folder)
    assert told.count(" is left out: ") == 1
    assert {path.name for path in folder.glob("*.*")} == {"runs.csv", "summary.csv", "summary.png", "summary.svg"}
