"""The first things to run on a CUDA device: is every branch right, and how fast is it.

    python -m benchmarks.gpu_inputs INPUTS                     # where the data packages are; 55 MB
    python -m benchmarks.gpu INPUTS gpu.json                   # checks, then speed: about three minutes
    python -m benchmarks.gpu INPUTS nkat.json --study nkat     # what two CPU cores cannot do: see gpu_study.py

Needs PyTorch, Triton, kornia and this repository. The file is written after every part, so that a run that is cut off
leaves what it had. A part that fails is named in it and ends with status 1, as a failed check does; the others go on.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.gpu_checks import Check, all_checks
from benchmarks.gpu_inputs import LANGUAGE, read_language
from benchmarks.gpu_speed import SPEEDS
from benchmarks.gpu_study import STUDIES
from benchmarks.gpu_timing import ceilings
from benchmarks.gpu_vision import vision_checks
from newllm_core.runs.files import write_json
from newllm_core.runs.reproducibility import seed_everything

_SEED, _THREADS = 42, 2
_STUDY_SECONDS = 240.0


def machine() -> dict[str, Any]:
    """The card, and what runs on it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "memory_gb": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count, "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": sys.version.split()[0],
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


class Report:
    """What was found so far, in a file after every part."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.perf_counter()
        self.record: dict[str, Any] = {"machine": machine(), "checks": [], "speed": {}, "failures": []}

    def part(self, name: str, work: Callable[[], object]) -> None:
        """Run a part; what it raises is printed, named in the record, and does not stop the others."""
        began = time.perf_counter()
        try:
            work()
        except Exception as error:  # every kind: the device is lent for minutes, and one crash must not cost the rest
            traceback.print_exc()
            self.record["failures"].append({"part": name, "error": f"{type(error).__name__}: {error}"[:500]})
        torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
        self.record["seconds"] = time.perf_counter() - self.began
        write_json(self.path, self.record)

    def keep_checks(self, checks: Iterator[Check]) -> None:
        for check in checks:
            self.record["checks"].append(check.record())
            verdict = "ok" if check.passed else "FAILED"
            print(f"  {verdict:6} {check.name}: {check.value:.3g} (limit {check.limit:.3g} {check.unit})", flush=True)

    def keep(self, section: str, name: str, found: Any) -> None:
        self.record.setdefault(section, {})[name] = found

    @property
    def good(self) -> bool:
        return not self.record["failures"] and all(check["passed"] for check in self.record["checks"])


def check_and_measure(folder: Path, report: Report) -> None:
    """Correctness first, then speed."""
    inputs = read_language(folder / LANGUAGE)
    report.part("language checks", lambda: report.keep_checks(all_checks(inputs)))
    report.part("vision checks", lambda: report.keep_checks(vision_checks()))
    report.part("ceilings", lambda: report.keep("machine", "ceilings", ceilings()))
    for name, measure in SPEEDS.items():
        report.part(f"speed: {name}", lambda name=name, measure=measure: report.keep("speed", name, measure(inputs)))  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder that gpu_inputs wrote")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--study", choices=sorted(STUDIES), help="instead of checks and speed")
    parser.add_argument("--seconds", type=float, default=_STUDY_SECONDS, help="after which a study stops where it is")
    options = parser.parse_args()
    seed_everything(_SEED, _THREADS)
    report = Report(options.out)
    if options.study is None:
        check_and_measure(options.inputs, report)
    else:
        deadline = time.perf_counter() + options.seconds
        study = STUDIES[options.study]
        report.part(
            options.study,
            lambda: study(options.inputs, deadline, lambda name, found: report.keep("study", name, found)),
        )
    sys.exit(0 if report.good else 1)


if __name__ == "__main__":
    main()
