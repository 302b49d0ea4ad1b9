"""python -m tests.reliability [--only KIND …] [--case NAME] [--minutes M] [--few] [--report]

Counts how many of some thousand kills, damages, write faults, crowds and shortages a run comes through. Each case is
noted as it ends, and is not tried again: what was stopped goes on. `results/reliability/cases.jsonl` holds what failed,
`results/reference/reliability.json` the counts, `docs/reliability.md` their table.
"""

import argparse
import json
import sys
import time

from newllm_core.runs.files import RESULTS_DIR

from .cases import Case, FailedError, Workshop
from .plan import KINDS, all_cases, few_cases
from .report import write_report
from .scenarios import prepare_process

WORK = RESULTS_DIR / "reliability"
CASES = WORK / "cases.jsonl"


def noted() -> dict[tuple[str, str], str | None]:
    """Kind and name of every case that was tried, with what failed."""
    if not CASES.exists():
        return {}
    lines = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(line["kind"], line["name"]): line["failed"] for line in lines}


def tried(case: Case, workshop: Workshop) -> str | None:
    try:
        case.check(workshop)
    except FailedError as error:
        return str(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of cases")
    parser.add_argument("--case", help="try this one alone, by name, and say what came of it")
    parser.add_argument("--few", action="store_true", help="only what the tests try, and no report")
    parser.add_argument("--report", action="store_true", help="write record and table of what was tried; try nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    arguments = parser.parse_args()
    if arguments.report:
        write_report(noted())
        return
    prepare_process()
    workshop, began = Workshop(WORK / "work"), time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    known = {} if arguments.case else noted()
    failures = 0
    chosen = few_cases if arguments.few else all_cases
    for case in chosen(workshop, arguments.only):
        if (case.kind, case.name) in known or arguments.case not in (None, case.name):
            continue
        failed = tried(case, workshop)
        failures += failed is not None
        if failed:
            print(f"{case.kind} {case.name}: {failed}", flush=True)
        if not arguments.case:
            with CASES.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"kind": case.kind, "name": case.name, "failed": failed}) + "\n")
        if time.monotonic() - began > 60 * arguments.minutes:
            break
    if not (arguments.case or arguments.few):
        write_report(noted())
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
