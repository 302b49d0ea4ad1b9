"""A hundred runs of a tiny notebook in batches of four, one of which is killed in the middle and started again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from newllm_core.batch.jobs import BatchError, load_batch
from newllm_core.batch.notebooks import run_batch

NUMBER, AT_A_TIME = 100, 4
_KILL_AFTER = 30  # notebooks that are finished
_LOOK_SECONDS = 0.5
# Each leaves a line; a collision would be two that write one output, or find each other's number in it.
_CELL = "with open({!r}, 'a') as lines: print(num_samples, file=lines)\nprint('number', num_samples)"


def batches_of_notebooks(root: Path, number: int = NUMBER) -> dict[str, Any]:
    """Counts of what came of ``number`` runs, of a batch killed with SIGKILL and gone on with."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    lines, batch = root / "lines.txt", root / "batch.yaml"
    cells = [
        new_code_cell("num_samples = 1", metadata={"tags": ["parameters"]}),
        new_code_cell(_CELL.format(str(lines))),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), root / "tiny.ipynb")
    jobs = [
        {
            "notebook": str(root / "tiny.ipynb"),
            "output": str(root / "out" / f"{one}.ipynb"),
            "parameters": {"num_samples": one},
        }
        for one in range(1, number + 1)
    ]
    misspelled = _refused(
        [*jobs, {**jobs[0], "output": str(root / "out" / "x.ipynb"), "parameters": {"num_sample": 1}}]
    )
    batch.write_text(yaml.safe_dump(jobs), encoding="utf-8")
    began = time.perf_counter()
    before = _killed_in_the_middle(batch, root / "out", _KILL_AFTER * number // NUMBER)
    outcomes = run_batch(load_batch(batch), workers=AT_A_TIME)
    done = [int(line) for line in lines.read_text(encoding="utf-8").split()]
    return {
        "runs": number, "at_a_time": AT_A_TIME, "finished_before_the_kill": before,
        "skipped_after_it": sum(one.status == "skipped" for one in outcomes),
        "lost": sum(one.status == "failed" for one in outcomes) + sum(one not in done for one in range(1, number + 1)),
        "collisions": sum(not _is_own(root / "out" / f"{one}.ipynb", one) for one in range(1, number + 1)),
        "begun_again": len(done) - len(set(done)),  # of those that ran when the batch was killed
        "misspelled_parameter_refused_before_anything_ran": misspelled,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _refused(jobs: list[dict[str, Any]]) -> bool:
    try:
        run_batch(jobs, workers=AT_A_TIME)
    except BatchError as error:
        return "Did you mean 'num_samples'" in str(error) and not Path(jobs[0]["output"]).parent.exists()
    return False


def _killed_in_the_middle(batch: Path, out: Path, after: int) -> int:
    """Start the batch as a user does, kill it with SIGKILL; how many notebooks were finished then."""
    command = [sys.executable, "-m", "newllm_core.batch", "--batch", str(batch), "--workers", str(AT_A_TIME)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and _finished(out) < after:
        time.sleep(_LOOK_SECONDS)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return _finished(out)


def _finished(out: Path) -> int:
    return sum(path.stem.isdigit() for path in out.glob("*.ipynb"))


def _is_own(path: Path, number: int) -> bool:
    """Whether an executed notebook holds the output of its own parameter, once."""
    outputs = [output.get("text", "") for cell in nbformat.read(path, as_version=4).cells for output in cell.outputs]
    return outputs == [f"number {number}\n"]
