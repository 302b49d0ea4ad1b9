"""The rules of the leaderboard, once: the text, the budget, and what a row must say. The page states these constants.

A board is of one training text; all are judged on the same conversations. Another size of training text is another
entry in ``BOARDS``.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from newllm_core.comparison.leaderboard import discarded_parameters

Row = Mapping[str, Any]

GROUP = "leaderboard"  # of a row's variant; ablations and parts are studies of the project's own, and no entries
# What a row of each kind says of its configuration; only those with `run` have a seed.
_WHOLE = ("data", "model", "phase1", "phase2", "run")
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "model": _WHOLE, "control": _WHOLE, "network": ("data", "network", "run"), "counts": ("data",),
}  # fmt: skip
MAX_TRAINED_PARAMETERS = 1_150_000  # the networks' 1.05 million, within 10 %
VOCABULARY = 50_257  # token ids: the perplexity of a guess among all
FULL_SEEDS = 3  # fewer are marked
JUDGED_TEXT = "validation"  # what `chosen_on` says where the judged text itself chose


@dataclass(frozen=True)
class Board:
    """One training text.

    Attributes:
        num_samples: conversations of the training text, from the first on.
        train_sha256: of its token ids.
        cpu_minutes: budget of one row, all cores added up, both phases.
        seeds: that every entry with a seed has, so that nobody picks a lucky one.
    """

    train_tokens: int
    num_samples: int
    train_sha256: str
    cpu_minutes: int
    seeds: tuple[int, ...]


# Minutes are roughly in proportion to the tokens. On the larger board one row takes up to an hour, so one seed will do.
BOARDS = (
    Board(57_173, 80, "4679115889a6cb80dfb8636cc7b401051d1d5035f63d4e151a8de505b6295aed", 15, (42, 43, 44)),
    Board(259_763, 320, "4b06ea1a3e9d263c53e7e01aa4e5c6d9e6f9e5dfb9561151bde868b98a96bf8a", 75, (42,)),
)

_TOKENIZER = "98800c36deca90db5a5825d605d0a4f12a79516ced5f53b18420943740ca4ce4"
# Of every row, by dotted path. Not the embedding matrix's own hash: its scale is a sum, which processors round
# differently.
EXPECTED: Mapping[str, Any] = {
    "corpus": "chitchat",
    "embeddings": "whisper-tiny.en",
    "provenance.embeddings.source_sha256": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "provenance.train.tokenizer_sha256": _TOKENIZER,
    "provenance.validation.tokenizer_sha256": _TOKENIZER,
    "provenance.validation.tokens_sha256": "eb262f87a24ca12f5df43fdf2eb211be2f0025568983687cd351025244e2003f",
    "tokens.validation": 19_703,
    "validation_bytes": 79_984,
    "validation_conversations.tokens": [
        708, 1472, 688, 301, 1124, 1068, 1142, 1622, 371, 349, 966, 266, 145, 442, 1361, 4643, 541, 1214, 1099, 180,
    ],
}  # fmt: skip
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def board_of(row: Row) -> Board | None:
    """The board of its number of training tokens, if there is one."""
    return next((board for board in BOARDS if board.train_tokens == row["tokens"]["train"]), None)


def trained_parameters(row: Row) -> int:
    """All that were trained at any time, those that Phase 1 throws away included."""
    return int(row["trainable_parameters"]) + discarded_parameters(row)


def budget_marks(row: Row, board: Board) -> Iterator[str]:
    """What of the budget a row goes beyond."""
    trained, minutes = trained_parameters(row), row["cpu_seconds"] / 60
    if trained > MAX_TRAINED_PARAMETERS:
        yield f"{trained:,} trained parameters, of at most {MAX_TRAINED_PARAMETERS:,}"
    if minutes > board.cpu_minutes:
        yield f"{minutes:.1f} CPU minutes, of at most {board.cpu_minutes}"


def text_problems(row: Row) -> Iterator[str]:
    """Where a row is not of a board's text: what it was trained on, judged on, and read the tokens with."""
    for path, expected in EXPECTED.items():
        given: Any = row
        for part in path.split("."):
            given = given[part]
        if given != expected:
            yield f"{path}: expected {_short(expected)}, as on the board, given {_short(given)}"
    board, train = board_of(row), row["provenance"]["train"]
    if board is None:
        known = " or ".join(f"{one.train_tokens:,}" for one in BOARDS)
        yield f"tokens.train: expected {known}, of a board there is, given {row['tokens']['train']:,}"
    elif train["tokens_sha256"] != board.train_sha256:
        expected = f"{_short(board.train_sha256)}, conversations 0–{board.num_samples - 1}"
        yield f"provenance.train.tokens_sha256: expected {expected}, given {_short(train['tokens_sha256'])}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-6:]}"


