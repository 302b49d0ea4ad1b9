"""The project against a plain reading of the notes, measured in one run.

    python -m benchmarks.core                   # all parts; see benchmarks/README.md for the minutes
    python -m benchmarks.core --only a c        # some parts; the others stay as they are in the JSON file
    python -m benchmarks.core --quick           # tiny sizes, one thread: does everything run?
    python -m benchmarks.core --report          # no measurement: Markdown tables of the JSON file, and its plots

writes ``results/reference/benchmark_core.json`` and the plots in ``results/reference/benchmarks/``.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    contexts,
    head,
    memory,
    phase1_iteration,
    phase2_epoch,
    plots,
    report,
    scaling_with_tokens,
    whole_run,
)
from benchmarks.machine import machine_facts
from benchmarks.settings import FULL, QUICK, BenchmarkSettings
from newllm_core.runs.files import REFERENCE_DIR, RESULTS_DIR, read_json, write_json
from newllm_core.runs.reproducibility import seed_everything

OUTPUT = REFERENCE_DIR / "benchmark_core.json"
QUICK_OUTPUT = RESULTS_DIR / "benchmark_quick" / "benchmark_core.json"
PLOTS_FOLDER = "benchmarks"  # beside the JSON file


def measure_head_and_epoch(settings: BenchmarkSettings) -> dict[str, Any]:
    return {**phase2_epoch.measure(settings), "candidates": head.measure(settings)}


PARTS: dict[str, tuple[str, Callable[[BenchmarkSettings], dict[str, Any]]]] = {
    "a": ("contexts of a stream", contexts.measure),
    "b": ("one Phase 1 iteration", phase1_iteration.measure),
    "c": ("head and Phase 2 epoch", measure_head_and_epoch),
    "d": ("whole cpu profile", whole_run.measure),
    "e": ("peak memory", memory.measure),
    "f": ("time and memory against tokens", scaling_with_tokens.measure),
}


def measure_part(name: str, settings: BenchmarkSettings) -> dict[str, Any]:
    """Figures of one part, with the machine and settings that they were measured with."""
    title, measure = PARTS[name]
    seed_everything(settings.seed, settings.num_threads)
    began, load = time.perf_counter(), os.getloadavg()
    figures = measure(settings)
    return {
        "title": title,
        "settings": dataclasses.asdict(settings),
        "machine": machine_facts(),
        "load_average_before": list(load),
        "load_average_after": list(os.getloadavg()),
        "seconds": round(time.perf_counter() - began, 1),
        "figures": figures,
    }


def stored_parts(path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = read_json(path)["parts"] if path.is_file() else {}
    return parts


def measure_all(names: list[str], settings: BenchmarkSettings, path: Path) -> None:
    """Each part is written as soon as it is done."""
    for name in names:
        print(f"({name}) {PARTS[name][0]} …", flush=True)
        part, stored = measure_part(name, settings), stored_parts(path)
        if name == "d" and name in stored and settings.whole_run_seeds != FULL.whole_run_seeds:
            part["figures"] = whole_run.with_runs_of(part["figures"], stored[name]["figures"])
        parts = {**stored, name: part}
        write_json(path, {"command": "python -m benchmarks.core", "parts": dict(sorted(parts.items()))})
        print(report.part_report(name, part["figures"]), f"\n{part['seconds']} s\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS), help="parts to measure")
    parser.add_argument("--seeds", nargs="+", type=int, help="of part d; runs of other seeds stay")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    parser.add_argument("--report", action="store_true", help="tables and plots of the JSON file, nothing measured")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args()
    path = arguments.output or (QUICK_OUTPUT if arguments.quick else OUTPUT)
    if not arguments.report:
        settings = QUICK if arguments.quick else FULL
        if arguments.seeds:
            settings = dataclasses.replace(settings, whole_run_seeds=tuple(arguments.seeds))
        measure_all(arguments.only, settings, path)
    parts = stored_parts(path)
    for name in arguments.only if arguments.report else []:
        if name in parts:
            print(f"### ({name}) {parts[name]['title']}\n\n{report.part_report(name, parts[name]['figures'])}\n")
    for picture in plots.plot_all(parts, path.parent / PLOTS_FOLDER):
        print(f"plot: {picture}")


if __name__ == "__main__":
    main()
