"""The records' page, records of earlier versions, and two folders of records held against each other.

python -m reproduce.records document docs/records.md      the page, made of the records' descriptions
python -m reproduce.records migrate results/reference     every record below, brought to today's format
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from newllm_core.experiment.migration import migrated_run
from newllm_core.experiment.record import FORMAT, RUN_KEYS, RUN_SECTIONS, check_run_record, config_keys
from newllm_core.runs.files import read_json, write_json, write_text
from newllm_core.runs.record_keys import key_table

PAGE = f"""# Records

What the JSON files of a run hold. This page is made by `python -m reproduce.records document docs/records.md` of the
descriptions in the code, and a test holds it against them. A figure that is missing is null, never 0. `a[].b` stands
for `b` of every element of the list `a`, `*` for any name. Two runs are identical when everything but `start`,
`seconds`, `commit` and `paths` is.

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
        check_run_record(today, str(path))
        if today != record:
            write_json(path, today)
            changed += 1
    return changed


def migrated_records(folder: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Path, stored record and today's form of every record below ``folder``; other JSON files are passed over."""
    for path in sorted(folder.rglob("*.json")):
        record = read_json(path)
        migration = migration_of(record)
        if migration is not None:
            yield path, record, migration(record)


def migration_of(record: Any) -> Callable[[Any], Any] | None:
    """Which migration a file's content needs; None when it is no record."""
    if isinstance(record, dict) and {"phase1", "phase2", "provenance"} <= record.keys():
        return migrated_run
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("document").add_argument("page", type=Path)
    commands.add_parser("migrate").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "document":
        write_text(arguments.page, page())
    else:
        print(f"{migrate(arguments.folder)} records changed")


if __name__ == "__main__":
    main()
