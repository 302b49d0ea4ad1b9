"""NKAT's training step at the `nkat_cpu` profile's size: this build against an earlier one, in turn in one run.

    git worktree add ../earlier 82cf570
    python -m benchmarks.nkat_step --against ../earlier                # steps: images a second, one and two threads
    python -m benchmarks.nkat_step --against ../earlier --accuracy     # and short runs on CIFAR-10 (JPEG), three seeds

writes ``results/reference/nkat_step.json``. Each build trains as its own profile says, in a process of its own that
waits while the other one computes. Seconds are those of the process and of the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from newllm_core.intervals import paired_difference
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, write_json

OUTPUT = REFERENCE_DIR / "nkat_step.json"
THREADS, ROUNDS, STEPS = (1, 2), 9, 8
SEEDS, FEW_IMAGES, EPOCHS = (42, 43, 44), 4000, 4

# Run with the build to be measured; only what both builds have. An epoch is a round, which waits to be asked for.
_STEPS = """
import json, sys, time, torch
from newllm_core.config.schema import changed
from newllm_core.runs.reproducibility import seed_everything
from newllm_core.vision.data.records import ImageData, LabelledImages, channel_statistics
from newllm_core.vision.training import train_vision
from reproduce.reference_nkat import centre
threads, rounds, steps = map(int, sys.argv[1:])
seed_everything(42, threads)
settings = changed(centre(), {"epochs": rounds + 1, "warmup_epochs": 1, "num_threads": threads})
count = settings.train.batch_size * steps
images = LabelledImages(torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 10)
few = images.subset(torch.arange(16))
data = ImageData(images, few, tuple("0123456789"), {"sources": {}}, channel_statistics(images.images), True)
began = 0, 0
def waits(epoch):
    global began
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    print(json.dumps({"images": count, "seconds": seconds[0], "cpu_seconds": seconds[1]}), flush=True)
    sys.stdin.readline()
    began = time.perf_counter(), time.process_time()
train_vision(data, settings, torch.device("cpu"), report=waits, show_progress=False)
"""

_ACCURACY = """
import json, sys, torch
from newllm_core.config.schema import changed
from newllm_core.runs.reproducibility import seed_everything
from newllm_core.vision.data import load_image_data
from newllm_core.vision.training import train_vision
from reproduce.reference_nkat import centre
images, epochs, *seeds = map(int, sys.argv[1:])
settings = changed(centre(), {"num_train_images": images, "epochs": epochs})
data, found = load_image_data(settings.data), []
for seed in seeds:
    seed_everything(seed, 1)
    result = train_vision(data, changed(settings, {"seed": seed}), torch.device("cpu"), show_progress=False)
    found.append(result.best.selection_accuracy)
print(json.dumps(found), flush=True)
"""


def start(build: Path, program: str, *arguments: int) -> "subprocess.Popen[str]":
    """``program`` in a process that imports the package of ``build``."""
    threads = str(arguments[0]) if program is _STEPS else "1"
    environment = {**os.environ, "PYTHONPATH": str(build), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=build, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def answer(process: "subprocess.Popen[str]") -> Any:
    """The next line that it prints. Raises CalledProcessError where it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise subprocess.CalledProcessError(process.wait() or 1, "a build's steps")
    return json.loads(line)


def ask(process: "subprocess.Popen[str]") -> Any:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def steps(builds: dict[str, Path], threads: int) -> dict[str, Any]:
    """Images a second of each build, the medians of all rounds, and their ratio by round."""
    running = {name: start(build, _STEPS, threads, ROUNDS, STEPS) for name, build in builds.items()}
    try:
        for process in running.values():
            answer(process)  # the first epoch warms up
        rounds = [{name: ask(process) for name, process in running.items()} for _ in range(ROUNDS)]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    found: dict[str, Any] = {"threads": threads, "rounds": rounds}
    for kind in ("seconds", "cpu_seconds"):
        rates = {name: [one[name]["images"] / one[name][kind] for one in rounds] for name in builds}
        ratios = [new / old for new, old in zip(rates["project"], rates["earlier"], strict=True)]
        found[f"images_per_{kind[:-1]}"] = {name: statistics.median(values) for name, values in rates.items()}
        found[f"{kind}_ratio"] = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    return found


def accuracy(builds: dict[str, Path]) -> dict[str, Any]:
    """Selection accuracy of the best epoch, by build and seed, and the paired difference with its 95 % interval; both
    builds at once, a core each."""
    running = {name: start(build, _ACCURACY, FEW_IMAGES, EPOCHS, *SEEDS) for name, build in builds.items()}
    found = {name: answer(process) for name, process in running.items()}
    difference = paired_difference(found["project"], found["earlier"])
    return {"seeds": SEEDS, "images": FEW_IMAGES, "epochs": EPOCHS, **found, "difference": vars(difference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of the earlier build")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    builds = {"project": PROJECT_ROOT, "earlier": arguments.against.resolve()}
    began, load = time.perf_counter(), os.getloadavg()
    figures: dict[str, Any] = {"steps": [steps(builds, threads) for threads in THREADS]}
    for row in figures["steps"]:
        rates, ratio = row["images_per_cpu_second"], row["cpu_seconds_ratio"]
        print(f"{row['threads']} threads: {rates['earlier']:.0f} images per CPU second before, {rates['project']:.0f} "
              f"now: {ratio['median']:.2f} times; by the clock {row['seconds_ratio']['median']:.2f}")  # fmt: skip
    if arguments.accuracy:
        figures["accuracy"] = accuracy(builds)
        print(figures["accuracy"])
    write_json(
        arguments.output,
        {
            "title": "NKAT's training step", "machine": machine_facts(), "load_average_before": list(load),
            "load_average_after": list(os.getloadavg()), "seconds": time.perf_counter() - began, "figures": figures,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
