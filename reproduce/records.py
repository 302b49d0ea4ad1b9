"""The records' page and list, records of earlier versions, and two folders of records held against each other.

python -m reproduce.records document docs/records.md      the page, made of the records' descriptions
python -m reproduce.records migrate results/reference     every record below, brought to today's format
python -m reproduce.records compare BEFORE AFTER        the figures of two folders, key by key
python -m reproduce.records sign FILE ...                 after a deliberate edit: the checksums are made anew
python -m reproduce.records list results/reference        after every change there: the list, SHA256SUMS, is made anew
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.experiment.folder_names import SECTIONS
from newllm_core.experiment.record_keys import RUN_KEYS, check_run_record
from newllm_core.report.manifest import write_manifest
from newllm_core.runs.files import RunError, read_unchecked_json, write_json, write_text
from newllm_core.runs.identity import figures_of
from newllm_core.runs.key_kinds import FORMAT, config_keys, key_table
from newllm_core.runs.record_differences import differences
from newllm_core.studies.row_keys import ROW_KEYS, check_row_record
from newllm_core.vision.record_keys import VISION_CONFIG_KEYS, VISION_KEYS, check_vision_record
from reproduce.migration import migrated_row, migrated_run, migrated_vision

PAGE = f"""# Records

What the JSON files of a run hold. This page is made by `python -m reproduce.records document docs/records.md` of the
descriptions in the code, and a test holds it against them. A figure that is missing is null, never 0. `a[].b` stands
for `b` of every element of the list `a`, `*` for any name. Two runs are identical when everything but `start`,
`seconds`, `commit` and `paths` is.

Every JSON file ends with `own_sha256`, a checksum of what it says; a file that does not match it is not used. Delete
such a file to make it again. After a deliberate edit, `python -m reproduce.records sign FILE ...` makes the checksum
anew. The committed files are listed with their SHA-256 in `results/reference/SHA256SUMS`, which
`python -m reproduce.records list results/reference` makes and `python -m newllm_core.report results/reference` checks.

## A language run: `run.json`, format {FORMAT}

{{run}}

### Its configuration

Every field of the dataclasses in `newllm_core/config/hyperparameters.py`, where each is explained.

{{config}}

## A row of the leaderboard

A file of its own. Its configuration is a language run's, of the sections that it has.

{{row}}

## A run on images: `run.json`, format {FORMAT}

{{vision}}

### Its configuration

Every field of the dataclasses in `newllm_core/vision/config.py`, where each is explained.

{{vision_config}}
"""


def page() -> str:
    """`docs/records.md`."""
    return PAGE.format(
        run=key_table(RUN_KEYS), config=key_table(config_keys(Settings, SECTIONS)),
        row=key_table(ROW_KEYS),
        vision=key_table(VISION_KEYS), vision_config=key_table(VISION_CONFIG_KEYS),
    )  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of record: the keys by which it is known, how it is brought to today's format, and its check."""

    known_by: frozenset[str]
    migrated: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Mapping[str, Any], Path], None]


def _phase1_alone(record: Mapping[str, Any], path: Path) -> None:
    """Has keys of a run without being one, and no description of its own."""


KINDS = (
    Kind(frozenset({"phase1", "phase2", "provenance"}), migrated_run, check_run_record),
    Kind(frozenset({"variant", "details", "provenance"}), migrated_row, check_row_record),
    Kind(frozenset({"dataset", "training", "tpe_score"}), migrated_vision, check_vision_record),
    Kind(frozenset({"format", "phase1", "provenance"}), migrated_run, _phase1_alone),
)


def kind_of(content: Any) -> Kind | None:
    """Which kind of record a file's content is; None for other files."""
    names = content.keys() if isinstance(content, dict) else set()
    return next((kind for kind in KINDS if kind.known_by <= names), None)


