"""The reference results that notebooks open with: a picture and a few sentences, from the committed records.

Nothing is trained here, so each takes seconds; the notebook behind it makes the same at a size for two cores.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.groups import Group, groups_of
from newllm_core.comparison.leaderboard import Standing, standings
from newllm_core.comparison.paired import paired_difference, rank_perplexity_correlation
from newllm_core.intervals import NOT_MEASURED, interval_text, seeds_text
from newllm_core.report.comparison import plot_comparison, plot_rank_against_perplexity
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.phases import plot_phase1
from newllm_core.report.scaling import plot_perplexity
from newllm_core.report.style import BLUE, PLAIN_COLOUR, VERMILION, as_png, new_axes
from newllm_core.runs.files import REFERENCE_DIR, read_json
from newllm_core.scaling.analysis import analyse

Record = dict[str, Any]
NUM_CONVERSATIONS = 80
NOTES_LOSS = "MCDL"
DIVERSITY_ITERATIONS = 10  # every loss as many: early stopping would give some three times the steps of others
_WINDOW, _RESAMPLES = 4, 400  # sizes of a window; the bootstrap's intervals are not shown here

MODEL, CONTROL, NETWORK = "this model", "its controls", "trained end to end, or counted"
COLOURS = {MODEL: BLUE, CONTROL: PLAIN_COLOUR, NETWORK: VERMILION}
# Rows by name, with the words for somebody who knows nothing yet.
SHOWN = {
    "gru-cache-ngrams": ("GRU with the same cache and counts", NETWORK),
    "best": ("Contexts trained to predict, cache, counts, all parts", MODEL),
    "gru": ("GRU", NETWORK),
    "contrastive": ("Contexts trained to predict", MODEL),
    "best-untrained": ("All parts, but contexts never trained", CONTROL),
    "kneser-ney-5": ("Counting five tokens (Kneser-Ney)", NETWORK),
    "last-token": ("No context: the last token alone", CONTROL),
    "untrained": ("Contexts never trained", CONTROL),
    "trained": ("Contexts trained towards a fixed point", MODEL),
    "shuffled": ("Contexts of other tokens", CONTROL),
}
REFERENCE = "untrained"
_READOUTS = {
    "notes": (PLAIN_COLOUR, "the notes' own: stale contexts, batches in order"),
    "trained": (VERMILION, "contexts trained towards a fixed point"),
    "best": (BLUE, "contexts trained to predict, all parts"),
}


@dataclass(frozen=True)
class Reference:
    """A picture, and what it shows in sentences."""

    figure: Figure
    lines: Sequence[str]

    def show(self) -> None:
        """Display the picture, print the sentences."""
        display(Image(as_png(self.figure)))
        print(*self.lines, sep="\n")


def show_reference(name: str) -> None:
    """What is known of a notebook's question, by a name in REFERENCES. Raises ValueError for another one."""
    if name not in REFERENCES:
        raise ValueError(f"reference: expected one of {', '.join(REFERENCES)}, given {name!r}")
    REFERENCES[name]().show()


def leaderboard() -> dict[str, Standing]:
    """The committed rows of the larger text, by name."""
    rows = _records("leaderboard")
    found = standings([row for row in rows if row["config"]["data"]["num_samples"] == NUM_CONVERSATIONS])
    return {one.name: one for one in found}


def _records(folder: str) -> list[Record]:
    return [read_json(path) for path in sorted((REFERENCE_DIR / folder).glob("*.json"))]


def phase1() -> Reference:
    """Notebook 2: contexts that spread and forget, and what that is worth."""
    record, there = read_json(REFERENCE_DIR / "runs" / "cpu.json"), leaderboard()
    rank, figures = record["phase1"]["effective_rank"], record["phase1"]
    before, after = (100 * rank[name] / rank["context_dim"] for name in ("validation_untrained", "validation"))
    ratio = perplexity_ratio(there["trained"], there["untrained"])
    lines = [
        f"{record['tokens']['train']:,} training tokens: effective rank {before:.0f} % of C untrained, {after:.0f} % "
        f"after {figures['best_iteration']} iterations;",
        f"a difference between two starts shrinks to a millionth in {figures['forgetting']['horizon']} tokens.",
        f"Worth for prediction: perplexity × {ratio.text('{:.2f}')} of an untrained block's, {seeds_text(ratio)}: "
        f"{ratio.verdict}.",
    ]
    return Reference(plot_phase1(record), lines)


