"""A new entry held against the rules: each of its rows by itself, then all of them with those on the board."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.leaderboard import standings
from newllm_core.runs.files import RunError, read_json
from newllm_core.studies.row_keys import check_row_record
from reproduce.leaderboard.place import Place, Record, file_name
from reproduce.leaderboard.rules import Board, board_of, row_problems


@dataclass
class Checked:
    """``rows``: those that are records at all, by the name that they will have; ``problems``: of these and others."""

    rows: dict[str, Record] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_files(files: Iterable[Path], place: Place) -> Checked:
    """Everything that is wrong with the rows in ``files``, not the first thing alone. Writes nothing.

    Raises RunError where a row on the board was altered.
    """
    checked, are_sound = Checked(), True
    for path in files:
        try:
            row = read_json(path)
            check_row_record(row, path)
        except RunError as error:
            checked.problems.append(str(error))
            continue
        found, name = row_problems(row), file_name(row)
        checked.problems += [f"{path}: {sentence}" for sentence in found]
        are_sound = are_sound and not found
        if name in checked.rows:
            checked.problems.append(f"{path}: expected each row once, given two of one configuration and seed ({name})")
        checked.rows[name] = row
    if not checked.rows and not checked.problems:
        checked.problems.append("expected at least one row, given no file")
    checked.problems += _entry_problems(checked.rows, place.committed(), are_sound)
    return checked


def _entry_problems(new: Mapping[str, Record], committed: Mapping[str, Record], are_sound: bool) -> Iterator[str]:
    """By variant and board, the new rows beside those that are there. ``are_sound``: each row by itself is right."""
    by_entry: dict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
    for name, row in new.items():
        by_entry[row["variant"]["name"], row["tokens"]["train"]][name] = row
    for (variant, tokens), rows in by_entry.items():
        there = {
            name: row
            for name, row in committed.items()
            if (row["variant"]["name"], row["tokens"]["train"]) == (variant, tokens)
        }
        board = board_of(next(iter(rows.values())))
        sentences = [] if board is None else _together(rows, there, board, are_sound)
        yield from (f"{variant}, {tokens:,} training tokens: {sentence}" for sentence in sentences)


def _together(new: Mapping[str, Record], there: Mapping[str, Record], board: Board, are_sound: bool) -> Iterator[str]:
    for name in sorted(new.keys() & there.keys()):
        if new[name] != there[name]:
            yield (
                f"{name} is on the board with other figures; the same configuration again is no new entry, and another "
                "method needs a name of its own"
            )
    rows = list({**there, **new}.values())
    # As ``standings`` does: what was chosen on the judged text makes room for what was not.
    rows = [row for row in rows if "selection_range" in row["config"]["data"]] or rows
    if all("run" in row["config"] for row in rows):
        yield from _seed_problems([row["seed"] for row in rows], board.seeds)
        yield from _copies(rows)
    if are_sound:
        try:
            standings(rows)
        except ComparisonError as error:
            yield str(error)


def _seed_problems(given: Sequence[int], expected: Sequence[int]) -> Iterator[str]:
    if not set(expected) <= set(given):
        yield f"expected the seeds {_listed(expected)} (more are welcome), given {_listed(given)}"


def _copies(rows: Sequence[Record]) -> Iterator[str]:
    seen: dict[tuple[float, ...], int] = {}
    for row in rows:
        nats = tuple(row["validation_conversations"]["nats"])
        if nats in seen:
            yield f"seeds {seen[nats]} and {row['seed']} have the same losses to the last digit: one is a copy"
        seen[nats] = row["seed"]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
