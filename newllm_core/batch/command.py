"""`python -m newllm_core sweep FILE`: estimate, run on an engine, summarise."""

import argparse
import signal
import sys
from pathlib import Path

from newllm_core.batch.engines import engine_of
from newllm_core.batch.sweep_file import SweepFile, load_sweep
from newllm_core.batch.sweeps import SWEEPS_DIR, run_sweep, summarise
from newllm_core.batch.tasks import FAILED, EngineError, count_line
from newllm_core.data.errors import DataError
from newllm_core.runs.host_memory import memory_errors_named
from newllm_core.studies.sweep import SweepError

_OF_ENGINE = ("workers", "retries", "address", "cluster", "partition", "minutes")


def run(options: argparse.Namespace) -> int:
    """Exit status 0 when all is finished, 1 when a run failed, 2 when nothing could be run as asked. Raises ConfigError
    for a wrong file."""
    file = load_sweep(options.file)
    folder = (options.out or SWEEPS_DIR / file.name).absolute()
    try:
        return _run(file, folder, options)
    except (DataError, EngineError, SweepError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _run(file: SweepFile, folder: Path, options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the workers are then asked to save
    chosen = {name: getattr(options, name) for name in _OF_ENGINE}
    engine = engine_of(options.engine, folder, **chosen)
    with memory_errors_named(folder):
        expected = file.sweep.estimate()
        print(f"{expected}, one after the other; {options.workers} at a time", flush=True)
        if options.estimate:
            return 0
        file.sweep.refuse_more_hours_than(options.hours * options.workers, expected)
        outcomes = run_sweep(file.sweep, engine, folder)
        print(count_line(outcomes), summarise(file, folder), f"logs, summary: {folder}", sep="\n", flush=True)
    return int(any(one.status == FAILED for one in outcomes))
