"""python -m tests.reliability

Counts how many of some thousand kills, damages, write faults, crowds and shortages a run comes through. Each case is
noted as it ends, and is not tried again: what was stopped goes on. `results/reliability/cases.jsonl` holds what failed,
and the seconds of each case, `results/reference/reliability.json` the counts, `docs/reliability.md` their table.
"""

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from newllm_core.runs.files import RESULTS_DIR
from newllm_core.runs.reproducibility import current_commit

from .cases import Case, FailedError, Workshop
from .plan import KINDS, all_cases, few_cases
from .report import write_report
from .scenarios import prepare_process

FOLDER = RESULTS_DIR / "reliability"
CASES = FOLDER / "cases.jsonl"


def noted() -> dict[tuple[str, str], str | None]:
    """Kind and name of every case that was tried, with what failed."""
    if not CASES.exists():
        return {}
    lines = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(line["kind"], line["name"]): line["failed"] for line in lines}


def note(case: Case, failed: str | None, seconds: float) -> None:
    """A line, written at once: workers add theirs to the same file."""
    line = json.dumps({"kind": case.kind, "name": case.name, "failed": failed, "seconds": round(seconds, 2)})
    descriptor = os.open(CASES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def tried(case: Case, workshop: Workshop) -> str | None:
    try:
        case.check(workshop)
    except FailedError as error:
        return str(error)
    return None


def try_all(chosen: Iterator[Case], workshop: Workshop, arguments: argparse.Namespace) -> int:
    """Try the cases until the minutes are over; how many failed."""
    began, parent = time.monotonic(), os.getppid()
    failures = 0
    for case in chosen:
        if time.monotonic() - began > 60 * arguments.minutes or os.getppid() != parent:
            break
        started = time.monotonic()
        failed = tried(case, workshop)
        failures += failed is not None
        if failed:
            print(f"{case.kind} {case.name}: {failed}", flush=True)
        if not arguments.case:
            note(case, failed, time.monotonic() - started)
    return failures


def share_of(worker: int, arguments: argparse.Namespace, workshop: Workshop) -> Iterator[Case]:
    """What this one of the workers is to try: drawn by name, so that all agree."""
    known = {} if arguments.case else noted()
    for case in (few_cases if arguments.few else all_cases)(workshop, arguments.only):
        mine = zlib.crc32(f"{case.kind} {case.name}".encode()) % arguments.workers == worker
        if mine and (case.kind, case.name) not in known and arguments.case in (None, case.name):
            yield case


def work(worker: int, arguments: argparse.Namespace) -> int:
    """As one of the workers; how many cases failed."""
    # What cases are held against is kept there, and names the commit that made it.
    workshop = Workshop(arguments.work / f"work-{(current_commit() or 'none')[:10]}-{worker}")
    return try_all(share_of(worker, arguments, workshop), workshop, arguments)


def fork_workers(arguments: argparse.Namespace) -> bool:
    """A process each; whether a case failed, or a worker did."""
    children = []
    for worker in range(arguments.workers):
        pid = os.fork()
        if not pid:
            status = 2
            try:
                status = int(work(worker, arguments) > 0)
            finally:
                os._exit(status)
        children.append(pid)
    return any([os.waitpid(pid, 0)[1] for pid in children])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of cases")
    parser.add_argument("--case", help="try this one alone, by name, and say what came of it")
    parser.add_argument("--few", action="store_true", help="only what the tests try, and no report")
    parser.add_argument("--report", action="store_true", help="write record and table of what was tried; try nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cases")
    parser.add_argument(
        "--work", type=Path, default=FOLDER, help="where cases are tried; in memory (/dev/shm/…) it is faster"
    )
    return parser.parse_args()


def main() -> None:
    arguments: Any = parsed()
    if arguments.report:
        write_report(noted())
        return
    prepare_process()
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = fork_workers(arguments) if arguments.workers > 1 else work(0, arguments) > 0
    if not (arguments.case or arguments.few):
        write_report(noted())
    sys.exit(failed)


if __name__ == "__main__":
    main()
