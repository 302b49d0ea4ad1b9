"""What `run.json` holds: complete, described, and checked for figures that contradict each other."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.experiment.record_keys import RUN_KEYS, check_run_record
from newllm_core.runs.files import PROJECT_ROOT, RunError, json_text, read_json
from newllm_core.runs.key_kinds import Key, key_table, wrong_keys
from reproduce.records import KINDS, kind_of, migrate, page

REFERENCE = PROJECT_ROOT / "results/reference"
COMMITTED = REFERENCE / "runs/cpu.json"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    record: dict[str, Any] = read_json(COMMITTED)
    return record


Change = Callable[[Any, Any], None]


def changed(record: dict[str, Any], path: str, change: Change) -> dict[str, Any]:
    """A copy with ``change`` made to the object that holds the last name of the dotted path, where `0` is an index."""
    found = copy.deepcopy(record)
    holder: Any = found
    *parents, name = (int(part) if part.isdigit() else part for part in path.split("."))
    for parent in parents:
        holder = holder[parent]
    change(holder, name)
    return found


def to(value: Any) -> Change:
    return lambda holder, name: holder.__setitem__(name, value)


def times(factor: float) -> Change:
    return lambda holder, name: holder.__setitem__(name, holder[name] * factor)


def test_every_committed_record_is_right_and_in_todays_format() -> None:
    found = {path: kind_of(read_json(path)) for path in REFERENCE.rglob("*.json")}
    records = {path: kind for path, kind in found.items() if kind is not None}
    assert len(records) >= 44 and set(records.values()) == set(KINDS)
    for path, kind in records.items():
        kind.check(read_json(path), path)


def test_the_page_is_made_of_the_descriptions() -> None:
    assert (PROJECT_ROOT / "docs/records.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("phase2.best.epoch", lambda holder, name: holder.pop(name), "phase2.best.epoch: missing"),
        ("phase1.history.0.cvfp", to("0.1"), "phase1.history[0].cvfp: expected a finite number, given '0.1'"),
        ("tokens.trian", to(5), "tokens.trian: unknown key (nearest known: train)"),
        ("tokens.train", to(True), "tokens.train: expected a whole number, at least 0, given True"),
        ("tokens.train", to(None), "tokens.train: expected a whole number, at least 0, given None"),
        ("phase1.convergence.validation", to(1.5), "phase1.convergence.validation: expected a number in 0 … 1"),
        ("phase1.history", to({}), "phase1.history: expected a list, given {}"),
        ("phase1.history.1", to(7), "phase1.history[1]: expected an object, given 7"),
        ("seconds", to(math.nan), "seconds: expected a finite number above 0, given nan"),
        ("config.model.width", to(5), "config.model.width: unknown key"),
        ("format", to(1), "expected a record of format 3, given 1"),
    ],
)
def test_a_wrong_key_is_named_with_its_path(committed: dict[str, Any], path: str, change: Change, message: str) -> None:
    with pytest.raises(RunError) as error:
        check_run_record(changed(committed, path, change), Path("run.json"))
    assert message in str(error.value) and str(error.value).startswith("run.json: ")


@pytest.mark.parametrize(
    "path",
    [
        "phase2.epochs.3.validation_loss", "phase2.epochs.3.train_perplexity", "phase2.best.validation_perplexity",
        "phase2.best.train_loss", "phase2.validation_conversations.nats.4", "phase1.convergence.train",
        "phase1.repeated_passes.convergence.rate", "phase1.history.9.cvfp", "phase1.effective_rank.validation",
        "phase1.checks.rank.share", "phase1.history.2.train_rank.value",
    ],
)  # fmt: skip
def test_an_altered_figure_contradicts_another(committed: dict[str, Any], path: str) -> None:
    """The eighth digit of a figure, as a bit that flipped on a disk changes it."""
    with pytest.raises(RunError, match="gives"):
        check_run_record(changed(committed, path, times(1 - 3e-8)), Path("run.json"))


@pytest.mark.parametrize(
    "path",
    ["tokens.train", "tokens.validation", "parameters.token_block", "phase1.iterations", "phase1.best_iteration",
     "phase1.convergence.train_converged", "phase1.convergence.validation_total", "phase2.best.epoch", "seed",
     "phase1.history.1.iteration", "phase2.epochs.1.epoch", "phase2.validation_conversations.tokens.0",
     "config.model.context_dim", "config.phase1.max_iterations", "provenance.train.num_tokens"],
)  # fmt: skip
def test_an_altered_count_contradicts_another(committed: dict[str, Any], path: str) -> None:
    def one_less(holder: Any, name: Any) -> None:
        holder[name] -= 1

    with pytest.raises(RunError, match="but"):
        check_run_record(changed(committed, path, one_less), Path("run.json"))


def test_a_null_is_allowed_only_where_it_has_a_meaning(committed: dict[str, Any]) -> None:
    keys = {"a": Key("number", "", missing="why"), "b.c": Key("number", ""), "d[].e[]": Key("count", "", missing="why")}
    assert wrong_keys({"a": None, "b": {"c": 1.0}, "d": [{"e": None}, {"e": [1, 2]}]}, keys) == []
    assert wrong_keys({"a": 1, "b": None, "d": [{"e": [None]}]}, keys) == [
        "b: expected an object, given None",
        "d[0].e[0]: expected a whole number, at least 0, given None",
    ]


def test_every_key_has_a_definition_and_a_row() -> None:
    assert all(key.meaning for key in RUN_KEYS.values())
    rows = key_table(RUN_KEYS).splitlines()
    assert len(rows) == len(RUN_KEYS) + 2 and all(row.count(" | ") == 3 for row in rows[2:])


def as_format_1(record: dict[str, Any]) -> dict[str, Any]:
    """What the version before wrote for the same run."""
    earlier = copy.deepcopy(record)
    for name in ("format", "arithmetic", "read", "paths"):
        del earlier[name]
    phase1 = earlier["phase1"]
    del phase1["contraction_tokens"], phase1["forgetting"]["tokens"], phase1["checks"]["identity"]["tokens"]
    del phase1["effective_rank"]["train_ceiling"], phase1["effective_rank"]["validation_ceiling"]
    del phase1["checks"]["rank"]["share_of_ceiling"], phase1["spectrum"]["measures"]
    names = {"rank": "effective rank", "identity": "identity mapping", "fixed_point": "CVFP convergence"}
    phase1["checks"] = [
        {"name": names[name], "verdict": check.pop("verdict"), "figures": check}
        for name, check in phase1["checks"].items()
    ]
    return earlier


def test_a_record_of_an_earlier_version_is_refused_with_the_command_and_migrated_by_it(
    committed: dict[str, Any], tmp_path: Path
) -> None:
    earlier = as_format_1(committed)
    with pytest.raises(RunError, match="python -m reproduce.records migrate"):
        check_run_record(earlier, Path("run.json"))
    (tmp_path / "run.json").write_text(json.dumps(earlier), encoding="utf-8")
    assert migrate(tmp_path) == 1
    assert read_json(tmp_path / "run.json") == committed
    assert migrate(tmp_path) == 0


def test_a_config_field_that_came_later_stands_only_where_it_is_set(committed: dict[str, Any]) -> None:
    assert "missing_text" not in committed["config"]["data"]
    with_it = changed(committed, "config.data.missing_text", to("skip-message"))
    check_run_record(with_it, Path("run.json"))
    earlier = changed(committed, "config.phase2.schedule", lambda holder, name: holder.pop(name))
    with pytest.raises(RunError, match="config.phase2.schedule: missing"):
        check_run_record(earlier, Path("run.json"))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@settings(max_examples=60, deadline=None)
@given(st.recursive(plain, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20))
def test_json_is_laid_out_without_changing_it(value: Any) -> None:
    assert json.loads(json_text(value)) == value


def test_a_list_of_numbers_stands_on_one_line() -> None:
    text = json_text({"losses": [0.5, 1, None], "rows": [{"a": [1, 2]}], "names": ["x"], "empty": {}, "none": []})
    assert text == (
        '{\n  "losses": [0.5, 1, null],\n  "rows": [\n    {\n      "a": [1, 2]\n    }\n  ],\n'
        '  "names": [\n    "x"\n  ],\n  "empty": {},\n  "none": []\n}'
    )


@settings(max_examples=100, deadline=None)
@given(st.recursive(plain, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=10))
def test_whatever_a_record_holds_it_is_refused_in_words(value: Any) -> None:
    assert wrong_keys(value, RUN_KEYS)
