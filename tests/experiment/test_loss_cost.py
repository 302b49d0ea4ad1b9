"""What a diversity loss costs: a record a loss."""

import pytest

from newllm_core.experiment.loss_cost import loss_cost


def test_loss_cost_has_a_row_a_loss_in_the_order_given() -> None:
    costs = loss_cost(["SIGReg", "MCDL"], num_tokens=40, context_dim=8, repetitions=3)
    assert [cost["name"] for cost in costs] == ["SIGReg", "MCDL"]
    assert all(0 < cost["low"] <= cost["forward_backward_ms"] <= cost["high"] for cost in costs)
    with pytest.raises(ValueError, match="at least 1 repetition, given 0"):
        loss_cost(["MCDL"], 40, 8, 0)
    with pytest.raises(ValueError, match="unknown diversity algorithm 'MCDC'; known: MCDL"):
        loss_cost(["MCDC"], 40, 8, 3)
