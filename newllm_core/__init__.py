"""New-LLM: a language model without attention, trained in two phases.

    import newllm_core as nl

    run = nl.run(nl.Settings.from_parameters({"num_samples": 40}))
    print(run.report())
    run.show("epochs")

Names and rooms are imported when they are first used (PEP 562), so that importing a part does not import the whole.
"""

import importlib
import io
import sys
import time
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
IMPORTED = time.time()  # against which the files' own times are held: runs/runtime.py

if TYPE_CHECKING:
    from newllm_core.api import Run, gallery, machine, prepare, run, sweep
    from newllm_core.config.hyperparameters import Settings
    from newllm_core.contexts.shooting import exact_contexts
    from newllm_core.experiment.estimate import estimate
    from newllm_core.head.cross_entropy import frozen_head_cross_entropy
    from newllm_core.losses import register_diversity_loss
    from newllm_core.metrics.rank import effective_rank
    from newllm_core.model.llm import NewLLM
    from newllm_core.vision.settings import VisionSettings

for _stream in (sys.stdout, sys.stderr):
    # On a terminal that is not Unicode, α and ± in a report are printed as "?" instead of ending the run.
    if isinstance(_stream, io.TextIOWrapper) and not _stream.encoding.lower().startswith("utf"):
        _stream.reconfigure(errors="replace")

_HOMES = {
    "NewLLM": "model.llm",
    "Run": "api",
    "Settings": "config.hyperparameters",
    "VisionSettings": "vision.settings",
    "effective_rank": "metrics.rank",
    "estimate": "experiment.estimate",
    "exact_contexts": "contexts.shooting",
    "frozen_head_cross_entropy": "head.cross_entropy",
    "gallery": "api",
    "machine": "api",
    "prepare": "api",
    "register_diversity_loss": "losses",
    "run": "api",
    "sweep": "api",
}
_ROOMS = (
    "baselines", "comparison", "config", "contexts", "data", "experiment", "head", "intervals", "losses", "metrics",
    "model", "report", "runs", "scaling", "studies", "training", "vision",
)  # fmt: skip

__all__ = [
    "NewLLM",
    "Run",
    "Settings",
    "VisionSettings",
    "effective_rank",
    "estimate",
    "exact_contexts",
    "frozen_head_cross_entropy",
    "gallery",
    "machine",
    "prepare",
    "register_diversity_loss",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; expected one of {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
