"""Page and picture of `reproduce.rank_and_perplexity`: correlations over configurations, reproducibility over seeds."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from newllm_core.intervals import CONFIDENCE, Estimate, Floats, interval_text
from newllm_core.report.style import LINE_COLOURS, new_axes, save_figure
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, write_text

PAGE, PICTURE = PROJECT_ROOT / "docs/rank.md", REFERENCE_DIR / "rank_and_perplexity.png"
MEASURES = {
    "effective_rank": "effective rank", "participation_ratio": "participation ratio",
    "intrinsic_dimension": "intrinsic dimension (TwoNN)",
}  # fmt: skip
PERPLEXITY = "validation_perplexity"
_PUBLISHED = ("effective_rank", "intrinsic_dimension")  # of which public work speaks
MIN_VARIANTS = 8  # of an objective, for a correlation within it
_DRAWS, _SEED = 4000, 42
Rows = Sequence[Mapping[str, Any]]


def means(rows: Rows, name: str) -> tuple[Floats, list[str]]:
    """A figure's mean over seeds, of each variant `[v]`, and the variants' objectives."""
    values, objectives = defaultdict[str, list[float]](list), dict[str, str]()
    for row in rows:
        values[row["variant"]].append(row[name])
        objectives[row["variant"]] = row["objective"]
    return np.array([np.mean(one) for one in values.values()]), [objectives[one] for one in values]


def rank_correlation(one: Floats, other: Floats) -> Estimate:
    """Spearman's, over configurations, with the bootstrap's percentile interval; both `[v]`, v >= 3."""

    def statistic(first: Floats, second: Floats, axis: int = -1) -> Floats:
        ranks = [stats.rankdata(values, axis=axis) for values in (first, second)]
        first, second = (stats.zscore(values, axis=axis) for values in ranks)
        mean: Floats = (first * second).mean(axis=axis)
        return mean

    found = stats.bootstrap(
        (one, other), statistic, paired=True, n_resamples=_DRAWS, confidence_level=CONFIDENCE, method="percentile",
        rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    interval = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return Estimate(float(statistic(one, other)), interval, no_difference=0.0)


def reproducibility(groups: Sequence[Sequence[float]]) -> Estimate:
    """Share of a figure's variance that is the configuration's, not the seed's: ICC(1) (Shrout & Fleiss 1979).

    ``groups``: a configuration's values over seeds, equally many, at least 2. At most 1; the interval is a bootstrap's
    over configurations.
    """
    values = np.array(groups)

    def statistic(chosen: Any) -> float:
        sample = values[chosen]
        within = sample.var(axis=1, ddof=1).mean()
        between = sample.mean(axis=1).var(ddof=1)  # holds within / k of it
        configuration = between - within / sample.shape[1]
        return float(configuration / (configuration + within))

    found = stats.bootstrap(
        (np.arange(len(values)),), statistic, vectorized=False, n_resamples=_DRAWS, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    interval = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return Estimate(statistic(np.arange(len(values))), interval)


def share_of_objective(rows: Rows, name: str) -> float:
    """Of a figure's variance over configurations, what lies between objectives: eta squared, 0 … 1; of perplexity its
    logarithm's."""
    values, objectives = means(rows, name)
    figures, groups = np.log(values) if name == PERPLEXITY else values, np.array(objectives)
    within = sum(
        float(((figures[groups == one] - figures[groups == one].mean()) ** 2).sum()) for one in set(objectives)
    )
    return 1 - within / float(((figures - figures.mean()) ** 2).sum())


def _shares(rows: Rows) -> str:
    labels = {PERPLEXITY: "log perplexity", **MEASURES}
    found = ", ".join(f"{label} {100 * share_of_objective(rows, name):.0f} %" for name, label in labels.items())
    groups, count = len({row["objective"] for row in rows}), _num_variants(rows)
    return f"{found};\nwhere groups are dealt out at random, {100 * (groups - 1) / (count - 1):.0f} % on average"


def _verdict(found: Estimate) -> str:
    signs = "above zero" if found.value > 0 else "below zero"
    return f"{_text(found)}, {signs if found.is_distinguishable else 'not distinguishable from none'}"


def groups_of(rows: Rows, name: str) -> list[list[float]]:
    """Values over seeds of the variants that have all seeds."""
    values = defaultdict[str, list[float]](list)
    for row in rows:
        values[row["variant"]].append(row[name])
    seeds = len({row["seed"] for row in rows})
    return [one for one in values.values() if len(one) == seeds]


def correlations(rows: Rows) -> dict[str, Estimate]:
    """Of each measure with perplexity, over the rows' configurations.

    Raises ValueError for fewer than MIN_VARIANTS of them.
    """
    if _num_variants(rows) < MIN_VARIANTS:
        raise ValueError(f"expected rows of at least {MIN_VARIANTS} configurations, given {len(rows)} rows")
    perplexities, _ = means(rows, PERPLEXITY)
    return {name: rank_correlation(means(rows, name)[0], perplexities) for name in MEASURES}


def rows_by_objective(rows: Rows, width: float) -> dict[str, Rows]:
    """Of contexts of ``width`` components: a wider one can have more rank, and predicts otherwise too."""
    alike = [row for row in rows if row["context_dim"] == width]
    found = {
        name: [row for row in alike if row["objective"] == name] for name in dict.fromkeys(means(rows, PERPLEXITY)[1])
    }
    return {name: own for name, own in found.items() if _num_variants(own) >= MIN_VARIANTS}


def _num_variants(rows: Rows) -> int:
    return len({row["variant"] for row in rows})


