"""Several ranks against one: the same losses up to the order of sums, in float64, where a mistake could not hide."""

import os
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config
from rank_helpers import doubles, on_ranks

from newllm_core import losses
from newllm_core.runs.world import current_world
from newllm_core.training import fixed_point
from newllm_core.training.phase1 import train_phase1

TRAIN, VALIDATION = make_tokens(430, seed=1), make_tokens(120, seed=2)
ITERATIONS = 20 if os.environ.get("NEWLLM_ALL_RANKS") else 5


def registered(contexts: torch.Tensor) -> torch.Tensor:
    """A loss that reads all rows at once and draws: a random order of them, neighbours pushed apart."""
    order = torch.randperm(len(contexts))
    return -(contexts[order[1:]] - contexts[order[:-1]]).abs().mean()


PHASE1 = {
    **{name: {"diversity_algorithm": name} for name in losses.DIVERSITY_ALGORITHMS},
    "a loss of one's own": {"diversity_algorithm": "own"},
    "exact": {"context_source": "exact", "diversity_algorithm": "ODCM"},
    "two layers": {"context_source": "exact", "num_layers": 2, "num_input_tokens": 2},
    "one batch": {"batch_tokens": 430, "context_source": "exact", "diversity_algorithm": "PR"},
}


def phase1_figures(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    with doubles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_point, "FIRST_TOLERANCE", 1e-13)
        losses.register_diversity_loss("own", "of this test", registered)
        return {name: phase1_case(**values) for name, values in cases.items()}


def phase1_case(num_layers: int = 1, num_input_tokens: int = 1, **values: Any) -> dict[str, Any]:
    torch.manual_seed(7)
    model = make_model(num_layers=num_layers, num_input_tokens=num_input_tokens).double()
    config = phase1_config(max_iterations=ITERATIONS, check_interval=5, **values)
    object.__setattr__(config, "context_tolerance", 1e-13)  # below what a config allows, for float32
    found = train_phase1(model, TRAIN, VALIDATION, config, seed=5)
    assert found.history is not None
    weights = torch.cat([value.flatten() for value in model.context_block.state_dict().values()])
    return {
        "losses": [[row.cvfp, row.diversity, row.total, row.gradient_norm] for row in found.history.iterations],
        "converged": [row.converged for row in found.history.iterations],
        "ranks": [row.train_rank.value for row in found.history.iterations],
        "best": found.history.best_iteration,
        "weights": weights.tolist(),
        "stale": found.history.stale_contexts.tolist() if current_world().is_first else None,
    }


def difference(one: Any, other: Any) -> float:
    return float((torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)).abs().max())


# All of them take minutes on two cores: NEWLLM_ALL_RANKS=1 pytest -n 0 tests/training/test_ranks.py
EVERYTHING = bool(os.environ.get("NEWLLM_ALL_RANKS"))
CASES = PHASE1 if EVERYTHING else {name: PHASE1[name] for name in ("ODCM", "a loss of one's own", "exact")}


@pytest.mark.parametrize("size", [2, 3, 4] if EVERYTHING else [3])
def test_ranks_give_the_losses_of_one_rank(size: int) -> None:
    alone = phase1_figures(CASES)
    for rank, found in enumerate(on_ranks(size, phase1_figures, CASES)):
        assert isinstance(found, dict), found
        for name, expected in alone.items():
            for figure, value in found[name].items():
                if value is not None:
                    apart = difference(value, expected[figure])
                    print(f"{size} ranks, {name}, {figure} of rank {rank}: {apart:.1e}")
                    assert apart < 1e-8, (rank, name, figure, apart)
