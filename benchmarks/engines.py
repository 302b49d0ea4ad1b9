"""The same sweep on every engine: are the records identical, is anything lost or done twice, what does a run cost more?

    python -m benchmarks.engines                          # all whose packages are installed, into results/reference/
    python -m benchmarks.engines --only local             # some: local, ray, slurm, notebooks
    python -m benchmarks.engines --quick                  # tiny runs, figures of no meaning, below results/

Twelve runs of the embedded corpus, one thread each. `ray` is a cluster of two nodes on this machine, one of which is
killed in the middle; `slurm` is submitit's local executor, and SLURM itself where `slurm_here.sh` has started it;
`notebooks` are 100 runs in batches of four, killed once.
"""

import argparse
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engine_notebooks import NUMBER, batches_of_notebooks
from benchmarks.machine import machine_facts
from newllm_core.batch.engines import engine_of
from newllm_core.batch.local_engine import LocalEngine
from newllm_core.batch.sweeps import Outcome, run_sweep
from newllm_core.batch.tasks import FINISHED, Engine, EngineError, times_begun, times_finished
from newllm_core.config.hyperparameters import Settings
from newllm_core.runs.files import REFERENCE_DIR, RESULTS_DIR, read_json, write_json
from newllm_core.runs.identity import figures_of
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Sweep, grid

PARTS = ("local", "ray", "slurm", "notebooks")
AXES: Mapping[str, Sequence[Any]] = {"diversity_algorithm": ["MCDL", "ODCM"], "dist_reg_weight": [0.5, 0.9]}
SEEDS = (42, 43, 44)
FULL = {
    "num_samples": 6, "embeddings": "random", "embed_dim": 64, "context_dim": 64, "max_iterations": 10,
    "max_epochs": 2, "validation_range": (1000, 1003), "validation_passes": 2, "min_iterations": 1,
    "num_threads": 1, "device": "cpu",
}  # fmt: skip
QUICK = {**FULL, "num_samples": 2, "embed_dim": 16, "context_dim": 24, "max_iterations": 2, "max_epochs": 1}
QUICK_NOTEBOOKS = 12
KILL_AFTER = 3  # runs that have ended
_PREEMPT_AFTER_SECONDS, _PREEMPTED_SECONDS = 6, 10


class Bench:
    """A folder for each pass over the sweep; the token cache is common, and made first."""

    def __init__(self, root: Path, parameters: dict[str, Any]) -> None:
        self.root, self.base = root, Settings.from_parameters(parameters)
        shutil.rmtree(root, ignore_errors=True)
        self.plain_seconds, self.expected = self._in_this_process()

    def sweep(self, name: str) -> Sweep:
        root = self.root / name
        folders = Folders(root / "experiments", root / "phase1", root / "reference", self.root / "data")
        return Sweep(self.base, grid(AXES), SEEDS, ExperimentRunner(folders))

    def _in_this_process(self) -> tuple[float, Any]:
        first = self.sweep("first")
        first.runner.run(first.points[0])  # the token cache, and whatever else is slow once
        began = time.perf_counter()
        records = self.sweep("plain").run()
        return time.perf_counter() - began, figures_of(records)

    def on(self, name: str, engine: Engine) -> dict[str, Any]:
        """Run the sweep on ``engine`` and hold it against what this process has made."""
        sweep, folder = self.sweep(name), self.root / name / "sweep"
        began = time.perf_counter()
        outcomes = run_sweep(sweep, engine, folder)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **counts(outcomes), "identical": figures_of(sweep.finished()) == self.expected}

    def overhead(self, figures: dict[str, Any]) -> float:
        """Seconds a run, of one worker, beyond what the same runs take in this process."""
        return (figures["seconds"] - self.plain_seconds) / figures["runs"]


def counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A run that was tried twice, its worker having died, was still done once: the second try goes on."""
    done = [times_finished(one.log) for one in outcomes]
    return {
        "runs": len(outcomes),
        "finished": sum(one.status == FINISHED for one in outcomes),
        "lost": sum(number == 0 for number in done),
        "run_twice": sum(number > 1 for number in done),
        "tries": sum(times_begun(one.log) for one in outcomes),
    }


def local(bench: Bench) -> dict[str, Any]:
    one, two = (bench.on(f"local-{workers}", LocalEngine(workers)) for workers in (1, 2))
    return {
        "workers_1": one, "workers_2": two, "overhead_seconds_per_run": bench.overhead(one),
        "speedup_of_two_workers": one["seconds"] / two["seconds"],
    }  # fmt: skip


def slurm(bench: Bench) -> dict[str, Any]:
    """submitit's local executor; and SLURM where it is there (`slurm_here.sh`), its jobs preempted once."""
    from newllm_core.batch.slurm_engine import SlurmEngine

    one = bench.on("slurm-local", SlurmEngine(bench.root / "submitit", cluster="local"))
    signalled = _Disturbed(SlurmEngine(bench.root / "submitit", cluster="local"), _signal_jobs)
    found = {
        "local_executor": one, "overhead_seconds_per_run": bench.overhead(one),
        "local_executor_preempted": bench.on("slurm-local-preempted", signalled),
    }  # fmt: skip
    if shutil.which("squeue") is None or subprocess.run(["squeue"], capture_output=True).returncode:
        return found
    real = bench.on("slurm", SlurmEngine(bench.root / "slurm"))
    preempted = _Disturbed(SlurmEngine(bench.root / "slurm", workers=2), _preempt)
    return {
        **found, "slurm": real, "overhead_seconds_per_run_of_slurm": bench.overhead(real),
        "slurm_preempted": bench.on("slurm-preempted", preempted),
    }  # fmt: skip


def _signal_jobs() -> None:
    """Soon, in the middle of runs, submitit's jobs on this machine get the signal that announces a preemption."""

    from newllm_core.batch.slurm_engine import PREEMPTED

    def signal_them() -> None:
        time.sleep(_PREEMPT_AFTER_SECONDS)
        for job in psutil.Process().children(recursive=True):
            if "submitit.core._submit" in job.cmdline():
                job.send_signal(PREEMPTED)

    threading.Thread(target=signal_them, daemon=True).start()


def _preempt() -> None:
    """Soon, in the middle of runs, a job of a partition that goes before takes all cores for some seconds."""
    how = ["--partition=high", "--exclusive", f"--begin=now+{_PREEMPT_AFTER_SECONDS}", "--output=/dev/null"]
    subprocess.run(["sbatch", *how, f"--wrap=sleep {_PREEMPTED_SECONDS}"], check=True, capture_output=True)


def ray(bench: Bench) -> dict[str, Any]:
    one = bench.on("ray-1", engine_of("ray", bench.root, workers=1))
    with two_nodes() as (address, kill):
        engine = _Disturbed(engine_of("ray", bench.root, workers=2, address=address), kill)
        killed = bench.on("ray-2", engine)
    return {"workers_1": one, "one_of_two_nodes_killed": killed, "overhead_seconds_per_run": bench.overhead(one)}


class _Disturbed:
    """An engine with which something happens in the middle of the list."""

    def __init__(self, engine: Engine, disturb: Callable[[], object]) -> None:
        self.engine, self.disturb = engine, disturb

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, ended in enumerate(self.engine.run(tasks), start=1):
            if number == KILL_AFTER:
                self.disturb()
            yield ended


@contextmanager
def two_nodes() -> Iterator[tuple[str, Any]]:
    """A cluster of this machine: its address, and what kills a node that works, without a word."""
    engine_of("ray", Path())  # says what is missing, and keeps Ray from sending anything
    from ray.cluster_utils import Cluster

    # Heads have no cores of their own here, so that the killed node is one that works; which, is all the same.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        yield cluster.address, lambda: cluster.remove_node(nodes[0], allow_graceful=False)
    finally:
        cluster.shutdown()


_OF: Mapping[str, Callable[[Any], dict[str, Any]]] = {"local": local, "ray": ray, "slurm": slurm}


def measured(parts: Sequence[str], root: Path, parameters: dict[str, Any], notebooks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    bench = Bench(root, parameters) if set(parts) - {"notebooks"} else None
    if bench is not None:
        found["plain"] = {"seconds": bench.plain_seconds, "runs": len(bench.expected)}
    for part in parts:
        load = os.getloadavg()
        try:
            figures = batches_of_notebooks(root / "notebooks", notebooks) if part == "notebooks" else _OF[part](bench)
        except EngineError as error:
            print(f"{part}: {error}", flush=True)
            continue
        found[part] = {**figures, "load_average_before": list(load)}
        print(part, found[part], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    root = RESULTS_DIR / ("benchmark_quick" if arguments.quick else "benchmark") / "engines"
    output = root.with_suffix(".json") if arguments.quick else REFERENCE_DIR / "engines.json"
    earlier = read_json(output)["parts"] if output.exists() else {}
    parameters, notebooks = (QUICK, QUICK_NOTEBOOKS) if arguments.quick else (FULL, NUMBER)
    found = measured(arguments.only, root, parameters, notebooks)
    write_json(output, {"parts": {**earlier, **found}, "parameters": parameters, "machine": machine_facts()})


if __name__ == "__main__":
    main()