def migrate(folder: Path) -> int:
    """Bring every record below ``folder`` to today's format; the number of files that changed.

    Raises RunError for one that is not right afterwards; it stays as it was.
    """
    changed = 0
    for path in sorted(folder.rglob("*.json")):
        record = read_unchecked_json(path)
        kind = kind_of(record)
        if kind is not None:
            today = kind.migrated(record)
            kind.check(today, path)
            if today != record:
                write_json(path, today)
                changed += 1
    return changed


def sign(paths: Iterable[Path]) -> None:
    """Make the checksums of JSON files anew, also of files that had none. Raises RunError for what is no object."""
    for path in paths:
        value = read_unchecked_json(path)
        if not isinstance(value, dict):
            raise RunError(f"{path}: expected a JSON object, found {type(value).__name__}")
        write_json(path, value)


def compare(before: Path, after: Path, passed_over: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every JSON file below ``before`` with its differences to the one below ``after``, both in today's format.

    The other one is the file at the same place, or else the record of the same configuration. Seconds, commits and
    paths may differ, and so may what only one format records.

    Args:
        passed_over: starts of dotted paths that are expected to differ.
    """
    firsts, seconds = _figures_below(before), _figures_below(after)
    same_run = {_identity(figures): name for name, figures in seconds.items() if _identity(figures)}
    for name, figures in firsts.items():
        other = seconds.get(name) or seconds.get(same_run.get(_identity(figures), ""))
        if other is None:
            yield name, ["no such file, and no record of this configuration"]
        else:
            lines = differences(figures, other)
            yield name, [line for line in lines if not line.startswith((*_UNRECORDED, *passed_over))]


# What format 1 did not know.
_UNRECORDED = ("arithmetic: ", "read: ")


def _figures_below(folder: Path) -> dict[str, Any]:
    """Figures of every JSON file below ``folder`` but the committed ones, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("reference/"):
            content = read_unchecked_json(path)
            kind = kind_of(content)
            found[name] = _comparable(kind.migrated(content) if kind else content)
    return found


def _comparable(content: Any) -> Any:
    """Figures alone; of what a row says of its variant, which earlier rows did not, the name."""
    figures = _without_seconds(figures_of(content))
    if isinstance(figures, dict) and "variant" in figures:
        figures = {"name": figures.pop("variant")["name"], **figures}
    return figures


def _without_seconds(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {key: _without_seconds(value) for key, value in figures.items() if not key.endswith("seconds")}
    return [_without_seconds(value) for value in figures] if isinstance(figures, list) else figures


def _identity(figures: Any) -> str:
    """The same for two records of one configuration; empty for other files."""
    if not isinstance(figures, dict) or "config" not in figures:
        return ""
    kind = kind_of(figures)
    return json.dumps([KINDS.index(kind) if kind else None, figures.get("name"), figures["config"]], sort_keys=True)


def print_comparison(before: Path, after: Path, passed_over: Sequence[str]) -> int:
    """Prints each file that differs, and counts; returns the number of files that differ."""
    found = list(compare(before, after, passed_over))
    for name, lines in found:
        for line in lines:
            print(f"{name}: {line}")
    differing = sum(1 for _, lines in found if lines)
    print(f"{len(found)} files, {len(found) - differing} identical, {differing} not")
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("document").add_argument("page", type=Path)
    commands.add_parser("migrate").add_argument("folder", type=Path)
    commands.add_parser("list").add_argument("folder", type=Path)
    commands.add_parser("sign").add_argument("files", type=Path, nargs="+")
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    comparison.add_argument("--except", dest="passed_over", action="append", default=[], help="start of a dotted path")
    arguments = parser.parse_args()
    if arguments.command == "document":
        write_text(arguments.page, page())
    elif arguments.command == "list":
        print(*write_manifest(arguments.folder), sep="\n")
    elif arguments.command == "sign":
        sign(arguments.files)
    elif arguments.command == "compare":
        sys.exit(bool(print_comparison(arguments.before, arguments.after, arguments.passed_over)))
    else:
        print(f"{migrate(arguments.folder)} records changed")


if __name__ == "__main__":
    main()