def row_problems(row: Row) -> list[str]:
    """A sentence for every rule that a new row breaks by itself; of a record that ``check_row_record`` passed."""
    board, wrong_sections = board_of(row), list(_section_problems(row))
    budget = [] if board is None or wrong_sections else budget_marks(row, board)
    return [
        *_who_problems(row), *wrong_sections, *text_problems(row), *_choice_problems(row),
        *(f"over the budget: {mark}" for mark in budget), *_figure_problems(row),
    ]  # fmt: skip


def _is_plain(text: str) -> bool:
    """Tables and pictures take the words as they are."""
    return 0 < len(text) <= 200 and text.isprintable() and set(text).isdisjoint("|<>`\\")


def _section_problems(row: Row) -> Iterator[str]:
    kind, given = row["variant"]["kind"], row["config"].keys() - {"user_loss"}
    if kind not in SECTIONS:
        yield f"variant.kind: expected one of {', '.join(SECTIONS)}, trained on this text alone, given {kind!r:.60}"
    elif given != set(SECTIONS[kind]):
        yield f"config: expected of a {kind} {', '.join(SECTIONS[kind])}, given {', '.join(sorted(given))}"
    elif "run" in given and row["config"]["run"]["seed"] != row["seed"]:
        yield f"seed: {row['seed']}, but config.run.seed is {row['config']['run']['seed']}"


def _who_problems(row: Row) -> Iterator[str]:
    """Name, words, group, device and commit."""
    variant, commit = row["variant"], row["commit"]
    if not _SAFE_NAME.fullmatch(variant["name"]):
        yield f"variant.name: expected up to 50 letters of a–z, digits, '_', '.' and '-', given {variant['name']!r:.60}"
    for part in ("label", "sentence"):
        if not _is_plain(variant[part]):
            yield f"variant.{part}: expected one line of up to 200 letters without |<>`\\, given {variant[part]!r:.60}"
    if variant["group"] != GROUP:
        yield f"variant.group: expected {GROUP!r}, given {variant['group']!r:.60}: studies of a part are no entries"
    if not row["device"].startswith("CPU"):
        yield f"device: expected a CPU, because CPU minutes are the budget, given {row['device']!r}"
    if not _COMMIT.fullmatch(commit or ""):
        yield f"commit: expected one that has all the code (commit your changes, then run), given {commit or 'none'}"


def _choice_problems(row: Row) -> Iterator[str]:
    """What chose iteration and epoch: a text that is neither trained on nor judged."""
    provenance, chosen_on = row["provenance"], row["chosen_on"]
    expected = "training" if row["variant"]["kind"] == "counts" else "selection"
    if chosen_on == JUDGED_TEXT:
        yield "chosen_on: the judged text chose iteration or epoch, which flatters; run it with a selection_range"
    elif chosen_on != expected:
        yield f"chosen_on: expected {expected!r}, given {chosen_on!r}"
    there = "selection" in provenance
    if there != ("selection_range" in row["config"]["data"]) or (chosen_on == "selection" and not there):
        yield "provenance.selection: expected exactly where config.data.selection_range and chosen_on speak of it"
    for other in ("train", "validation") if there else ():
        if _overlap(provenance["selection"], provenance[other]):
            yield f"provenance.selection: expected other conversations than those of {other}, given some of them"


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["first_sample"] <= other["last_sample"] and other["first_sample"] <= one["last_sample"])


def _figure_problems(row: Row) -> Iterator[str]:
    """What ``check_row_record`` leaves open; it holds perplexity and bits a byte against the conversations' sums."""
    if any(nats < 0 for nats in row["validation_conversations"]["nats"]):
        yield "validation_conversations.nats: expected at least 0 of every conversation: no probability is above 1"
    perplexity = row["validation_perplexity"]
    if perplexity > VOCABULARY:
        yield f"validation_perplexity: expected at most {VOCABULARY:,}, of a guess, given {perplexity:.3g}"
    told = row["details"].get("trainable_parameters", row["trainable_parameters"])
    if told != row["trainable_parameters"]:
        yield f"trainable_parameters: {row['trainable_parameters']:,}, but details say {told:,}"
    yield from (f"{path}: expected a finite number" for path in not_finite(row))


def not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of numbers that are none, at every depth: a record's details may hold anything."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from not_finite(one, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from not_finite(one, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path
