"""The results page: every run below a folder in one file, and three lines of what came out.

python -m newllm_core.report                        # results/ -> results/index.html
python -m newllm_core.report results/reference      # the committed records, each held against their list, SHA256SUMS
python -m newllm_core.report results --embed        # pictures inside the file, so that it can be sent away
python -m newllm_core.report --tensorboard logs     # also the steps of every run, for `tensorboard --logdir logs`
python -m newllm_core.report --mlflow sqlite:///mlflow.db    # the same for MLflow, which has to be installed
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from newllm_core.report.found_runs import closing_lines, find_runs
from newllm_core.report.manifest import MANIFEST_NAME, manifest_problems
from newllm_core.report.page import PAGE_NAME, results_page
from newllm_core.report.tracking import log_mlflow, write_tensorboard
from newllm_core.runs.files import RESULTS_DIR, write_text


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 for a folder that is not there, or whose records are not those of its list."""
    parser = argparse.ArgumentParser(
        prog="python -m newllm_core.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS_DIR, help="of results (results/)")
    parser.add_argument("--embed", action="store_true", help="pictures inside the file instead of links to them")
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard's files there too")
    parser.add_argument("--mlflow", metavar="URI", help="log runs that are not there yet to this tracking server")
    arguments = parser.parse_args(words)
    folder: Path = arguments.folder
    if not folder.is_dir():
        print(f"{folder}: expected a folder of results, found none; a run makes one", file=sys.stderr)
        return 1
    runs, unusable = find_runs(folder)
    notebooks = sorted(path for path in folder.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    page = folder / PAGE_NAME
    write_text(page, results_page(folder, runs, unusable, notebooks, embed=arguments.embed))
    if arguments.tensorboard:
        for run in runs:
            write_tensorboard(run, arguments.tensorboard, folder)
    if arguments.mlflow:
        print(f"MLflow: {log_mlflow(runs, arguments.mlflow)} new runs")
    print(*closing_lines(runs, unusable, len(notebooks)), f"All of it, with pictures: {page}", sep="\n")
    problems = _problems_of_committed(folder)
    print(*problems, sep="", end="", file=sys.stderr)
    return int(bool(problems))


def _problems_of_committed(folder: Path) -> list[str]:
    """Of the committed records below, which have a list."""
    places = [place for place in (folder, folder / "reference") if (place / MANIFEST_NAME).is_file()]
    return [f"{problem}\n" for place in places for problem in manifest_problems(place)]


if __name__ == "__main__":
    sys.exit(main())
