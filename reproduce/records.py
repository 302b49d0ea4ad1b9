"""The records' page, records of earlier versions, and two folders of records held against each other.

python -m reproduce.records document docs/records.md      the page, made of the records' descriptions
python -m reproduce.records migrate results/reference     every record below, brought to today's format
python -m reproduce.records sign FILE ...                 after a deliberate edit: the checksums are made anew
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from newllm_core.experiment.migration import migrated_run
from newllm_core.experiment.record import FORMAT, RUN_KEYS, RUN_SECTIONS, check_run_record, config_keys
from newllm_core.runs.files import RunError, read_unchecked_json, write_json, write_text
from newllm_core.runs.identity import figures_of
from newllm_core.runs.record_differences import differences
from newllm_core.runs.record_keys import key_table

PAGE = f"""# Records

What the JSON files of a run hold. This page is made by `python -m reproduce.records document docs/records.md` of the
descriptions in the code, and a test holds it against them. A figure that is missing is null, never 0. `a[].b` stands
for `b` of every element of the list `a`, `*` for any name. Two runs are identical when everything but `start`,
`seconds`, `commit` and `paths` is.

Every JSON file ends with `own_sha256`, a checksum of what it says; a file that does not match it is not used. Delete
such a file to make it again. After a deliberate edit, `python -m reproduce.records sign FILE ...` makes the checksum
anew.

## A language run: `run.json`, format {FORMAT}

{{run}}

### Its configuration

Every field of the dataclasses in `newllm_core/config/language.py`, where each is explained.

{{config}}
"""


def page() -> str:
    """`docs/records.md`."""
    return PAGE.format(run=key_table(RUN_KEYS), config=key_table(config_keys(RUN_SECTIONS)))


def migrate(folder: Path) -> int:
    """Bring every record below ``folder`` to today's format; the number of files that changed.

    Raises RunError for one that is not right afterwards; it stays as it was.
    """
    changed = 0
    for path, record, today in migrated_records(folder):
        check_run_record(today, path)
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


def migrated_records(folder: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Path, stored record and today's form of every record below ``folder``; other JSON files are passed over."""
    for path in sorted(folder.rglob("*.json")):
        record = read_unchecked_json(path)
        migration = migration_of(record)
        if migration is not None:
            yield path, record, migration(record)


def migration_of(record: Any) -> Callable[[Any], Any] | None:
    """Which migration a file's content needs; None when it is no record."""
    if isinstance(record, dict) and {"phase1", "phase2", "provenance"} <= record.keys():
        return migrated_run
    return None


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
            migration = migration_of(content)
            found[name] = _without_seconds(figures_of(migration(content) if migration else content))
    return found


def _without_seconds(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {key: _without_seconds(value) for key, value in figures.items() if not key.endswith("seconds")}
    return [_without_seconds(value) for value in figures] if isinstance(figures, list) else figures


def _identity(figures: Any) -> str:
    """The same for two records of one configuration; empty for other files."""
    if not isinstance(figures, dict) or "config" not in figures:
        return ""
    return json.dumps([sorted(figures), figures.get("name"), figures["config"]], sort_keys=True)


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
    commands.add_parser("sign").add_argument("files", type=Path, nargs="+")
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    comparison.add_argument("--except", dest="passed_over", action="append", default=[], help="start of a dotted path")
    arguments = parser.parse_args()
    if arguments.command == "document":
        write_text(arguments.page, page())
    elif arguments.command == "sign":
        sign(arguments.files)
    elif arguments.command == "compare":
        sys.exit(bool(print_comparison(arguments.before, arguments.after, arguments.passed_over)))
    else:
        print(f"{migrate(arguments.folder)} records changed")


if __name__ == "__main__":
    main()
