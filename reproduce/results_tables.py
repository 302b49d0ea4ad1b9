"""The tables of docs/results.md, from the committed records; nothing is trained here.

    python -m reproduce.results_tables            # writes them anew, each between its two marks
    python -m reproduce.results_tables --check    # status 1 where the page does not say what the records say

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a key of TABLES. The prose around them is
written by hand.
"""

import argparse
import sys
from collections.abc import Callable

from newllm_core.runs.files import PROJECT_ROOT, write_text
from reproduce.tables import rows, studies
from reproduce.tables.text import filled

PAGE = PROJECT_ROOT / "docs" / "results.md"

TABLES: dict[str, Callable[[], str]] = {
    "leaderboard": lambda: rows.leaderboard(57_173),
    "leaderboard-more-text": lambda: rows.leaderboard(259_763),
    "ratios": rows.ratios,
    "flattered": rows.flattered,
    "brown": rows.brown,
    "objectives": lambda: rows.group("objectives"),
    "contexts": rows.contexts,
    "parts": lambda: rows.group("parts"),
    "decisions": lambda: rows.group("decisions"),
    "profiles": studies.profiles,
    "context-source": studies.context_source,
    "scaling": studies.scaling,
    "diversity": studies.diversity,
    "speed": studies.speed,
    "few-tokens": studies.few_tokens,
    "whole-corpus": studies.whole_corpus,
}


def write() -> None:
    """Every table of the page anew."""
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), TABLES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    if not arguments.check:
        write()
    elif filled(before, TABLES) != before:
        sys.exit(f"{PAGE}: not what the records say; python -m reproduce.results_tables writes it anew")
    print(PAGE)


if __name__ == "__main__":
    main()
