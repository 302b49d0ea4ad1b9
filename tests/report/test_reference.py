"""What notebooks open with, from the committed records; what the others show is held by their committed outputs."""

import pytest

from newllm_core.report import reference, show_reference
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.vision.report.reference import data_sets, longest_runs


def test_a_reference_says_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    best = reference.leaderboard()["best"].perplexity
    show_reference("phase2")
    assert f"all parts: perplexity {best.value:.0f} [" in capsys.readouterr().out
    found = reference.phase1()
    rank = read_json(REFERENCE_DIR / "runs/cpu.json")["phase1"]["effective_rank"]
    assert f"{100 * rank['validation'] / rank['context_dim']:.0f} % after" in found.lines[0]
    assert len(found.figure.axes) == 3


def test_of_each_data_set_the_longest_run_is_shown() -> None:
    records = longest_runs()
    assert {name: record["config"]["train"]["epochs"] for name, record in records.items()} == {
        "cifar10-jpeg": 8, "fashion-mnist": 6, "mnist-5k": 60
    }  # fmt: skip
    assert f"{100 * records['mnist-5k']['test']['accuracy']:.1f}" in data_sets().lines[2]


def test_an_unknown_reference_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of phase1, .*, given 'phase3'"):
        show_reference("phase3")
