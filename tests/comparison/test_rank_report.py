"""The study of rank and perplexity: its statistics on planted figures, its page, its configurations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from newllm_core.runs.files import read_json
from reproduce import rank_and_perplexity, rank_report
from reproduce.rank_report import (
    MEASURES,
    PERPLEXITY,
    correlations,
    page_of,
    rank_correlation,
    reproducibility,
    share_of_objective,
    write_page,
)

CLOUD = {"context_dim": 576, "points": 4000, "dimension": 100.0}


def planted(num_variants: int = 12, seeds: tuple[int, ...] = (42, 43)) -> list[dict[str, Any]]:
    """Effective rank falls as perplexity rises, participation ratio rises with it, dimension is noise."""
    noise = np.random.default_rng(0)
    common = {"corpus": "chitchat", "embeddings": "random", "tokens": 900, "train_tokens": 1000, "context_dim": 576}
    return [
        {
            **common, "variant": f"v{number}", "objective": "contrastive", "seed": seed, PERPLEXITY: 100.0 + number,
            "effective_rank": 50.0 - number, "participation_ratio": 5.0 + number,
            "intrinsic_dimension": noise.normal(),
        }
        for seed in seeds
        for number in range(num_variants)
    ]  # fmt: skip


def test_the_correlation_is_that_of_ranks_and_its_interval_knows_noise() -> None:
    generator = np.random.default_rng(1)
    one, noise = generator.normal(size=(2, 40))
    assert rank_correlation(one, np.exp(3 * one)).value == pytest.approx(1.0)
    unrelated = rank_correlation(one, noise)
    assert unrelated.interval is not None and unrelated.interval[0] < 0 < unrelated.interval[1]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_reproducibility_is_the_share_of_variance_that_configurations_have(share: float) -> None:
    generator = np.random.default_rng(2)
    configuration = np.sqrt(share) * generator.normal(size=(400, 1))
    found = reproducibility((configuration + np.sqrt(1 - share) * generator.normal(size=(400, 3))).tolist())
    assert found.value == pytest.approx(share, abs=0.07)
    assert found.interval is not None and found.interval[0] < share < found.interval[1]


def test_the_objectives_share_is_one_where_they_alone_decide_and_none_where_they_do_not() -> None:
    rows = [
        {"variant": f"{objective}{number}", "objective": objective, PERPLEXITY: value}
        for objective, value in (("a", 300.0), ("b", 500.0))
        for number in range(3)
    ]
    assert share_of_objective(rows, PERPLEXITY) == pytest.approx(1)
    mixed = [{**row, PERPLEXITY: 300.0 + 50 * (place % 3)} for place, row in enumerate(rows)]
    assert share_of_objective(mixed, PERPLEXITY) == pytest.approx(0, abs=1e-12)


def test_the_page_tells_signs_and_lists_the_best_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_report, "PAGE", tmp_path / "rank.md")
    monkeypatch.setattr(rank_report, "PICTURE", tmp_path / "rank.png")
    write_page(planted(), CLOUD, 99)
    page = (tmp_path / "rank.md").read_text(encoding="utf-8")
    assert f"| {MEASURES['effective_rank']} | -1.00 [" in page
    assert f"| {MEASURES['participation_ratio']} | 1.00 [" in page
    assert page.index("| v0 |") < page.index("| v11 |")
    with pytest.raises(ValueError, match="at least 8 configurations, given 4 rows"):
        write_page(planted(2), CLOUD, 99)


def test_within_an_objective_widths_are_alike() -> None:
    wide = [{**row, "variant": f"wide {row['variant']}", "context_dim": 768} for row in planted(4)]
    found = rank_report.rows_by_objective([*planted(), *wide], 576)
    assert [row["context_dim"] for row in found["contrastive"]] == [576] * 24
    assert not rank_report.rows_by_objective([*planted(), *wide], 768), "four are too few"


def test_the_committed_page_is_that_of_the_committed_rows() -> None:
    record = read_json(rank_and_perplexity.OUTPUT)
    rows, cloud = record["rows"], record["dimension_of_a_normal_cloud"]
    again = page_of(rows, cloud, rank_and_perplexity.num_planned(), correlations(rows))
    assert rank_report.PAGE.read_text(encoding="utf-8") == again, "python -m reproduce.rank_and_perplexity --page"


def test_every_configuration_is_possible_and_another_run() -> None:
    assert len(rank_and_perplexity.sweep_of(42).points) == len(rank_and_perplexity.variants()) >= 30
