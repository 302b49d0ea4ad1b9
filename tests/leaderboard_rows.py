"""New rows for the leaderboard: committed ones under another name, in a place of their own."""

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from newllm_core.runs.files import REFERENCE_DIR, write_json
from newllm_core.studies.rows import read_rows
from reproduce.leaderboard.place import Place

Row = dict[str, Any]
NAME = "entry-of-a-test"  # which nobody's real entry has
SMALL, LARGE = 57_173, 259_763  # training tokens
COMMITTED = read_rows(REFERENCE_DIR / "leaderboard")


def copied_place(folder: Path) -> Place:
    """The committed rows and their list, to write to."""
    kept = shutil.ignore_patterns("phase1", "networks", "checkpoints")
    shutil.copytree(REFERENCE_DIR / "leaderboard", folder / "leaderboard", ignore=kept)
    shutil.copy(REFERENCE_DIR / "leaderboard.json", folder)
    return Place(folder, folder / "page.md")


def new_rows(of: str = "gru", tokens: int = SMALL, seeds: Iterable[int] = (42, 43, 44)) -> list[Row]:
    """Those of the variant ``of`` as somebody else's, called NAME: made at a commit, chosen on a text of its own."""
    found = {row["seed"]: row for row in COMMITTED if (row["variant"]["name"], row["tokens"]["train"]) == (of, tokens)}
    return [_new(found[seed]) for seed in seeds]


def _new(committed: Row) -> Row:
    row = copy.deepcopy(committed)
    row["variant"] |= {"name": NAME, "label": NAME, "sentence": "a network of my own", "group": "leaderboard"}
    row["commit"] = "0123456789abcdef0123456789abcdef01234567"
    if row["chosen_on"] == "validation":  # a row from before the selection text
        judged = row["provenance"]["validation"]
        row["chosen_on"], row["tokens"]["selection"] = "selection", judged["num_tokens"]
        row["provenance"]["selection"] = {**judged, "first_sample": 980, "last_sample": 999}
        row["config"]["data"]["selection_range"] = [980, 1000]
    return row


def written(rows: Iterable[Row], folder: Path) -> list[Path]:
    """A file each, with a right checksum, called anything."""
    paths = []
    for number, row in enumerate(rows):
        paths.append(folder / f"row ({number}).json")
        write_json(paths[-1], row)
    return paths
