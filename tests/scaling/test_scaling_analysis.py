"""From records to α, its intervals and its pictures: planted laws come back, incomplete records are refused."""

import base64
import copy
import json
import math
from functools import partial

import ipywidgets
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from scaling_records import planted_record, planted_records

from newllm_core.comparison.groups import ComparisonError
from newllm_core.report.scaling import plot_alpha, plot_perplexity, plot_rank, window_picture
from newllm_core.report.widgets import picture_with_sliders
from newllm_core.runs.files import write_json
from newllm_core.scaling.analysis import analyse, analysis_record, analysis_text
from newllm_core.scaling.law import ScalingError

SIZES, SEEDS = [10, 20, 40, 80, 160], [42, 43, 44]
RECORDS = planted_records(SIZES, SEEDS)
WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_planted_exponent_lies_in_every_interval() -> None:
    analysis = analyse(RECORDS, window_size=4, num_resamples=200)
    assert len(analysis.progression.rows) == len(analysis.bootstraps) == 2
    for row, bootstrap in zip(analysis.progression.rows, analysis.bootstraps, strict=True):
        for interval in (row.alpha_interval, bootstrap.alpha_interval):
            assert interval is not None and interval[0] < -0.3 < interval[1]


def test_the_mean_of_a_size_lies_in_its_interval_and_the_interval_feels_the_conversations() -> None:
    analysis = analyse(planted_records(SIZES, [42]), window_size=3, num_resamples=400)
    for size in analysis.sizes:
        low, high = size.perplexity_interval
        assert low < size.perplexity[0] < high
        # Conversations differ by up to half a nat, so 6 of them cannot pin a perplexity to a per cent.
        assert math.log(high / low) > 0.05


def test_records_in_any_order_give_the_same_figures() -> None:
    straight, reversed_ = (analyse(records, 4, 200) for records in (RECORDS, RECORDS[::-1]))
    assert analysis_record(straight) == analysis_record(reversed_)


def test_a_validation_conversation_without_a_predicted_token_changes_nothing() -> None:
    records = planted_records([50, 100, 200, 400], [42, 43])
    with_greeting = copy.deepcopy(records)
    for record in with_greeting:
        conversations = record["phase2"]["validation_conversations"]
        conversations["nats"], conversations["tokens"] = [0.0, *conversations["nats"]], [0, *conversations["tokens"]]
    assert analysis_record(analyse(with_greeting, 4, 200)) == analysis_record(analyse(records, 4, 200))


def test_the_two_largest_sizes_are_predicted_from_the_others() -> None:
    analysis = analyse(planted_records(SIZES, [42], alpha=-0.4), 4, 200)
    assert analysis.extrapolation is not None
    assert [point.tokens for point in analysis.extrapolation.points] == [56_000, 112_000]
    assert all(abs(point.error_percent) < 10 for point in analysis.extrapolation.points)


def test_what_too_few_sizes_cannot_say_is_null() -> None:
    analysis = analyse(planted_records([10, 20], [42, 43]), window_size=2, num_resamples=200)
    record = analysis_record(analysis)
    assert record["floor"] is None and record["extrapolation"] is None
    assert record["progression"]["rows"][0]["alpha_interval"] is None
    assert "extrapolation: needs 4 sizes" in analysis_text(analysis)
    plot_alpha(analysis), plot_perplexity(analysis)


def test_the_record_is_strict_json(tmp_path) -> None:  # type: ignore[no-untyped-def]
    record = analysis_record(analyse(RECORDS, 4, 200))
    write_json(tmp_path / "alpha_progression.json", record)
    assert json.loads((tmp_path / "alpha_progression.json").read_text())["progression"]["window_size"] == 4


def test_the_text_has_a_line_for_each_figure() -> None:
    text = analysis_text(analyse(RECORDS, 4, 200))
    for expected in ("seeds 42, 43, 44", "window 1: α", "window 2: α", "extrapolation to 56,000", "trend of α", "E "):
        assert expected in text


def test_pictures_are_figures_with_labelled_axes() -> None:
    analysis = analyse(RECORDS, 4, 200)
    for figure in (plot_perplexity(analysis), plot_alpha(analysis), plot_rank(analysis)):
        assert isinstance(figure, Figure)
        assert all(axis.get_xlabel() and axis.get_title() for axis in figure.axes)
        assert "chitchat, random" in figure.get_suptitle()


def test_a_slider_past_the_end_shows_the_last_window() -> None:
    assert window_picture(RECORDS, 99, 3) == window_picture(RECORDS, 3, 3) != window_picture(RECORDS, 1, 3)
    with pytest.raises(ScalingError, match="fewer points than a window: 5 points, window_size=6"):
        window_picture(RECORDS, 1, 6)


def test_moving_a_slider_draws_the_picture_anew() -> None:
    first = ipywidgets.IntSlider(min=1, max=4, value=1, description="first size")
    box = picture_with_sliders(partial(window_picture, RECORDS, window_size=3), first_size=first)
    picture = box.children[-1]
    before = picture.value
    assert before == window_picture(RECORDS, 1, 3)
    first.value = 3
    assert picture.value == window_picture(RECORDS, 3, 3) != before
    shown, _ = DisplayFormatter(active_types=[WIDGET, "image/png", "text/plain"]).format(box)
    assert base64.b64decode(shown["image/png"]) == picture.value  # for who has no kernel
    assert shown[WIDGET]["model_id"] == box.model_id and shown["text/plain"] == "first size: 3"


def test_incomplete_or_mixed_records_are_refused() -> None:
    missing = copy.deepcopy(RECORDS)
    del missing[0]["phase2"]
    below_one = copy.deepcopy(RECORDS)
    below_one[0]["phase2"]["best"]["validation_perplexity"] = 1.0
    for records, message in (
        ([], "at least one record"),
        (missing, "Phase 1 alone or of both phases, given 1 and 14"),
        (below_one, "expected a finite number above 1"),
        (RECORDS + RECORDS[:1], "each run once, given 2 of one configuration with seed 42"),
        (RECORDS[1:], "every size must have the same seeds"),
        ([*RECORDS, planted_record(320, 42, dist_reg_weight=0.5)], "differ in dist_reg_weight"),
        (planted_records([10, 20], SEEDS), "fewer points than a window"),
    ):
        with pytest.raises((ScalingError, ComparisonError), match=message):
            analyse(records, 4, 200)
