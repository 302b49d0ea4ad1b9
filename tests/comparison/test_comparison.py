"""Comparison of configurations: planted figures come back, intervals cover, pairing cancels what two runs share."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from newllm_core.comparison.figures import FIGURES, perplexity, perplexity_ratio, seed_mean
from newllm_core.comparison.groups import ComparisonError, Record, families_along, groups_of, varying_parameters
from newllm_core.comparison.paired import (
    comparison_lines,
    comparison_table,
    paired_difference,
    rank_perplexity_correlation,
)
from newllm_core.comparison.tables import readable_table
from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig, Settings
from newllm_core.config.schema import changed
from newllm_core.experiment.folder_names import run_identity
from newllm_core.intervals import Estimate
from newllm_core.report.comparison import (
    comparison_source,
    plot_axis,
    plot_comparison,
    plot_loss_cost,
    plot_rank_against_perplexity,
    plot_rank_progression,
    plot_spectra,
)
from newllm_core.report.style import save_figure
from newllm_core.scaling.analysis import alpha_by_algorithm
from newllm_core.scaling.law import ScalingError
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Sweep, Variant, grid, one_axis_at_a_time

CENTRE = Settings()
SEEDS = (42, 43, 44)
COUNTS = np.array([500.0, 1_000.0, 1_500.0, 800.0])
HARD = np.array([0.2, -0.1, 0.0, 0.1])  # nats a token that a conversation is harder than another


def made(point: Settings = CENTRE, share: float = 60.0, loss: float = 6.0, phase2: bool = True) -> Record:
    """A record with planted figures: ER and calibrated ER ``share`` % of C, ``loss`` nats a token before HARD."""
    config = run_identity(point, phase1_only=not phase2).config
    width, trained, tokens = point.model.context_dim, point.phase1.max_iterations > 0, 700 * point.data.num_samples
    rank = {
        "validation": share * width / 100, "validation_untrained": 0.3 * width, "context_dim": width,
        "validation_tokens": 3_800, "validation_ceiling": 0.97 * width,
    }  # fmt: skip
    rows = [{"iteration": step, "train_rank": {"share": 0.5}, "validation_rank": {"share": 0.6} if step % 2 else None}
            for step in (1, 2, 3)]  # fmt: skip
    measures = [
        {"name": name, "centred": centred, "value": share * width / (200 if centred else 100)}
        for name in ("calibrated_effective_rank", "participation_ratio")
        for centred in (False, True)
    ]
    record: Record = {
        "corpus": "chitchat", "embeddings": "random", "seed": point.run.seed, "config": config,
        "tokens": {"train": tokens, "validation": 3_801},
        "phase1": {
            "effective_rank": rank, "convergence": {"train": 0.25 if trained else None}, "contraction_rate": -0.05,
            "best_iteration": 3 if trained else 0, "history": rows if trained else [], "seconds": 2.0,
            "spectrum": {"validation": [2.0] * (width - 1) + [0.0], "measures": measures},
        },
    }  # fmt: skip
    if phase2:
        nats = (loss + HARD) * COUNTS
        best = {"validation_perplexity": math.exp(nats.sum() / COUNTS.sum()), "validation_accuracy": 0.125,
                "validation_bits_per_byte": 2.25}  # fmt: skip
        conversations = {"nats": nats.tolist(), "tokens": COUNTS.tolist()}
        record["phase2"] = {"best": best, "validation_conversations": conversations}
    return record


def at(**values: Any) -> Settings:
    point = CENTRE
    for name, value in values.items():
        point = changed(point, {name: value})
    return point


def runs(share: float = 60.0, losses: Sequence[float] = (6.0, 6.1, 6.2), **values: Any) -> list[Record]:
    """One configuration with a run a seed; ranks one point apart."""
    return [made(at(seed=seed, **values), share + i, loss) for i, (seed, loss) in enumerate(zip(SEEDS, losses))]


AXES = {
    "diversity_algorithm": ["ODCM"],
    "context_dim": [64, 128],
    "dist_reg_weight": [0.5],
    "max_iterations": [0],
}


# Configurations


def test_runs_that_differ_in_their_seed_alone_are_one_group_in_order_of_first_appearance() -> None:
    records = [made(at(seed=seed, diversity_algorithm=name)) for seed in SEEDS for name in ("ODCM", "MCDL")]
    groups = groups_of(records)
    assert [group.label for group in groups] == ["ODCM", "MCDL"] and groups[0].seeds == SEEDS
    assert varying_parameters(records) == ("diversity_algorithm",)
    assert groups[0].settings == {"diversity_algorithm": "ODCM"} and groups[0].train_tokens == 56_000


def points_of(variants: Sequence[Variant]) -> list[Settings]:
    return list(dict.fromkeys(one.settings(CENTRE) for one in variants))


def test_labels_name_the_algorithm_and_what_is_unusual() -> None:
    records = [made(point) for point in points_of(one_axis_at_a_time(AXES))]
    expected = ["MCDL", "ODCM", "MCDL, C = 64", "MCDL, C = 128", "MCDL, w = 0.5", "untrained"]
    assert [group.label for group in groups_of(records)] == expected
    source = comparison_source(records)
    assert "where the label names nothing else: " in source and "w = 0.9" in source and "C = 500" in source


def test_without_a_usual_value_labels_name_all() -> None:
    records = [made(at(num_samples=size, context_source=way)) for size in (10, 20) for way in ("exact",)]
    assert [group.label for group in groups_of(records)] == ["MCDL, 10 samples", "MCDL, 20 samples"]
    assert "where the label" not in comparison_source(records)


chosen = st.lists(st.integers(0, 17), min_size=1, max_size=18, unique=True)


@settings(deadline=None, max_examples=30)
@given(chosen=chosen)
def test_each_configuration_has_a_label_of_its_own(chosen: list[int]) -> None:
    axes = {"diversity_algorithm": ["MCDL", "PR"], "context_dim": [8, 9, 10], "dist_reg_weight": [0.1, 0.5, 0.9]}
    points = points_of(grid(axes))
    groups = groups_of([made(points[number]) for number in chosen])
    assert len({group.label for group in groups}) == len(groups) == len(chosen)


def refused(text: str) -> Any:
    return pytest.raises(ComparisonError, match=re.escape(text))


def test_records_that_cannot_be_compared_are_refused() -> None:
    with refused("at least one record, given none"):
        groups_of([])
    with refused("Phase 1 alone or of both phases, given 1 and 2"):
        groups_of([made(), made(at(seed=1)), made(at(seed=2), phase2=False)])
    with refused("expected each run once, given 2 of one configuration with seed 42"):
        groups_of([made(), made()])


def test_an_untrained_block_has_no_algorithm() -> None:
    twins = [made(at(max_iterations=0, diversity_algorithm=name)) for name in ("MCDL", "ODCM")]
    with refused("an untrained block has no diversity algorithm and no weight"):
        groups_of(twins)
    assert groups_of(twins[1:])[0].algorithm == "untrained"


def test_two_losses_of_one_name_are_refused() -> None:
    records = [made(), made()]
    for record, source in zip(records, ("a", "b")):
        record["config"]["user_loss"] = {"source_sha256": source}
    with refused("one loss of each name, given different ones: MCDL, MCDL"):
        groups_of(records)


def test_families_differ_in_one_parameter_alone() -> None:
    points = [at(num_samples=size, diversity_algorithm=name) for name in ("PR", "MCDL") for size in (20, 10)]
    points.append(at(num_samples=20, dist_reg_weight=0.5))
    families = families_along([made(point) for point in points], "num_samples")
    assert [(label, [one.settings["num_samples"] for one in groups]) for label, groups in families.items()] == [
        ("PR", [10, 20]), ("MCDL", [10, 20]),
    ]  # fmt: skip
    with refused("axis 'diversity_algorithm': expected numbers, given 'PR'"):
        families_along([made(point) for point in points], "diversity_algorithm")


# Figures and their intervals


def test_perplexity_is_the_geometric_mean_over_seeds() -> None:
    (group,) = groups_of(runs())
    values = [record["phase2"]["best"]["validation_perplexity"] for record in group.records]
    found = perplexity(group)
    assert found.value == pytest.approx(stats.gmean(values))
    assert found.interval is not None and found.interval[0] < min(values) and found.interval[1] > max(values)


def test_table_holds_the_planted_figures_and_nan_where_there_is_none() -> None:
    records = [*runs(), *runs(50.0, diversity_algorithm="ODCM"), made(at(max_iterations=0))]
    table = comparison_table(records)
    assert list(table.index) == ["MCDL", "ODCM", "untrained"] and list(table["seeds"]) == [3, 3, 1]
    row = table.loc["ODCM"]
    margin = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (row["ER %"], row["ER % low"], row["ER % high"]) == pytest.approx((51, 51 - margin, 51 + margin))
    assert row["calibrated ER %"] == row["participation ratio %"] == pytest.approx(51)
    assert (row["converged %"], row["accuracy %"], row["bits a byte"], row["tokens"]) == (25, 12.5, 2.25, 56_000)
    assert pd.isna(table.loc["untrained", "converged %"]) and pd.isna(table.loc["untrained", "ER % low"])
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in FIGURES)
    text = readable_table(table)
    assert text.loc["ODCM", "ER %"] == f"51.0 [{51 - margin:.1f}, {51 + margin:.1f}]"
    assert text.loc["untrained", "converged %"] == "–" and text.loc["untrained", "ER %"] == "60.0"
    assert text.loc["MCDL", "contraction rate"] == "-0.0500"


def test_phase1_alone_has_no_columns_of_phase2() -> None:
    records = [made(phase2=False), made(at(diversity_algorithm="PR"), phase2=False)]
    assert not {"PPL", "accuracy %", "bits a byte"} & set(comparison_table(records))
    assert "PPL" not in comparison_lines(records, "MCDL")[0]
    with refused("expected records of both phases, given Phase 1 alone"):
        perplexity(groups_of(records)[0])


# Two configurations


def test_pairing_cancels_what_a_seed_does_to_both() -> None:
    seeds = (6.0, 6.4, 6.2)
    better = [loss - 0.02 + noise for loss, noise in zip(seeds, (0.001, 0.0, -0.001))]
    ours, theirs = groups_of([*runs(losses=better, diversity_algorithm="PR"), *runs(losses=seeds)])
    pair = perplexity_ratio(ours, theirs)
    assert pair.value == pytest.approx(math.exp(-0.02)) and pair.verdict == "distinguishable"
    assert len(pair.by_seed) == 3
    alone = perplexity(ours).interval, perplexity(theirs).interval
    assert alone[0] is not None and alone[1] is not None and alone[0][1] > alone[1][0]  # unpaired they overlap
    back = perplexity_ratio(theirs, ours)
    assert back.interval is not None and pair.interval is not None
    assert (back.value, *back.interval) == pytest.approx((1 / pair.value, 1 / pair.interval[1], 1 / pair.interval[0]))


def test_a_configuration_is_not_distinguishable_from_its_like() -> None:
    ours, theirs = groups_of([*runs(diversity_algorithm="PR"), *runs()])
    pair = perplexity_ratio(ours, theirs)
    assert pair.text() == "1.000 [1.000, 1.000]" and pair.verdict == "not distinguishable"
    assert paired_difference(ours, theirs) == Estimate(0.0, (0.0, 0.0), (0.0, 0.0, 0.0), 0.0)


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    ours, theirs = groups_of([*runs(70.0, diversity_algorithm="PR")[1:], *runs()[:2]])
    pair = paired_difference(ours, theirs)
    assert pair is not None and pair.value == pytest.approx(10.0)
    assert pair.interval is None and len(pair.by_seed) == 1 and pair.verdict == "not distinguishable"
    with refused("expected a seed that both have, given (44,) of PR and (42, 43) of MCDL"):
        paired_difference(dataclasses.replace(ours, records=ours.records[1:]), theirs)


def test_a_single_seed_can_tell_itself_apart_alone() -> None:
    records = [made(at(diversity_algorithm="PR"), loss=5.9), made()]
    records[0]["phase2"]["validation_conversations"]["nats"][0] += 1.0
    ours, theirs = groups_of(records)
    assert perplexity_ratio(ours, theirs).verdict == "distinguishable for this seed alone"
    assert marks(plot_comparison(records).axes[-1]) == [("D", True)]


def test_pairs_without_common_ground_are_refused() -> None:
    ours, theirs = groups_of([*runs(diversity_algorithm="PR"), *runs()])
    theirs.records[0]["phase2"]["validation_conversations"]["tokens"][0] += 1
    with refused("judged on the same conversations, given different ones"):
        perplexity_ratio(ours, theirs)
    untrained = groups_of([made(at(max_iterations=0))])[0]
    assert paired_difference(untrained, groups_of(runs()[:1])[0], "converged %") is None


def test_comparison_lines_give_figures_and_verdicts() -> None:
    records = [*runs(), *runs(70.0, (5.9, 6.0, 6.1), diversity_algorithm="PR"), *runs(diversity_algorithm="ODCM")]
    lines = comparison_lines(records, "MCDL")
    assert lines == [
        "PR against MCDL: calibrated ER +10.00 [–] points (% of C), 3 seeds: not distinguishable; "  # all by as much
        "PPL × 0.905 [0.905, 0.905], 3 seeds: distinguishable",
        "ODCM against MCDL: calibrated ER +0.00 [+0.00, +0.00] points (% of C), 3 seeds: not distinguishable; "
        "PPL × 1.000 [1.000, 1.000], 3 seeds: not distinguishable",
    ]
    with refused("baseline: expected one of MCDL, PR, ODCM, given 'SIGReg'"):
        comparison_lines(records, "SIGReg")


# Rank and perplexity, cost, α

SHARES, LOSSES = (50.0, 55.0, 60.0, 65.0, 72.0), (6.3, 6.0, 6.2, 5.9, 6.0)


def swept(num: int, shares: Sequence[float] = SHARES, losses: Sequence[float] = LOSSES) -> list[Record]:
    weights = (0.5, 0.6, 0.7, 0.8, 0.9)[:num]
    return [made(at(dist_reg_weight=w), share, loss) for w, share, loss in zip(weights, shares, losses)]


def test_correlation_is_pearsons_and_its_text_has_the_verdict() -> None:
    found = rank_perplexity_correlation(swept(5))
    assert found.r is not None and found.r.value == pytest.approx(float(np.corrcoef(SHARES, LOSSES)[0, 1]))
    assert str(found) == (
        f"correlation of ER and log PPL {found.r.text('{:+.3f}')}, not distinguishable from 0: "
        "5 configurations of 56,000 training tokens that differ in dist_reg_weight"
    )


def test_correlation_of_a_planted_line_excludes_zero() -> None:
    losses = [7 - 0.02 * share + noise for share, noise in zip(SHARES, (0.003, -0.003, 0.001, -0.001, 0.002))]
    assert "], distinguishable from 0: " in str(rank_perplexity_correlation(swept(5, losses=losses)))


def test_correlation_needs_three_configurations_and_its_interval_four() -> None:
    three, two = (rank_perplexity_correlation(swept(num)) for num in (3, 2))
    assert three.r is not None and three.r.interval is None and "[–], not distinguishable" in str(three)
    assert two.r is None and str(two).startswith("correlation of ER and log PPL –: 2 configurations")
    assert rank_perplexity_correlation(swept(5, shares=[60.0] * 5)).r is None


def test_correlation_is_within_the_most_configurations_of_equal_tokens() -> None:
    others = [made(at(num_samples=size), 90.0, 3.0) for size in (10, 20)]
    found = rank_perplexity_correlation([*others, *swept(4)])
    assert len(found.groups) == 4 and found.varied == ("dist_reg_weight",)
    assert found.r == rank_perplexity_correlation(swept(4)).r


def test_alpha_of_each_algorithm_with_two_sizes() -> None:
    law = {"MCDL": -0.3, "PR": -0.2}
    records = [
        made(at(num_samples=size, seed=seed, diversity_algorithm=name), loss=7 + alpha * math.log(size) + scatter)
        for name, alpha in law.items() for size in (40, 10, 20) for seed, scatter in ((42, 0.05), (43, -0.05))
    ]  # fmt: skip
    found = alpha_by_algorithm([*records, made(at(diversity_algorithm="ODCM"))])
    assert {name: fit.alpha for name, fit in found.items()} == pytest.approx(law)
    assert alpha_by_algorithm([made(), made(at(dist_reg_weight=0.5))]) == {}
    with pytest.raises(ScalingError, match="at every size"):
        alpha_by_algorithm([made(at(num_samples=size)) for size in (10, 20)])


# Pictures


def texts(figure: Figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join([figure.get_suptitle(), *(axis.get_title() for axis in figure.axes), *legends])


def marks(axis: Axes) -> list[tuple[str, bool]]:
    """Of the rows of a forest plot, from the top: their mark, and whether it is filled."""
    drawn = [line for line in axis.lines if line.get_marker() in ("o", "D")]
    return [(str(line.get_marker()), line.get_markerfacecolor() != "white") for line in drawn]


def test_comparison_fills_what_differs_from_the_first_row() -> None:
    records = [*runs(), *runs(70.0, diversity_algorithm="PR"), *runs(60.5, (5.9, 6.0, 6.1), diversity_algorithm="ODCM")]
    for record, nudge in zip(records[3:], (0.02, 0.0, -0.02, 2.0, -1.0, -1.5)):
        record["phase1"]["spectrum"]["measures"][0]["value"] += nudge * 5
    figure = plot_comparison(records)
    filled = [[is_filled for _, is_filled in marks(axis)] for axis in figure.axes]
    assert filled == [[True, False], [False, False], [False, True]]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["MCDL", "PR", "ODCM"]
    assert labels[1].startswith("PR\nER 71.0 %, converged 25.0 %, PPL ")
    assert figure.axes[0].texts[0].get_text() == "reference"
    assert len(plot_comparison([made(phase2=False), made(at(context_dim=8), phase2=False)]).axes) == 2


def test_what_was_not_measured_is_a_dash() -> None:
    figure = plot_comparison([made(at(max_iterations=0)), made()])
    assert [text.get_text() for text in figure.axes[1].texts] == ["reference", "–"] and not marks(figure.axes[1])
    assert "converged –" in figure.axes[0].get_yticklabels()[0].get_text()


def test_spectra_have_a_panel_a_width() -> None:
    figure = plot_spectra([made(at(context_dim=width, seed=seed)) for width in (16, 8) for seed in SEEDS])
    assert [axis.get_title() for axis in figure.axes] == [
        f"Spectrum of validation contexts, C = {width}" for width in (8, 16)
    ]
    assert "MCDL, C = 16: 60.0, 60.0 %" in texts(figure) and "all equal" in texts(figure)
    shares = figure.axes[1].lines[0].get_ydata()
    assert np.sum(shares) == pytest.approx(100)


def test_progression_lists_the_highest_rank_first_and_colours_differ() -> None:
    points = points_of(one_axis_at_a_time(AXES))
    figure = plot_rank_progression([made(point, share=50.0 + number) for number, point in enumerate(points)])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "untrained: 55.0 %" and legend[-1] == "MCDL: 50.0 %"
    colours = {matplotlib.colors.to_hex(handle.get_color()) for handle in figure.legends[0].get_lines()}
    assert len(colours) == len(points)


def test_few_tokens_bound_the_rank_in_the_pictures() -> None:
    record = made(at(context_dim=100))
    record["phase1"]["effective_rank"] |= {"validation_tokens": 40, "validation_ceiling": 38.0}
    progression = plot_rank_progression([record])
    assert "white noise, as many tokens" in texts(progression)
    assert 38.0 in [line.get_ydata()[0] for line in progression.axes[0].lines]
    assert 100 / 40 in [line.get_ydata()[0] for line in plot_spectra([record]).axes[0].lines]
    assert "white noise" not in texts(plot_rank_progression([made()]))


def test_rank_against_perplexity_says_the_correlation() -> None:
    figure = plot_rank_against_perplexity(swept(5))
    found = rank_perplexity_correlation(swept(5))
    assert found.r is not None and found.r.text("{:+.3f}") in texts(figure)
    assert "5 configurations" in texts(
        figure
    ) and "chitchat, random, 56,000 training tokens, C = 500, seed 42" in texts(figure)


def test_an_axis_has_a_line_a_family_and_its_values_as_ticks() -> None:
    points = [at(num_samples=size, diversity_algorithm=name) for name in ("MCDL", "PR") for size in (10, 20, 80)]
    figure = plot_axis([made(point) for point in points], "num_samples")
    assert len(figure.axes) == 2 and figure.axes[0].get_xscale() == "log"
    assert list(figure.axes[0].get_xticks()) == [10, 20, 80]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MCDL", "PR"]
    with refused(
        "axis: expected a parameter in which records differ (diversity_algorithm, num_samples), given 'num_sample'"
    ):
        plot_axis([made(point) for point in points], "num_sample")


@pytest.mark.parametrize("slow, scale", [(21.0, "log"), (19.0, "linear")])
def test_costs_are_logarithmic_when_the_shortest_bar_would_vanish(slow: float, scale: str) -> None:
    rows = (("fast", 1.0, 0.9, 1.1), ("slow", slow, slow, slow))
    costs = [dict(zip(("name", "forward_backward_ms", "low", "high"), row)) for row in rows]
    figure = plot_loss_cost(costs, 1_000, 64)
    assert figure.axes[0].get_xscale() == scale and "1,000 random contexts, C = 64" in texts(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1 ms", f"{slow:g} ms"]


# The real thing

SMALL = Settings(
    data=DataConfig(num_samples=1, validation_range=(10, 12), selection_range=None, embeddings="random"),
    model=ModelConfig(context_dim=16, embed_dim=8),
    phase1=Phase1Config(
        min_iterations=1, max_iterations=2, check_interval=1, batch_tokens=400, min_last_batch=100,
        effective_rank_tokens=300, validation_passes=2,
    ),
    phase2=Phase2Config(max_epochs=1, effective_batch_size=256, head="blocks"),
    run=RunConfig(num_threads=1, device="cpu"),
)  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("diversity")
    folders = Folders(folder / "experiments", folder / "phase1", folder / "reference", folder / "data")
    runner, others = ExperimentRunner(folders), [{"diversity_algorithm": "PR"}, {"max_iterations": 0}]
    changes = [Variant(f"other {number}", "changed", one) for number, one in enumerate(others)]
    return [*Sweep(SMALL, grid({}), [1, 2], runner).run(), *Sweep(SMALL, changes, [2], runner).run()]


def test_real_records_give_every_figure(real: list[Record]) -> None:
    table = comparison_table(real)
    assert list(table.index) == ["MCDL", "PR", "untrained"]
    assert np.isfinite(table.loc["MCDL"].drop("diversity_algorithm").astype(float)).all()
    for group in groups_of(real):
        values = [record["phase2"]["best"]["validation_perplexity"] for record in group.records]
        assert table.loc[group.label, "PPL"] == pytest.approx(stats.gmean(values), rel=1e-5)
        mean = seed_mean(group, "ER %")
        assert mean is not None and mean.value == pytest.approx(table.loc[group.label, "ER %"])
    assert len(comparison_lines(real, "MCDL")) == 2


def test_every_picture_is_drawn_from_real_records(real: list[Record], tmp_path: Path) -> None:
    trained = real[:3]
    figures = [draw(trained) for draw in (plot_rank_progression, plot_spectra, plot_comparison)]
    figures += [plot_rank_progression(real), plot_spectra(real), plot_rank_against_perplexity(real)]
    for number, figure in enumerate(figures):
        assert save_figure(figure, tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
        assert "chitchat, random" in texts(figure) and "C = 16" in texts(figure)
