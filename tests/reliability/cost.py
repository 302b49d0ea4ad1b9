"""python -m tests.reliability.cost [RECORD]: what checkpoints, checksums, locks and syncs take of a run's CPU seconds.

Runs again, in a folder of its own, what a committed record was made by (without one the quick profile, which is the
shortest and so the dearest), and adds up the outermost calls of everything that only guards the run.
"""

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from newllm_core.experiment.folder_names import settings_of
from newllm_core.experiment.run import run_experiment
from newllm_core.runs import checkpoint, files, lock
from newllm_core.runs.files import REFERENCE_DIR, read_json

QUICK = "quick/03_phase2/*/run.json"
# By what they are: where each is looked up, module by module.
GUARDS = {
    "checkpoints": ("save_checkpoint", "discard_checkpoint", "load_checkpoint"),
    "checksums": ("sha256_file", "sha256_tensors", "content_sha256", "_json_sha256", "has_valid_checksum"),
    "locks": ("_locked", "remove_abandoned_lock"),
    "syncs": ("sync",),
}


def measured(record: Path, spent: Counter[str]) -> float:
    """CPU seconds of the whole run; those of its guards are added to ``spent``."""
    settings = settings_of(read_json(record))
    for kind, names in GUARDS.items():
        for name in names:
            _watch(name, kind, spent)
    with TemporaryDirectory() as place:
        began = time.process_time()
        run_experiment(
            settings.data, settings.model, settings.phase1, settings.phase2, Path(place) / "run", run=settings.run,
            data_dir=Path(place) / "data",
        )  # fmt: skip
        return time.process_time() - began


def _watch(name: str, kind: str, spent: Counter[str]) -> None:
    """Wherever the package has looked the function up by its name."""
    function = next(vars(one)[name] for one in (files, checkpoint, lock) if name in vars(one))
    timed = _timed(function, kind, spent)
    for module in [module for key, module in sys.modules.items() if key.startswith("newllm_core")]:
        if vars(module).get(name) is function:
            setattr(module, name, timed)


_inside = Counter[str]()


def _timed(function: Callable[..., Any], kind: str, spent: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        if _inside["guards"]:
            return function(*arguments, **options)
        _inside["guards"] += 1
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[kind] += time.process_time() - began
            _inside["guards"] -= 1

    return timed


def main() -> None:
    (record,) = [Path(word) for word in sys.argv[1:2]] or REFERENCE_DIR.glob(QUICK)
    spent = Counter[str]()
    seconds = measured(record, spent)
    for kind in GUARDS:
        print(f"{kind}: {spent[kind]:.3f} s, {spent[kind] / seconds:.2%}")
    print(f"together: {sum(spent.values()):.3f} of {seconds:.1f} CPU seconds, {sum(spent.values()) / seconds:.2%}")


if __name__ == "__main__":
    main()
