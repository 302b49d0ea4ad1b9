"""`docs/leaderboard.md`: the words of `template.md`, the rules' constants, and the tables of `leaderboard.json`."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm_core.intervals import NOT_MEASURED, interval_text
from reproduce.leaderboard.rules import BOARDS, EXPECTED, FULL_SEEDS, MAX_TRAINED_PARAMETERS

_TEMPLATE = Path(__file__).with_name("template.md")
_HEAD = (
    "place",
    "entry",
    "PPL",
    "over the first",
    "bits a byte",
    "trained parameters",
    "CPU minutes",
    "seeds",
    "made",
    "note",
)
_COMMIT_DIGITS = 7


def page(record: Mapping[str, Any]) -> str:
    """``record``: of `leaderboard.json`."""
    more = BOARDS[-1]
    return _TEMPLATE.read_text(encoding="utf-8").format(
        corpus=EXPECTED["corpus"],
        embeddings=EXPECTED["embeddings"],
        samples=_or(str(board.num_samples) for board in BOARDS),
        tokens=_or(f"{board.train_tokens:,}" for board in BOARDS),
        judged=f"{EXPECTED['tokens.validation']:,}",
        parameters=f"{MAX_TRAINED_PARAMETERS:,}",
        minutes=_or(str(board.cpu_minutes) for board in BOARDS),
        seeds="; ".join(f"with {board.train_tokens:,} tokens {_seeds(board.seeds)}" for board in BOARDS),
        full=FULL_SEEDS,
        more=more.num_samples,
        more_seeds=" ".join(map(str, more.seeds)),
        boards="\n\n".join(_board(board) for board in record["boards"]),
    )


def _or(words: Iterable[str]) -> str:
    return " or ".join(words)


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _board(board: Mapping[str, Any]) -> str:
    heading = f"### {board['train_tokens']:,} training tokens"
    if not board["entries"]:
        return f"{heading}\n\nNobody yet."
    lines = [_line(number, entry) for number, entry in enumerate(board["entries"], 1)]
    rows = [_HEAD, ("---",) * len(_HEAD), *lines]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    commands = "\n".join(entry["command"] for entry in board["entries"])
    return f"{heading}\n\n{table}\n\nThe commands, in the same order:\n\n```\n{commands}\n```"


def _line(number: int, entry: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = entry["over_the_first"]
    discarded = f" + {entry['discarded_parameters']:,}" * bool(entry["discarded_parameters"])
    return (
        str(number),
        f"**{cell(entry['name'])}**: {cell(entry['sentence'])}",
        f"{entry['validation_perplexity']:,.1f} {interval_text(_pair(entry['interval']), '{:,.1f}')}",
        NOT_MEASURED if ratio is None else f"{ratio['ratio']:.3f} {interval_text(_pair(ratio['interval']))}",
        f"{entry['bits_per_byte']:.3f}",
        f"{entry['trainable_parameters']:,}{discarded}",
        f"{entry['cpu_minutes']:.1f}",
        NOT_MEASURED if entry["seeds"] is None else str(len(entry["seeds"])),
        f"{entry['date']}, {', '.join(_commit(commit) for commit in entry['commits'])}",
        "; ".join(entry["marks"]),
    )


def _pair(interval: list[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def _commit(commit: str | None) -> str:
    if commit is None:
        return "no commit"
    digits, changes, _ = commit.partition("+")
    return f"`{digits[:_COMMIT_DIGITS]}{changes}`"


def cell(text: str) -> str:
    """A stranger's words in a cell of a table: no markup, no line's end."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in r"\`*_[]|" else letter for letter in plain)
