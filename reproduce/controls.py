"""The rows of `results/reference/controls.json`: controls and baselines on the embedded corpus, at 57,173 tokens.

    python -m reproduce.controls --estimate                    # rows, finished rows, hours; runs nothing
    python -m reproduce.controls                               # runs what is missing
    python -m reproduce.controls --report                      # table, sentences and pictures of what is there
    python -m reproduce.controls --names gru lstm --seeds 42   # some of it
    python -m reproduce.controls --samples 320                 # 259,763 tokens
    python -m reproduce.controls --names mine --out results/mine   # rows in a folder of your own, and no report
    python -m reproduce.controls --file mine.jsonl --out results/mine   # of your own conversations (docs/data.md)

Finished rows are committed under results/reference/leaderboard; table, rows by variant and picture are made anew from
all that are there. One thread, so that two sweeps can run side by side on two cores.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from newllm_core.comparison.leaderboard import (
    Standing,
    chosen_text,
    contexts_table,
    expectation_sentences,
    ratio_of,
    standings,
    standings_table,
)
from newllm_core.comparison.tables import readable_table
from newllm_core.config.hyperparameters import DataConfig
from newllm_core.config.schema import changed
from newllm_core.intervals import seeds_text
from newllm_core.report.leaderboard import group_pictures
from newllm_core.report.style import save_figure
from newllm_core.runs.files import write_json, write_text
from newllm_core.studies.rows import read_rows
from newllm_core.studies.runners import RowRunner
from newllm_core.studies.sweep import Sweep
from newllm_core.studies.variants import known_variants, variant
from reproduce.reference_experiments import REFERENCE, centre

ROWS = REFERENCE / "leaderboard"
SEEDS = [42, 43, 44]
REFERENCE_NAME = "gru-cache-ngrams"  # that growth and Brown hold the others against
PAIRED = ("trained", "untrained")
PAIRED_SEEDS = [42, 43, 44, 45, 46]  # at least five pairs
RATIOS = (
    PAIRED, ("shuffled", "last-token"), ("untrained", "last-token"), ("regularised", "regularised-untrained"),
    ("regularised", "regularised-last-token"), ("regularised-untrained", "regularised-last-token"),
    ("regularised", "kneser-ney-5"), ("contrastive", "regularised-untrained"),
    ("contrastive", "regularised-last-token"), ("contrastive", "kneser-ney-5"),
    ("best", "notes"), ("best", "gru"), ("best", "gru-cache"), ("best", "gru-cache-ngrams"),
    ("best-no-ngrams", "gru-cache"), ("best-alone", "gru"), ("best", "best-earlier"),
)  # fmt: skip


def report(*, quiet: bool = False) -> None:
    """Table, ratios, sentences, `controls.json` and pictures per number of tokens, from every committed row.

    ``quiet``: nothing is printed.
    """
    found = standings(read_rows(ROWS))
    write_json(REFERENCE / "controls.json", {"rows": [one.record() for one in found]})
    lines = [
        readable_table(table).to_string() for table in (standings_table(found, "untrained"), contexts_table(found))
    ]
    for tokens in sorted({one.tokens for one in found}):
        here = {one.name: one for one in found if one.tokens == tokens}
        lines += ["", *ratio_lines(here)]
        for group, figure in group_pictures(list(here.values())).items():
            ending = "" if group == "leaderboard" else f"_{group}"
            save_figure(figure, REFERENCE / f"controls_{tokens}{ending}.png")
    lines += ["", *expectation_sentences(found)]
    write_text(REFERENCE / "controls.txt", "\n".join(lines) + "\n")
    if not quiet:
        print(*lines, sep="\n", flush=True)


def ratio_lines(here: Mapping[str, Standing]) -> list[str]:
    """The ratios that the README quotes, of rows with the same number of tokens."""
    lines = []
    for one, other in RATIOS:
        if {one, other} <= here.keys():
            mine, theirs, ratio = ratio_of(here[one], here[other])
            lines.append(
                f"{mine.tokens:,} tokens, {seeds_text(ratio)}, chosen on {chosen_text(mine, theirs)}: "
                f"PPL {one} / {other} {ratio.text()}: {ratio.verdict}"
            )
    return lines


def of_file(path: Path | None) -> dict[str, str]:
    """The parameters that name another corpus; none for the embedded one."""
    return {} if path is None else {"corpus": "file", "conversations_file": str(path)}


def main() -> None:
    names = [name for name, one in known_variants().items() if one.group != "ceilings"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 42 43 44, and 45 46 for trained and untrained")
    parser.add_argument("--samples", type=int, default=centre().data.num_samples, help="training conversations")
    parser.add_argument("--out", type=Path, default=ROWS, help="folder of the rows; default: the committed ones")
    parser.add_argument("--file", type=Path, help="another corpus, .jsonl or .parquet; with --out")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--report", action="store_true", help="of the committed rows; runs nothing")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    if arguments.file is not None and arguments.out == ROWS:
        parser.error("--file: rows of another corpus are not the committed ones; expected --out FOLDER")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The notes' configuration keeps its own rule, which its variant says.
    text = {"num_samples": arguments.samples, "selection_range": DataConfig.selection_range, **of_file(arguments.file)}
    base = changed(centre(), text)
    for name in arguments.names:
        seeds = arguments.seeds or (PAIRED_SEEDS if name in PAIRED else SEEDS)
        sweep = Sweep(base, [variant(name)], seeds, RowRunner(arguments.out))
        print(f"{name}: {sweep.estimate()}", flush=True)
        if not arguments.estimate:
            sweep.run()
    if not arguments.estimate and arguments.out == ROWS:
        report()


if __name__ == "__main__":
    main()
