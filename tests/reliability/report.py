"""The counts as a record and as a table."""

from collections.abc import Mapping
from typing import Any

from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, write_json, write_text

from .plan import KINDS

RECORD, PAGE = REFERENCE_DIR / "reliability.json", PROJECT_ROOT / "docs" / "reliability.md"
_MEANINGS = {
    "kills": "SIGKILL at a random moment, up to four in a row: goes on, ends with the same weights and figures",
    "operations": "SIGKILL before every single file operation (opening, renaming, removing, syncing): the same",
    "damage": "a file cut, emptied, with a bit or a digit altered, or another's: noticed or made again, never used",
    "write_faults": "a full, read-only or vanished disk, a quota: a sentence says what to do, earlier files stay good",
    "concurrency": "2 to 4 processes on one folder: each thing is done once, all have the same results",
    "fields": "every field of both lines at its ends and far beyond: the run ends, or a sentence refuses the value",
    "memory": "less memory than the run wants: it finishes with the same figures, or says in a sentence why not",
}


def counts(noted: Mapping[tuple[str, str], str | None]) -> dict[str, dict[str, int]]:
    found = {}
    for kind in KINDS:
        failed = [failure for (of, _), failure in noted.items() if of == kind]
        held = sum(failure is None for failure in failed)
        found[kind] = {"total": len(failed), "held": held, "failed": len(failed) - held}
    return found


def page(found: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        f"| {kind.replace('_', ' ')} | {_MEANINGS[kind]} | {one['total']:,} | {one['held']:,} | {one['failed']:,} |"
        for kind, one in found.items()
    ]
    return "\n".join([_HEAD, "| what | what must hold | tried | held | failed |", "|---|---|---|---|---|", *rows, ""])


_HEAD = """# What a run survives

Two checkpoints are kept, within passes too, in at most a hundredth of the time; SIGINT and SIGTERM save first. The same
command goes on from there and ends with the same weights and figures to the last bit. A run counts as complete only
with all of its files. What a disk or memory refuses is said in a sentence: which file, bytes needed and free, what is
safe, how to go on; a checkpoint that cannot be written does not end a training.

`copy_to="/content/drive/MyDrive/new-llm"` (a parameter of every run of either line) keeps a second copy of checkpoints
and results in another folder, such as a mounted drive: it may be slow, know no locks and no renames, and be away for a
while. A fresh machine that is given the same parameters and the same `copy_to` goes on from there. A copy that is
further along than a run is never replaced by it, as where the drive was away when that run began anew.

What all this takes, `python -m tests.reliability.cost` measures: of the quick profile's 32 CPU seconds 1.3 %, of which
1.1 % are checksums, of what is read at the start and of files.

## Tried

Made by `python -m tests.reliability --report` of `results/reference/reliability.json`; `python -m tests.reliability`
tries every case again (`--minutes` of it, if asked; `--workers 2` on two cores; `--work /dev/shm/FOLDER` in memory)
and goes on where it was stopped; `--case NAME` tries one. A small part of them is in the tests (`tests/reliability/`).
A case that could change nothing, such as another digit in a file without any, is none; disks that are really full are
tried where a file system can be mounted. Tried are all trainers at their
smallest, with a checkpoint after every step: Phase 1 with each objective, Phase 2, lists, rows, baselines, images, a
search, a batch of notebooks.
"""


def write_report(noted: Mapping[tuple[str, str], str | None]) -> dict[str, Any]:
    found = counts(noted)
    write_json(RECORD, found)
    write_text(PAGE, page(found))
    return found
