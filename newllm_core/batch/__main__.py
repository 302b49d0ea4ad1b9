"""Run notebooks with other parameters, from the command line.

    python -m newllm_core.batch notebooks/03_phase2.ipynb -f notebooks/profiles/cpu.yaml -p num_samples 40
    python -m newllm_core.batch --batch my_runs.yaml --workers 2

A batch file is a list of ``{notebook, output, parameters, profile}``; its paths start at the project's folder, and
only ``notebook`` is required. What is finished is skipped; ``--again`` runs it all the same.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from newllm_core.batch.engines import ENGINES, engine_of
from newllm_core.batch.jobs import OUTPUT_DIR, BatchError, Job, load_batch
from newllm_core.batch.notebooks import run_batch
from newllm_core.batch.tasks import FAILED, EngineError
from newllm_core.config.profiles import take_parameters
from newllm_core.config.schema import ConfigError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m newllm_core.batch", description="Run notebooks with parameters.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter (may be given several times)")
    parser.add_argument("-f", type=Path, metavar="PROFILE", dest="profile", help="YAML file of parameters")
    parser.add_argument("--out", type=Path, help=f"folder of the executed notebooks ({OUTPUT_DIR.name}/ in results/)")
    parser.add_argument("--batch", type=Path, metavar="FILE", help="YAML list of jobs, instead of all of the above")
    parser.add_argument("--again", action="store_true", help="also run what is finished already")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="notebooks at a time, each in its own kernel"
    )
    parser.add_argument("--engine", choices=ENGINES, default="local", help="docs/usage.md; default: this machine")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0 when every job is finished or skipped, 1 when one failed or could not be run as asked."""
    parser = _parser()
    try:
        parameters, rest = take_parameters(sys.argv[1:] if words is None else words)
    except ConfigError as error:
        parser.error(str(error))
    options = parser.parse_args(rest)
    if bool(options.batch) == bool(options.notebooks):
        parser.error("expected notebooks, or --batch FILE")
    if options.batch and (parameters or options.profile or options.out):
        parser.error("--batch takes no -p, -f or --out: each job of the file has its own")
    if options.out and options.out.suffix == ".ipynb":
        parser.error(f"--out: expected a folder, given {options.out}")
    out = options.out or OUTPUT_DIR
    try:
        jobs = [Job(path, out / path.name, parameters, options.profile) for path in options.notebooks]
        engine = None if options.engine == "local" else engine_of(options.engine, out, workers=options.workers)
        chosen = load_batch(options.batch) if options.batch else jobs
        outcomes = run_batch(chosen, options.again, options.workers, engine)
    except (BatchError, EngineError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return int(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
