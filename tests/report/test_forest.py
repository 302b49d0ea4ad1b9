"""The one forest plot, and how every picture is saved."""

import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from newllm_core.intervals import Estimate
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import LINE_COLOURS, save_figure

APART = Estimate(1.2, (1.1, 1.3), (1.15, 1.25), 1.0)
NEAR = Estimate(1.01, (0.9, 1.1), (0.95, 1.07), 1.0)
ONE_SEED = Estimate(0.8, (0.7, 0.9), (0.8,), 1.0)
LABELS = [ForestLabel(text) for text in ("the first", "apart", "near", "one seed", "lost")]
PANEL = ForestPanel("Perplexity", "ratio", [None, APART, NEAR, ONE_SEED, None], reference=0)


def marks(axis: Axes) -> list[tuple[str, bool]]:
    """Of the rows from the top: the mark, and whether it is filled."""
    drawn = [line for line in axis.lines if line.get_marker() in ("o", "D")]
    return [(str(line.get_marker()), line.get_markerfacecolor() != "white") for line in drawn]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_row_is_filled_when_its_interval_leaves_the_line_and_a_diamond_with_one_seed() -> None:
    (axis,) = plot_forest(LABELS, [PANEL], "source").axes
    assert marks(axis) == [("o", True), ("o", False), ("D", True)]
    assert [text.get_text() for text in axis.texts] == [
        "reference", "1.200 [1.100, 1.300]", "1.010 [0.900, 1.100]", "0.800 [0.700, 0.900]", "–",
    ]  # fmt: skip


def test_ratios_stand_on_a_logarithmic_axis_and_differences_do_not() -> None:
    difference = ForestPanel("Rank", "points", [Estimate(2.0, (1.0, 3.0), (2.0,), 0.0)] * 5)
    left, right = plot_forest(LABELS, [PANEL, difference], "source").axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert [line.get_xdata()[0] for line in (left.lines[-1], right.lines[-1])] == [
        1.0,
        0.0,
    ]  # the lines of no difference


def test_the_legend_says_what_is_there_and_no_more() -> None:
    assert legend(plot_forest(LABELS[:1], [ForestPanel("", "", [APART])], "")) == [
        "distinguishable from the line",
        "a seed",
    ]
    alone = legend(plot_forest(LABELS[:1], [ForestPanel("", "", [ONE_SEED])], ""))
    assert alone == ["distinguishable from the line", "one seed: its spread is not in the interval"]
    kinds = [ForestLabel("a", kind="model"), ForestLabel("b", kind="counts")]
    colours = {"model": "blue", "counts": "green", "network": "red"}
    assert legend(plot_forest(kinds, [ForestPanel("", "", [NEAR, NEAR])], "", colours))[:2] == ["model", "counts"]


def test_groups_have_a_heading_each_where_there_are_several() -> None:
    labels = [ForestLabel("a", group="one"), ForestLabel("b", group="one"), ForestLabel("c", group="two")]
    (axis,) = plot_forest(labels, [ForestPanel("", "", [APART, NEAR, APART])], "").axes
    texts = dict(zip(axis.get_yticks(), (label.get_text() for label in axis.get_yticklabels())))
    assert [texts[place] for place in sorted(texts)] == ["one", "a", "b", "two", "c"]
    (axis,) = plot_forest(labels[:2], [ForestPanel("", "", [APART, NEAR])], "").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_a_panel_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="for each of 5 rows in every panel"):
        plot_forest(LABELS, [ForestPanel("", "", [APART])], "")


def test_colours_are_of_okabe_and_ito() -> None:
    published = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
    assert {to_hex(colour) for colour in LINE_COLOURS} <= published


def test_a_picture_is_saved_twice_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        assert save_figure(plot_forest(LABELS, [PANEL], "source"), tmp_path / name) == tmp_path / name
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8") and "<dc:date>" not in drawn
    assert re.search(r"<text[^>]*>distinguishable from the line</text>", drawn)
    with pytest.raises(ValueError, match=r"ends in \.png, given"):
        save_figure(plot_forest(LABELS, [PANEL], "source"), tmp_path / "one.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
