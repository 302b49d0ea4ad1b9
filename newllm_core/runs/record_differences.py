"""Two records held against each other, key by key."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """By how much two figures may differ: ``relative`` of the larger one, or ``absolute`` in their own unit."""

    relative: float
    absolute: float


def differences(first: Any, second: Any, tolerance: Tolerance | None = None, path: str = "") -> Iterator[str]:
    """A line for every key, with its dotted path, that only one of them has or whose values differ.

    Without a ``tolerance`` figures must be the same to the last bit, and of the same kind.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in [*first, *(name for name in second if name not in first)]:
            at = f"{path}.{name}" if path else str(name)
            if name not in first or name not in second:
                yield f"{at}: only in the {'first' if name in first else 'second'}"
            else:
                yield from differences(first[name], second[name], tolerance, at)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, other, tolerance, f"{path}[{number}]")
    elif not _alike(first, second, tolerance):
        yield f"{path}: {_short(first)} and {_short(second)}"


def _alike(first: Any, second: Any, tolerance: Tolerance | None) -> bool:
    if tolerance and all(isinstance(one, int | float) and not isinstance(one, bool) for one in (first, second)):
        return math.isclose(first, second, rel_tol=tolerance.relative, abs_tol=tolerance.absolute)
    return type(first) is type(second) and first == second


def _short(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
