"""The checks after Phase 1: what passes, what fails, and what stands between."""

import math

import numpy as np
import pytest
import torch
from core_helpers import CONTRACTING, NEUTRAL, make_block, make_embeds, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from newllm_core.contexts.shooting import sequential_contexts
from newllm_core.experiment.checks import (
    Check,
    RepeatedPasses,
    _trend,
    compare_stale,
    convergence_verdict,
    fixed_point_check,
    identity_check,
    rank_check,
    repeated_passes,
)
from newllm_core.metrics.convergence import Convergence
from newllm_core.metrics.rank import StreamRank, noise_effective_rank, stream_rank


@pytest.mark.parametrize(
    ("slope", "spread", "verdict"),
    [
        (-0.0011, 0.0, "CONVERGING"),
        (-5.0, 9.0, "CONVERGING"),
        (0.0011, 0.0, "DIVERGING"),
        (5.0, 9.0, "DIVERGING"),
        (0.0, 0.0, "CONVERGED"),
        (0.0009, 0.0099, "CONVERGED"),
        (-0.0009, 0.0099, "CONVERGED"),
        (0.0009, 0.01, "UNSTABLE"),
        (0.0, 0.5, "UNSTABLE"),
        (0.001, 0.0, "UNSTABLE"),
        (-0.001, 0.0, "UNSTABLE"),
    ],
)
def test_the_verdict_follows_the_table(slope: float, spread: float, verdict: str) -> None:
    assert convergence_verdict(slope, spread) == verdict


def passes_with(*differences: float) -> RepeatedPasses:
    return RepeatedPasses(list(differences), Convergence(1, 1), slope=-0.5, spread=0.1, verdict="CONVERGING")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.5, 0.01, 0.0009), "PASS"),
        ((0.0009,), "PASS"),
        ((0.0, 0.0), "PASS"),
        ((0.5, 0.0001, 0.0009), "UNDECIDED"),
        ((0.5, 0.001), "UNDECIDED"),
        ((0.5, 0.01), "UNDECIDED"),
        ((0.5, 0.0101), "FAIL"),
        ((0.001, 0.5), "FAIL"),
    ],
)
def test_the_fixed_point_check_passes_below_a_thousandth_and_not_growing(
    differences: tuple[float, ...], verdict: str
) -> None:
    check = fixed_point_check(passes_with(*differences))
    assert check == Check(verdict, {"last_difference": differences[-1], "slope": -0.5})


def test_rounding_does_not_count_as_growing() -> None:
    assert fixed_point_check(passes_with(0.5, 1.0e-14, 1.1e-14)).verdict == "PASS"


def test_a_difference_that_is_not_a_number_fails() -> None:
    assert fixed_point_check(passes_with(0.5, math.nan)).verdict == "FAIL"


@pytest.mark.parametrize(("share", "verdict"), [(0.299, "FAIL"), (0.301, "PASS"), (0.99, "PASS")])
def test_an_effective_rank_below_thirty_percent_of_what_is_possible_fails(share: float, verdict: str) -> None:
    ceiling = noise_effective_rank(5000, 100)
    check = rank_check(StreamRank(share * ceiling, 100, 5000))
    expected = {"share": share * ceiling / 100, "share_of_ceiling": share, "failure_below": 0.30}
    assert check.verdict == verdict and check.figures == pytest.approx(expected)


@pytest.mark.parametrize(("num_tokens", "width"), [(2, 500), (121, 500), (151, 500), (100, 1085), (400, 1536)])
def test_white_noise_passes_the_rank_check_however_few_the_tokens(num_tokens: int, width: int) -> None:
    contexts = torch.randn(num_tokens, width, generator=rng(8))
    check = rank_check(stream_rank(contexts, 10_000))
    assert check.verdict == "PASS" and check.figures["share"] < 0.3
    collapsed = contexts[:, :1] @ contexts[:1] + 1e-4 * contexts
    assert rank_check(stream_rank(collapsed, 10_000)).verdict == ("PASS" if num_tokens == 2 else "FAIL")


def unit_rows(num_tokens: int, width: int, seed: int) -> Tensor:
    """Rows as LayerNorm leaves them."""
    return torch.nn.functional.layer_norm(torch.randn(num_tokens, width, generator=rng(seed)), (width,))


def test_contexts_that_say_something_of_their_own_pass_the_identity_check() -> None:
    check = identity_check(unit_rows(200, 16, 0), unit_rows(200, 16, 1))
    assert check.verdict == "PASS"
    assert check.figures["distance_from_zero"] == pytest.approx(1, abs=1e-3)
    assert check.figures["deviation_from_mean"] == pytest.approx(1, abs=0.05)
    assert abs(check.figures["cosine_to_token"] or 0) < 0.1


def test_contexts_that_are_the_embeddings_fail_the_identity_check() -> None:
    embeds = unit_rows(200, 16, 0)
    assert identity_check(embeds, embeds).verdict == "FAIL"
    assert identity_check(3 * embeds, embeds).figures["cosine_to_token"] == pytest.approx(1)


