"""NKAT Stage 2: a small vision transformer, judged by how well it generalises for the theory it carries.

Source: docs/method.md, section 12. As of the package itself, rooms are imported when they are first used.
"""

import importlib
from typing import Any

_ROOMS = (
    "config", "data", "experiment", "interpretation", "report", "runner", "score", "search", "settings", "variants",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; expected one of {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted(_ROOMS)