def _table(rows: Rows, width: float, over_all: Mapping[str, Estimate]) -> str:
    inner = rows_by_objective(rows, width)
    within = {name: correlations(own) for name, own in inner.items()}
    several = len({row["seed"] for row in rows}) > 1
    heads = [f"all ({_num_variants(rows)})", *(f"{name} ({_num_variants(own)})" for name, own in inner.items())]
    lines = [f"| measure | {' | '.join(heads)} | over seeds |", "|---" * (2 + len(heads)) + "|"]
    for name, label in MEASURES.items():
        found = [over_all[name], *(one[name] for one in within.values())]
        again = _text(reproducibility(groups_of(rows, name))) if several else "—"
        lines.append(f"| {label} | " + " | ".join(map(_text, found)) + f" | {again} |")
    if several:
        lines.append(
            f"| perplexity | {' | '.join('—' for _ in range(1 + len(inner)))} | "
            f"{_text(reproducibility(groups_of(rows, PERPLEXITY)))} |"
        )
    return "\n".join(lines)


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} {interval_text(estimate.interval, '{:.2f}')}"


def _all_rows(rows: Rows) -> str:
    columns = [*MEASURES, PERPLEXITY]
    figures = {name: means(rows, name)[0] for name in columns}
    names = list(dict.fromkeys(row["variant"] for row in rows))
    order = np.argsort(figures[PERPLEXITY])
    lines = [f"| Phase 1 | {' | '.join(MEASURES.values())} | PPL |", "|---" * (2 + len(MEASURES)) + "|"]
    lines += [f"| {names[i]} | " + " | ".join(f"{figures[name][i]:.1f}" for name in columns) + " |" for i in order]
    return "\n".join(lines)


def plot(rows: Rows, over_all: Mapping[str, Estimate]) -> Figure:
    """PPL against each measure, a point a configuration, a colour an objective; ``over_all``: ``correlations``."""
    figure, panels = new_axes(len(MEASURES), width=4.2, height=3.8)
    perplexities, objectives = means(rows, PERPLEXITY)
    for axis, (name, label) in zip(panels, MEASURES.items(), strict=True):
        values, _ = means(rows, name)
        for colour, group in zip(LINE_COLOURS, dict.fromkeys(objectives)):
            chosen = np.array([objective == group for objective in objectives])
            axis.scatter(values[chosen], perplexities[chosen], color=colour, label=group, s=22)
        axis.set(xlabel=f"{label} of contexts", ylabel="validation PPL, same readout")
        axis.set_title(f"Spearman {_text(over_all[name])}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def write_page(rows: Rows, normal_cloud: Mapping[str, float], planned: int) -> None:
    """With its picture; arguments as ``page_of``, errors as ``correlations``."""
    over_all = correlations(rows)
    write_text(PAGE, page_of(rows, normal_cloud, planned, over_all))
    save_figure(plot(rows, over_all), PICTURE)


def page_of(rows: Rows, normal_cloud: Mapping[str, float], planned: int, over_all: Mapping[str, Estimate]) -> str:
    """
    Args:
        normal_cloud: what the dimension's estimate sees of one, with its width and number of points.
        planned: rows, with those that are missing.
        over_all: ``correlations`` of the rows.
    """
    first, seeds = rows[0], Counter(row["seed"] for row in rows)
    rank, dimension = (over_all[name] for name in _PUBLISHED)
    return _PAGE.format(
        configurations=_num_variants(rows), shares=_shares(rows),
        complete=len(groups_of(rows, PERPLEXITY)), there=len(rows), planned=planned,
        seeds=", ".join(f"{seed} ({count} of them)" for seed, count in sorted(seeds.items())),
        rank=_verdict(rank), dimension=_verdict(dimension),
        train_tokens=f"{first['train_tokens']:,}", tokens=f"{first['tokens']:,}", corpus=first["corpus"],
        embeddings=first["embeddings"], table=_table(rows, normal_cloud["context_dim"], over_all), rows=_all_rows(rows),
        width=normal_cloud["context_dim"], seen=normal_cloud["dimension"], points=f"{normal_cloud['points']:,}",
    )  # fmt: skip


_PAGE = """# Rank, dimension and perplexity

Does the rank of contexts tell how well they predict? {configurations} ways of Phase 1 under one readout, that of the
`best` profile without its cache and n-grams, and with one layer: {train_tokens} training tokens of {corpus}, embeddings
{embeddings}, seeds {seeds}; measures on the {tokens} validation contexts that perplexity is measured
on, TwoNN on at most {points} of them. The effective rank is of the contexts as they are, the participation ratio of the
same with their mean taken off. Made by `python -m reproduce.rank_and_perplexity`, of whose {planned} runs {there} are
there.

![Perplexity against three measures of the contexts](../results/reference/rank_and_perplexity.png)

Spearman's correlation with perplexity over configurations (means over seeds; below zero: more rank, better), 95 %
intervals by the bootstrap over configurations; within an objective too, since objectives differ in both, and there at
C = {width:.0f} alone, since wider contexts can have more rank. The last column, of the {complete} configurations
with all seeds, is the share of a figure's variance that is the configuration's and not the seed's, ICC(1).

{table}

**What decides perplexity is the objective.** Of the variance over configurations so much lies between the four
colours: {shares}.

**Beside public work of 2026.** NextLat finds lower rank with better models, a correlation above zero; here that of the
effective rank is {rank}.
A study of 260 models (TMLR) finds intrinsic dimension the most reliable measure; here its correlation is
{dimension}; how far seeds leave each measure alone is in the last
column. TwoNN looks for neighbours among some thousand contexts, and is known to fall short of high dimensions: of a
normal cloud in {width:.0f} dimensions it sees {seen:.0f}.

## Configurations, best first

{rows}
"""
