"""`leaderboard.json`: an entry for every variant and board, made of the committed rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from newllm_core.comparison.figures import perplexity_ratio
from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.leaderboard import Standing, standings
from newllm_core.runs.files import read_json, sha256_file
from newllm_core.studies.variants import known_variants
from reproduce.leaderboard.place import Place, Record
from reproduce.leaderboard.rules import (
    BOARDS,
    FULL_SEEDS,
    JUDGED_TEXT,
    MAX_TRAINED_PARAMETERS,
    Board,
    budget_marks,
    text_problems,
)

Entry = dict[str, Any]
_DIGITS = 6  # of a mean over rows; the rows themselves have them all
_USUAL_SAMPLES = BOARDS[0].num_samples


def board_record(place: Place, new_commands: Mapping[tuple[str, int], str] | None = None) -> dict[str, Any]:
    """What `leaderboard.json` says; commands that were given for earlier entries are taken over from it.

    ``new_commands``: by variant and training tokens. Raises ComparisonError where a committed row is of another text
    than the board says, ValueError for an entry whose command nobody knows.
    """
    rows = place.committed()
    commands = {**_given_commands(place), **(new_commands or {})}
    return {
        "max_trained_parameters": MAX_TRAINED_PARAMETERS,
        "boards": [
            {
                "train_tokens": board.train_tokens,
                "train_sha256": board.train_sha256,
                "max_cpu_minutes": board.cpu_minutes,
                "seeds": list(board.seeds),
                "entries": _entries(board, rows, commands, place),
            }
            for board in BOARDS
        ],
    }


def _given_commands(place: Place) -> dict[tuple[str, int], str]:
    if not place.board.is_file():
        return {}
    boards = read_json(place.board)["boards"]
    return {
        (entry["name"], board["train_tokens"]): entry["command"]
        for board in boards
        for entry in board["entries"]
        if entry["command_given"]
    }


def _entries(
    board: Board, rows: Mapping[str, Record], commands: Mapping[tuple[str, int], str], place: Place
) -> list[Entry]:
    here = {name: row for name, row in rows.items() if row["tokens"]["train"] == board.train_tokens}
    for name, row in here.items():
        for problem in text_problems(row):
            raise ComparisonError(f"{place.rows / name}: {problem}")
    found = standings(list(here.values())) if here else []
    return [_entry(one, found[0], board, here, commands, place) for one in found]


def _entry(
    one: Standing, first: Standing, board: Board, rows: Mapping[str, Record],
    commands: Mapping[tuple[str, int], str], place: Place,
) -> Entry:  # fmt: skip
    own = sorted((row["seed"], name) for name, row in rows.items() if any(row is each for each in one.records))
    key = one.name, board.train_tokens
    return {
        "name": one.name,
        "label": one.label,
        "sentence": one.variant["sentence"],
        "kind": one.variant["kind"],
        "validation_perplexity": _rounded(one.perplexity.value),
        "interval": _interval(one.perplexity.interval),
        "over_the_first": None if one is first else _over(one, first),
        "bits_per_byte": _rounded(one.bits_per_byte),
        "trainable_parameters": one.trainable_parameters,
        "discarded_parameters": one.discarded_parameters,
        "cpu_minutes": _rounded(one.cpu_seconds / 60),
        "seeds": None if one.is_seedless else [seed for seed, _ in own],
        "chosen_on": one.chosen_on,
        "marks": list(dict.fromkeys(_marks(one, board))),
        "commits": list(dict.fromkeys(rows[name]["commit"] for _, name in own)),
        "date": max(row["start"] for row in one.records)[:10],
        "command": commands[key] if key in commands else derived_command(one.name, board, own, one.is_seedless),
        "command_given": key in commands,
        "files": {name: sha256_file(place.rows / name) for _, name in own},
    }


def _over(one: Standing, first: Standing) -> dict[str, Any] | None:
    """Ratio of perplexities, paired; None without a seed that both have."""
    try:
        ratio = perplexity_ratio(one, first)
    except ComparisonError:
        return None
    return {"ratio": _rounded(ratio.value), "interval": _interval(ratio.interval)}


def _marks(one: Standing, board: Board) -> Iterator[str]:
    """In which respect an entry falls short of the rules for new ones, or of full seeds."""
    if one.chosen_on == JUDGED_TEXT:
        yield "chosen on the judged text"
    for row in one.records:
        yield from (f"over the budget: {mark}" for mark in budget_marks(row, board))
    if not one.is_seedless and len(one.seeds) < FULL_SEEDS:
        yield "one seed" if len(one.seeds) == 1 else f"{len(one.seeds)} seeds"


def is_known(name: str) -> bool:
    """Whether `reproduce.controls` can run the variant."""
    return name in known_variants()


def derived_command(name: str, board: Board, own: Sequence[tuple[int, str]], seedless: bool) -> str:
    """Which runs the rows of a variant of this checkout. Raises ValueError for another variant's."""
    if not is_known(name):
        raise ValueError(
            f"{name}, {board.train_tokens:,} training tokens: expected the command that makes it, given none"
        )
    samples = "" if board.num_samples == _USUAL_SAMPLES else f" --samples {board.num_samples}"
    seeds = "" if seedless else f" --seeds {' '.join(str(seed) for seed, _ in own)}"
    return f"python -m reproduce.controls --names {name}{seeds}{samples}"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _interval(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [_rounded(end) for end in interval]
