"""The README's picture: the model, its controls and a GRU, from the committed rows; nothing is trained here.

    python -m reproduce.first_screen

Writes results/reference/readme.png and readme.svg.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from newllm_core.comparison.leaderboard import Standing, perplexity_ratio, standings
from newllm_core.report.forest import ForestLabel, ForestPanel, plot_forest
from newllm_core.report.style import BLUE, PLAIN_COLOUR, VERMILION, save_figure
from newllm_core.runs.files import REFERENCE_DIR
from newllm_core.studies.rows import read_rows

MODEL, CONTROL, NETWORK = "this model", "its controls", "trained end to end, or counted"
COLOURS = {MODEL: BLUE, CONTROL: PLAIN_COLOUR, NETWORK: VERMILION}
NUM_CONVERSATIONS = 80
# Rows by name, with the words for somebody who knows nothing yet.
SHOWN = {
    "gru-cache": ("GRU with a cache of recent tokens", NETWORK),
    "best": ("Contexts trained to predict, cache, all parts", MODEL),
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


def picture(found: Sequence[Standing]) -> Figure:
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


def main() -> None:
    rows = read_rows(REFERENCE_DIR / "leaderboard")
    found = standings([row for row in rows if row["config"]["data"]["num_samples"] == NUM_CONVERSATIONS])
    print(save_figure(picture(found), REFERENCE_DIR / "readme.png"))


if __name__ == "__main__":
    main()
