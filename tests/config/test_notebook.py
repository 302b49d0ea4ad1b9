"""Parameters come from the cells that were run, not from whatever a kernel holds."""

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from shell_helpers import running_shell

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.notebook import cell_parameters, parameter_cells
from newllm_core.config.schema import ConfigError, parameter_fields

KNOWN = {*parameter_fields(Settings), "seeds"}
CELL = 'num_samples: int = 10  # conversations\nseed: int = 42\ncorpus: str = "chitchat"\nseeds: list = [1, 2]'
INJECTED = "# Parameters\nnum_samples = 5\nmax_epochs = 3\n"
OWN = "import torch\nfirst = 3\nseed = 7\npart = [first]"


def in_force(*history: str) -> list[str]:
    return parameter_cells(["", *history], KNOWN)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([CELL], [CELL]),
        (["x = 1", CELL, OWN], [CELL]),
        ([CELL, INJECTED], [CELL, INJECTED]),
        ([CELL, INJECTED, OWN, CELL.replace("10", "20")], [CELL.replace("10", "20")]),
        ([CELL, INJECTED, CELL, INJECTED.replace("5", "6")], [CELL, INJECTED.replace("5", "6")]),
        ([CELL, INJECTED, INJECTED.replace("5", "6")], [CELL, INJECTED.replace("5", "6")]),
        ([CELL.replace("num_samples", "num_sample"), CELL], [CELL]),
        ([CELL, "seed = 7"], [CELL, "seed = 7"]),  # all of it parameters: a second cell of them
        ([CELL, "seed = 7\nprint(seed)"], [CELL]),
        ([CELL, "for seed in (1, 2): pass"], [CELL]),
        ([CELL, "device = torch.device('cuda')"], [CELL]),
        ([CELL, 'seed = 3  #@param {type:"integer"}'], [CELL, 'seed = 3  #@param {type:"integer"}']),
        (["seed = 1", CELL], [CELL]),
        ([CELL, "not python ("], [CELL]),
        (["#@title Parameters\n" + CELL, CELL], [CELL]),
        ([OWN, "print(3)", ""], []),
    ],
)
def test_the_parameters_cells_in_force_are_those_run_last(history: list[str], expected: list[str]) -> None:
    assert in_force(*history) == expected


def test_kinds_come_from_annotations_and_values() -> None:
    found = cell_parameters("a: int | None = None\nb = [1]\nc: 'x' = 3\nd = None\ne: float = -1e-1")
    assert [(one.value, one.kind) for one in found.values()] == [
        (None, int | None), ([1], list), (3, Any), (None, Any), (-0.1, float),
    ]  # fmt: skip


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    with running_shell() as shell:
        yield shell


READ = "from newllm_core.config import Settings\nsettings = Settings.from_notebook(own=('seeds',))"


def run(shell: InteractiveShell, *cells: str, keeps_sources: bool = True) -> Any:
    for cell in cells:
        shell.run_cell(cell, store_history=keeps_sources).raise_error()
    return shell.user_ns.get("settings")


def test_a_kernels_own_names_do_not_matter(shell: InteractiveShell) -> None:
    assert run(shell, "first = 3", CELL, READ, OWN, READ) == Settings.from_parameters({"num_samples": 10})
    assert shell.user_ns["seed"] == 42, "what the parameters cell says"
    assert run(shell, CELL.replace("10", "20").replace("[1, 2]", "'(3, 4)'"), READ).data.num_samples == 20
    assert shell.user_ns["seeds"] == [3, 4]


def test_papermills_cell_goes_before_the_notebooks(shell: InteractiveShell) -> None:
    injected = INJECTED + 'validation_range = "(20, 24)"\nseeds = "[7]"\n'
    settings = run(shell, CELL, injected, READ)
    assert (settings.data.num_samples, settings.phase2.max_epochs) == (5, 3)
    assert settings.data.validation_range == (20, 24) == shell.user_ns["validation_range"]
    assert shell.user_ns["seeds"] == [7]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((CELL + "\nnum_sample = 3",), "unknown parameter 'num_sample'. Did you mean 'num_samples'"),
        ((CELL, "# Parameters\nsede = 3"), "unknown parameter 'sede'. Did you mean 'seed'"),
        ((CELL.replace("10", "2 * 5"),), "name = literal; line 1 is: num_samples: int = 2 \\* 5"),
        ((CELL, CELL.replace("10", "2 * 5")), "name = literal; line 1 is"),
        ((CELL.replace("[1, 2]", "3"),), "seeds: expected list, given 3"),
        ((CELL.replace("10", "-1"),), "num_samples: expected at least 1, given -1"),
        (("num_samples = 3",), "'seeds': the parameters cell does not have it"),
        (("x = 3",), "no parameters: run the parameters cell"),
    ],
)
def test_what_a_notebook_cannot_mean_is_refused(shell: InteractiveShell, cells: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(shell, *cells, READ)
    run(shell, CELL, INJECTED, READ)


def test_a_front_end_that_keeps_no_sources_is_read_from_its_names(shell: InteractiveShell) -> None:
    """As nbval runs cells."""
    settings = run(shell, "import os", CELL, READ, keeps_sources=False)
    assert settings.data.num_samples == 10 and settings.run.seed == 42
    with pytest.raises(ConfigError, match="unknown parameter 'num_sample'"):
        run(shell, "num_sample = 3", READ, keeps_sources=False)


def test_outside_a_notebook_it_says_what_to_do_instead() -> None:
    InteractiveShell.clear_instance()
    with pytest.raises(ConfigError, match="expected to run in a notebook; in a script, use from_parameters"):
        Settings.from_notebook()
