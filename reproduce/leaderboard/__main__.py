"""The open leaderboard: a new row is checked against the rules and put in; page, list and picture are made anew.

    python -m reproduce.leaderboard check FILES                      # says everything that is wrong; writes nothing
    python -m reproduce.leaderboard add FILES [--command "…"]        # the same, then puts the rows in
    python -m reproduce.leaderboard page                             # makes everything anew of the committed rows

FILES are the rows of one entry or several, one file a seed. ``--command`` is what makes them; it is not needed where
`python -m reproduce.controls --names NAME` does. The rules: docs/leaderboard.md. Trains nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from newllm_core.report.manifest import write_manifest
from newllm_core.report.style import save_figure
from newllm_core.runs.files import RunError, write_json, write_text
from reproduce import controls, results_tables
from reproduce.leaderboard.check import Checked, check_files
from reproduce.leaderboard.entries import board_record, is_known
from reproduce.leaderboard.page import page
from reproduce.leaderboard.picture import plot_boards
from reproduce.leaderboard.place import Place


def command_problems(checked: Checked, command: str | None) -> list[str]:
    """What is wrong with the command of the new rows, or with having none."""
    if command is None:
        names = {row["variant"]["name"] for row in checked.rows.values()}
        return [
            f'{name}: expected --command "…" that makes its rows, because reproduce.controls knows no such variant'
            for name in sorted(names)
            if not is_known(name)
        ]
    if not command.strip() or not command.isprintable() or "```" in command:
        return [f"--command: expected one line of text, given {command!r:.80}"]
    return []


def put_in(files: Sequence[Path], command: str | None, place: Place) -> list[str]:
    """Rows of ``files`` into ``place``, and all that is made of them; or, what is wrong, and nothing is written.

    Raises RunError where a row on the board was altered.
    """
    checked = check_files(files, place)
    problems = [*checked.problems, *command_problems(checked, command)]
    if problems:
        return problems
    for name, row in checked.rows.items():
        write_json(place.rows / name, row)
    entries = {(row["variant"]["name"], row["tokens"]["train"]) for row in checked.rows.values()}
    make_anew(place, {} if command is None else dict.fromkeys(entries, command.strip()))
    return []


def make_anew(place: Place, new_commands: dict[tuple[str, int], str] | None = None) -> None:
    """List, page, picture and checksums. Raises as ``entries.board_record``, before anything is written."""
    record = board_record(place, new_commands)
    figure = plot_boards(record["boards"])
    write_json(place.board, record)
    write_text(place.page, page(record))
    save_figure(figure, place.picture)
    if place == Place():  # whatever else of the repository is made of the rows
        controls.report(quiet=True)
        results_tables.write()
    write_manifest(place.reference)


def main(arguments: Sequence[str] | None = None, place: Place | None = None) -> None:
    """Exits with status 1 and everything that is wrong. ``place``: the repository's own."""
    given, place = _parsed(arguments), place or Place()
    try:
        if given.action == "page":
            make_anew(place)
            problems = []
        elif given.action == "check":
            problems = check_files(given.files, place).problems
        else:
            problems = put_in(given.files, given.command, place)
    except (RunError, ValueError) as error:  # a committed row or list that is not as it was
        sys.exit(str(error))
    if problems:
        sys.exit("\n".join([*problems, f"{len(problems)} wrong; nothing was written"]))
    print({"page": str(place.page), "check": "nothing is wrong", "add": f"in: {place.page}"}[given.action])


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.leaderboard", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="say everything that is wrong; write nothing")
    add = actions.add_parser("add", help="the same, then put the rows in")
    for action in (check, add):
        action.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a row of the leaderboard")
    add.add_argument("--command", metavar="TEXT", help="what makes these rows, if reproduce.controls does not")
    actions.add_parser("page", help="make everything anew of the committed rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
