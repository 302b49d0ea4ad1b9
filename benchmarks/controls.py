"""The rows of `results/reference/controls.json`: controls and baselines on the embedded corpus, at 57,173 tokens.

    python -m benchmarks.controls --estimate                    # rows, finished rows, hours; runs nothing
    python -m benchmarks.controls                               # runs what is missing
    python -m benchmarks.controls --names gru lstm --seeds 42   # some of it
    python -m benchmarks.controls --samples 320                 # 230,000 tokens

Finished rows are committed under results/reference/contenders; table, rows by contender and picture are made anew from
all that are there. One thread, so that two lists can run side by side on two cores.
"""

import argparse
import os

from benchmarks.reference_experiments import REFERENCE, centre
from newllm_core.contender_estimate import estimate_contenders
from newllm_core.contender_list import GROUPS
from newllm_core.contender_table import perplexity_ratio, standings, standings_table
from newllm_core.contenders import run_contenders
from newllm_core.plots import save_figure
from newllm_core.plots_contenders import plot_standings
from newllm_core.runs import read_json, write_json, write_text
from newllm_core.series import vary

ROWS = REFERENCE / "contenders"
ALL = [name for group in GROUPS.values() for name in group]
SEEDS = [42, 43, 44]
PAIRED = ("trained", "untrained")
PAIRED_SEEDS = [42, 43, 44, 45, 46]  # issue 5: at least five pairs


def report() -> None:
    """Table, `controls.json` and a picture per number of tokens, from every committed row."""
    found = standings([read_json(path) for path in sorted(ROWS.glob("*.json"))])
    write_json(REFERENCE / "controls.json", {"rows": [one.record() for one in found]})
    table = standings_table(found, "untrained").to_string()
    lines = []
    for tokens in sorted({one.tokens for one in found}):
        here = {one.name: one for one in found if one.tokens == tokens}
        save_figure(plot_standings(list(here.values())), REFERENCE / f"controls_{tokens}.png")
        if set(PAIRED) <= set(here):
            ratio = perplexity_ratio(here["trained"], here["untrained"])
            lines.append(
                f"{tokens:,} tokens, {ratio.num_seeds} paired seeds: PPL trained / untrained {ratio.value:.3f} {ratio}"
            )
    write_text(REFERENCE / "controls.txt", "\n".join([table, "", *lines]) + "\n")
    print(table, *lines, sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 42 43 44, and 45 46 for trained and untrained")
    parser.add_argument("--samples", type=int, default=centre().data.num_samples, help="training conversations")
    parser.add_argument("--estimate", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    base = vary(centre(), "num_samples", arguments.samples)
    for name in arguments.names:
        seeds = arguments.seeds or (PAIRED_SEEDS if name in PAIRED else SEEDS)
        print(f"{name}: {estimate_contenders([name], base, seeds, ROWS)}", flush=True)
        if not arguments.estimate:
            run_contenders([name], base, seeds, ROWS)
    if not arguments.estimate:
        report()


if __name__ == "__main__":
    main()
