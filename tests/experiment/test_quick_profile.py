"""The quick profile gives the figures that are committed: no change of the code changes a figure unseen.

On the processor and with the libraries of the committed record, to the last bit. Elsewhere sums are rounded in another
order: with AVX2 and without bfloat16 products the largest differences were 3 % of a training accuracy (0.0006), 0.09 %
of a perplexity, and 0.001 % of a figure of Phase 1.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from newllm_core.experiment.folder_names import settings_of
from newllm_core.experiment.run import run_experiment
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.runs.identity import figures_of
from newllm_core.runs.record_differences import Tolerance, differences

(COMMITTED,) = (REFERENCE_DIR / "quick/03_phase2").glob("*/run.json")
ELSEWHERE = Tolerance(relative=0.01, absolute=0.001)
# What may be anything on another processor: the text that is drawn, the constant of the head, how many steps the
# distance of two trajectories takes to vanish in rounding.
FREE_ELSEWHERE = ("phase2.generated", "phase2.head_method", "phase1.forgetting.distances", "arithmetic", "versions")


def unlike(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Every figure that is not as committed, within what this processor allows."""
    same = all(committed[name] == found[name] for name in ("arithmetic", "versions"))
    lines = differences(figures_of(committed), figures_of(found), None if same else ELSEWHERE)
    return [line for line in lines if same or not line.startswith(FREE_ELSEWHERE)]


def test_the_quick_profile_gives_the_committed_figures(tmp_path: Path) -> None:
    committed = read_json(COMMITTED)
    settings = settings_of(committed)
    found = run_experiment(
        settings.data, settings.model, settings.phase1, settings.phase2, tmp_path / "run", run=settings.run,
        data_dir=tmp_path / "data",
    )  # fmt: skip
    assert unlike(committed, json.loads(json.dumps(found))) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_changed_figure_is_noticed_on_every_processor(elsewhere: bool) -> None:
    committed, found = read_json(COMMITTED), read_json(COMMITTED)
    if elsewhere:
        found["arithmetic"] = {**found["arithmetic"], "capability": "DEFAULT"}
        found["phase2"]["best"]["validation_perplexity"] *= 1.001
    assert unlike(committed, found) == []
    found["phase2"]["best"]["validation_perplexity"] *= 1.02 if elsewhere else 1 + 1e-15
    found["tokens"]["train"] += 100
    del found["phase1"]["cvfp_loss"]
    assert [line.split(": ")[0] for line in unlike(committed, found)] == [
        "tokens.train", "phase1.cvfp_loss", "phase2.best.validation_perplexity"
    ]  # fmt: skip
