"""What notebooks open with, from the committed records; what the others show is held by their committed outputs."""

from typing import Any

import pytest

from newllm_core.report import reference, show_reference
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.vision.report.reference import committed_runs, data_sets, longest_runs, term, term_runs


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
        "cifar10-jpeg": 40, "fashion-mnist": 6, "mnist-5k": 60
    }  # fmt: skip
    assert f"{100 * records['mnist-5k']['test']['accuracy']:.1f}" in data_sets().lines[2]
    as_long = [one for one in committed_runs() if one["config"]["train"]["epochs"] == 40]
    chosen = records["cifar10-jpeg"]["selection"]["accuracy"]
    assert len(as_long) > 1 and chosen == max(one["selection"]["accuracy"] for one in as_long)


def test_runs_that_differ_in_the_term_alone_stand_together() -> None:
    run = longest_runs()["cifar10-jpeg"]
    made = [_with_term(run, kind, strength, seed) for seed in (1, 2) for kind, strength in
            (("literal", 0.05), ("key_bias", 0.0024), ("off", 0.0024))]  # fmt: skip
    other = {**run, "config": {**run["config"], "train": {**run["config"]["train"], "epochs": 99}}}
    (together,) = term_runs([*made, other])
    assert [(one["variant"]["name"], one["config"]["run"]["seed"]) for one in together] == [
        (name, seed) for name in ("off", "key_bias, s = 0.0024", "literal, s = 0.05") for seed in (1, 2)
    ]
    assert term(together).lines[1].startswith("key_bias, s = 0.0024 against off: +0.0")
    assert all(len(runs) >= 3 for runs in term_runs(committed_runs()))


def _with_term(run: dict[str, Any], kind: str, strength: float, seed: int) -> dict[str, Any]:
    config = run["config"]
    model = {**config["model"], "nkat": kind, "nkat_strength": strength}
    return {**run, "seed": seed, "config": {**config, "model": model, "run": {**config["run"], "seed": seed}}}


def test_an_unknown_reference_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of phase1, .*, given 'phase3'"):
        show_reference("phase3")
