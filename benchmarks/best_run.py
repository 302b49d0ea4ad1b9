"""The whole `best` profile with this build and with an earlier one, at the same time, a core and a thread each.

    git worktree add ../earlier f0e4adf
    python -m benchmarks.best_run --against ../earlier

writes ``results/reference/best_run.json``. CPU seconds are compared: what else the machine does hardly counts there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine_facts
from newllm_core.config.profiles import load_profile
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, write_json

OUTPUT = REFERENCE_DIR / "best_run.json"
PROFILE = PROJECT_ROOT / "notebooks" / "profiles" / "best.yaml"

# Run with the build to be measured; only what both builds have.
_ONE_RUN = """
import json, sys, time
from pathlib import Path
from newllm_core.config.hyperparameters import DataConfig, Settings
from newllm_core.experiment.run import run_experiment
parameters = json.loads(sys.argv[1])
if hasattr(DataConfig, "selection_range"):  # builds before it choose on the judged text
    parameters["selection_range"] = None
settings = Settings.from_parameters(parameters)
parts = settings.data, settings.model, settings.phase1, settings.phase2
began = time.perf_counter(), time.process_time()
record = run_experiment(*parts, Path(sys.argv[2]), run=settings.run)
found = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
perplexity = record["phase2"]["best"]["validation_perplexity"]
print(json.dumps({**found, "commit": record["commit"], "perplexity": perplexity, "tokens": record["tokens"]}))
"""


def start(build: Path, parameters: dict[str, Any], folder: Path) -> "subprocess.Popen[str]":
    """The profile's run in a process that imports the package of ``build``."""
    environment = {**os.environ, "PYTHONPATH": str(build), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _ONE_RUN, json.dumps(parameters), str(folder)]
    return subprocess.Popen(command, cwd=build, env=environment, stdout=subprocess.PIPE, text=True)


def measure(earlier: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Both runs, and the earlier one's CPU seconds over this one's. Raises CalledProcessError where one fails."""
    with TemporaryDirectory() as folder:
        builds = {"project": PROJECT_ROOT, "earlier": earlier.resolve()}
        running = {name: start(build, parameters, Path(folder) / name) for name, build in builds.items()}
        runs = {}
        for name, process in running.items():
            said, _ = process.communicate()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, f"the run of {name}")
            runs[name] = json.loads(said.splitlines()[-1])
    return {**runs, "cpu_ratio": runs["earlier"]["cpu_seconds"] / runs["project"]["cpu_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of the earlier build")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    parameters = {**load_profile(PROFILE), "num_threads": 1}
    for name in ("selection_range", "cache_horizon", "ngram_weight"):  # no part of training, not in every build
        del parameters[name]
    began, load = time.perf_counter(), os.getloadavg()
    figures = measure(arguments.against, parameters)
    write_json(
        arguments.output,
        {
            "title": "the whole best profile", "profile": parameters, "machine": machine_facts(),
            "load_average_before": list(load), "load_average_after": list(os.getloadavg()),
            "seconds": time.perf_counter() - began, "figures": figures,
        },
    )  # fmt: skip
    print(f"CPU seconds: {figures['earlier']['cpu_seconds']:.0f} before, {figures['project']['cpu_seconds']:.0f} now")


if __name__ == "__main__":
    main()