def phase2() -> Reference:
    """Notebook 3: perplexity per epoch of three models."""
    there = leaderboard()
    figure, (axis,) = new_axes(1, width=7, height=3.8)
    for name, (colour, words) in _READOUTS.items():
        one = there[name]
        for number, row in enumerate(one.records):
            epochs = row["details"]["epochs"]
            label = None if number else f"{words}: {one.perplexity.value:.0f}"
            axis.plot(range(1, len(epochs) + 1), epochs, "o-", ms=3, lw=1.2, color=colour, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(
        xlabel="epoch of Phase 2",
        ylabel="perplexity on the text that chooses",
        title="Perplexity (lower is better), a line a seed",
    )
    axis.legend(fontsize=8, title="on the validation text, geometric mean over seeds")
    figure.suptitle(_row_source(there["trained"]), fontsize=9)
    return Reference(figure, [_standing_line(there[name], words) for name, (_, words) in _READOUTS.items()])


def _standing_line(one: Standing, words: str) -> str:
    return f"{words}: perplexity {one.perplexity.text('{:.0f}')}, {seeds_text(one.perplexity)}"


def _row_source(one: Standing) -> str:
    row = one.records[0]
    return (
        f"{row['corpus']}, {row['embeddings']}, {one.tokens:,} training and {row['tokens']['validation']:,} "
        "validation tokens"
    )


def scaling() -> Reference:
    """Notebook 4: perplexity against data, and α per window."""
    records = [record for record in _records("experiments") if not _compares_losses(record)]
    analysis = analyse(records, _WINDOW, _RESAMPLES)
    lines = [
        f"{row.samples[0]} to {row.samples[-1]} conversations ({row.tokens[0]:,.0f} to {row.tokens[-1]:,.0f} tokens): "
        f"α = {row.alpha:.3f} {interval_text(row.alpha_interval)}"
        for row in analysis.progression.rows
    ]
    return Reference(plot_perplexity(analysis), [*lines, f"{len(analysis.sizes[0].seeds)} seeds; intervals are 95 %."])


def diversity() -> Reference:
    """Notebook 5: every loss against the notes' own."""
    records = _of_losses()
    notes, *others = groups_of(records)
    return Reference(plot_comparison(records), [_loss_line(group, notes) for group in others])


def rank() -> Reference:
    """Notebook 5's last question: perplexity against effective rank."""
    records = _of_losses()
    return Reference(plot_rank_against_perplexity(records), [str(rank_perplexity_correlation(records))])


def _of_losses() -> list[Record]:
    """Every loss with every seed, the notes' own first."""
    records = [record for record in _records("experiments") if _compares_losses(record)]
    return sorted(records, key=lambda record: record["config"]["phase1"]["diversity_algorithm"] != NOTES_LOSS)


def _loss_line(group: Group, other: Group) -> str:
    rank, ratio = paired_difference(group, other), perplexity_ratio(group, other)
    points = NOT_MEASURED if rank is None else f"{rank.text('{:+.1f}')} points"
    return f"{group.label} against {other.label}: effective rank {points}, perplexity × {ratio.text()}: {ratio.verdict}"


def _compares_losses(record: Record) -> bool:
    return bool(record["config"]["phase1"]["max_iterations"] == DIVERSITY_ITERATIONS)


def controls() -> Reference:
    """Notebook 6, and the README's picture: the model, its controls and a GRU."""
    there = leaderboard()
    pairs = (("trained", "untrained"), ("best", "best-untrained"), ("best", "gru-cache-ngrams"))
    ratios = [(one, other, perplexity_ratio(there[one], there[other])) for one, other in pairs]
    lines = [
        f'"{SHOWN[one][0]}" over "{SHOWN[other][0]}": perplexity × {ratio.text("{:.2f}")}, {ratio.verdict}'
        for one, other, ratio in ratios
    ]
    return Reference(plot_controls(there.values()), lines)


def plot_controls(found: Iterable[Standing]) -> Figure:
    """Perplexity of each row of SHOWN over that of REFERENCE, best on top. Raises KeyError for a missing row."""
    there = {one.name: one for one in found}
    shown = sorted((there[name] for name in SHOWN), key=lambda one: one.perplexity.value)
    labels = [
        ForestLabel(f"{SHOWN[one.name][0]}: {one.perplexity.value:.0f}", kind=SHOWN[one.name][1]) for one in shown
    ]
    ratios = [None if one.name == REFERENCE else perplexity_ratio(one, there[REFERENCE]) for one in shown]
    panel = ForestPanel(
        "Perplexity (after the name), over that of contexts never trained",
        "ratio, 95 % interval (left: better)", ratios, reference=[one.name for one in shown].index(REFERENCE),
    )  # fmt: skip
    row = shown[0].records[0]
    source = (
        f"human chat, {shown[0].tokens:,} training and {row['tokens']['validation']:,} validation tokens; "
        "paired by seed and conversation"
    )
    return plot_forest(labels, [panel], source, COLOURS)


REFERENCES: Mapping[str, Callable[[], Reference]] = {
    "phase1": phase1, "phase2": phase2, "scaling": scaling, "diversity": diversity, "rank": rank, "controls": controls,
}  # fmt: skip