def test_the_cosine_is_missing_where_widths_differ() -> None:
    check = identity_check(unit_rows(200, 16, 0), unit_rows(200, 12, 0))
    assert (check.verdict, check.figures["cosine_to_token"]) == ("PASS", None)


@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_contexts_near_zero_fail_the_identity_check(scale: float) -> None:
    check = identity_check(scale * unit_rows(200, 16, 0), unit_rows(200, 12, 1))
    assert check.verdict == "FAIL" and check.figures["distance_from_zero"] == pytest.approx(scale, abs=1e-3)


def test_a_global_attractor_fails_the_identity_check() -> None:
    contexts = unit_rows(1, 16, 0) + 0.05 * unit_rows(200, 16, 1)
    check = identity_check(contexts, unit_rows(200, 12, 1))
    assert check.verdict == "FAIL"
    assert (check.figures["distance_from_zero"] or 0) > 0.9 and (check.figures["deviation_from_mean"] or 1) < 0.1


def test_contexts_that_are_not_numbers_fail_the_identity_check() -> None:
    assert identity_check(unit_rows(200, 16, 0) * math.nan, unit_rows(200, 12, 1)).verdict == "FAIL"


def test_repeated_passes_are_the_loop_over_the_text_again_and_again() -> None:
    block, embeds = make_block(NEUTRAL), make_embeds(120)
    context = torch.zeros(32, dtype=torch.float64)
    passes = []
    for _ in range(4):
        passes.append(sequential_contexts(block, embeds, context))
        context = passes[-1][-1]
    found = repeated_passes(block, embeds, passes=4, threshold=0.03)
    changes = [(b - a).square() for a, b in zip(passes, passes[1:], strict=False)]
    assert found.differences == pytest.approx([float(change.mean()) for change in changes], rel=1e-9)
    assert found.convergence == Convergence(int((changes[-1].mean(dim=1) < 0.03).sum()), 120)
    assert found.verdict == convergence_verdict(found.slope, found.spread)


def test_a_block_that_forgets_its_start_passes_from_the_second_pass_on() -> None:
    found = repeated_passes(make_block(CONTRACTING), make_embeds(400), passes=5, threshold=0.03)
    assert found.differences[0] > 1e-4 > 1e-9 > max(found.differences[1:])
    assert found.convergence == Convergence(400, 400)
    assert fixed_point_check(found).verdict == "PASS"


@given(st.lists(st.floats(0, 10), min_size=2, max_size=9))
@settings(deadline=None)
def test_the_slope_is_the_least_squares_line(values: list[float]) -> None:
    slope, spread = _trend(values)
    assert slope == pytest.approx(float(np.polyfit(range(len(values)), values, deg=1)[0]), abs=1e-9)
    assert spread == pytest.approx(float(np.std(values)), abs=1e-9)


def test_two_passes_have_neither_trend_nor_spread() -> None:
    found = repeated_passes(make_block(), make_embeds(50), passes=2, threshold=0.03)
    assert (len(found.differences), found.slope, found.spread) == (1, 0.0, 0.0)


def test_stale_contexts_of_a_fixed_point_are_the_exact_ones() -> None:
    block, embeds = make_block(), make_embeds(60)
    zero = torch.zeros(1, 32, dtype=torch.float64)
    exact = sequential_contexts(block, embeds, zero[0])
    found = compare_stale(block, embeds, torch.cat([zero, exact[:-1]]), exact)
    assert (found.mean_cosine, found.min_cosine) == pytest.approx((1, 1))
    assert found.mse < 1e-20 and found.num_tokens == 60


def test_stale_contexts_are_one_parallel_step_from_what_they_are_given() -> None:
    block, embeds = make_block(), make_embeds(60)
    exact = sequential_contexts(block, embeds, torch.zeros(32, dtype=torch.float64))
    before = torch.randn(60, 32, generator=rng(4), dtype=torch.float64)
    with torch.no_grad():
        stale = torch.cat([block(before[i : i + 1], embeds[i : i + 1]) for i in range(60)])
    found = compare_stale(block, embeds, before, exact)
    cosine = (stale * exact).sum(1) / stale.norm(dim=1) / exact.norm(dim=1)
    assert found.mse == pytest.approx(float((stale - exact).square().mean()))
    assert (found.mean_cosine, found.min_cosine) == pytest.approx((float(cosine.mean()), float(cosine.min())))
    assert found.min_cosine < found.mean_cosine < 1


def test_the_record_of_repeated_passes_is_of_plain_values() -> None:
    record = RepeatedPasses([0.5, 0.1], Convergence(3, 4), -0.4, 0.2, "CONVERGING").record()
    assert record == {
        "differences": [0.5, 0.1], "convergence": {"rate": 0.75, "converged": 3, "total": 4},
        "slope": -0.4, "spread": 0.2, "verdict": "CONVERGING",
    }  # fmt: skip
