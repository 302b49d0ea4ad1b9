"""How every contender grows: rows at 10 … 2,560 conversations, α of each, its page and its picture.

    python -m reproduce.growth --estimate                         # rows, finished rows, hours; runs nothing
    python -m reproduce.growth                                    # runs what is missing, smallest sizes first
    python -m reproduce.growth --names best gru-cache-ngrams --sizes 640 1280 --seeds 42
    python -m reproduce.growth --report                           # analysis, picture and page of what is there
    python -m reproduce.growth --page                             # the page alone, as after a change of the rule
    python -m reproduce.growth --folder trial --sizes 5 10 20 --names best kneser-ney-5
    python -m reproduce.growth --folder mine --file mine.jsonl    # the same study of your own conversations

Hyperparameters follow the rule of `newllm_core/studies/size_rule.py`. Rows of the leaderboard's size are the
leaderboard's own, in its folder; all others are in results/reference/growth. Conversations 980–999 choose, 1,000–1,019
judge. One thread; an interrupted row goes on from its last checkpoint. ``--folder`` keeps a trial apart, page included.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from newllm_core.experiment.estimate import duration_text
from newllm_core.report.growth import plot_growth
from newllm_core.report.style import save_figure
from newllm_core.runs.files import write_json
from newllm_core.scaling.growth import analyse_growth, growth_record
from reproduce.controls import REFERENCE_NAME
from reproduce.growth_page import write_page
from reproduce.growth_plan import NAMES, SEEDS, USUAL, Plan, sizes_of, training_tokens


def run(plan: Plan, names: Sequence[str], sizes: Sequence[int] | None, seeds: Sequence[int], *, estimate: bool) -> None:
    """Smallest size first, so that what an evening leaves is whole sizes. ``estimate``: costs alone, added up."""
    wanted = sorted((size, number) for number, name in enumerate(names) for size in sizes_of(name, sizes))
    seconds = 0.0
    for size, number in wanted:
        sweep = plan.sweep(names[number], size, training_tokens(names[number], size, plan.file), seeds)
        expected = sweep.estimate()
        seconds += expected.cost.seconds
        print(f"{names[number]}, {size:,} conversations: {expected}", flush=True)
        if not estimate:
            sweep.run()
    if estimate:
        print(f"all that is missing: at most about {duration_text(seconds)} of one core")


def report(plan: Plan) -> None:
    """Analysis, picture and page of every row that is there. Raises ComparisonError where there is none."""
    rows = plan.rows()
    analysis = analyse_growth(rows, NAMES, REFERENCE_NAME)
    write_json(plan.analysis, growth_record(analysis))
    save_figure(plot_growth(analysis), plan.picture)
    print(f"{len(rows)} rows: {write_page(plan)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=USUAL)
    parser.add_argument("--sizes", type=int, nargs="+", help="training conversations; default: 10, 20, … 2560")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--folder", type=Path, help="of rows and report, in place of the committed ones")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--file", type=Path, help="another corpus, .jsonl or .parquet (docs/data.md); with --folder")
    parser.add_argument("--report", action="store_true", help="of the rows that are there; runs nothing")
    parser.add_argument("--page", action="store_true", help="from the last report's analysis; runs nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    plan = Plan(arguments.folder, arguments.file)
    if arguments.page:
        print(write_page(plan))
        return
    if not arguments.report:
        run(plan, arguments.names, arguments.sizes, arguments.seeds, estimate=arguments.estimate)
    if not arguments.estimate:
        report(plan)


if __name__ == "__main__":
    main()
