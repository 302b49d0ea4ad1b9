"""Two records held against each other, key by key."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def differences(first: Any, second: Any, relative: float = 0.0, path: str = "") -> Iterator[str]:
    """A line for every key, with its dotted path, that only one of them has or whose values differ.

    ``relative``: by how much figures may differ, as a share of the larger one; 0: not at all, nor in kind.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in [*first, *(name for name in second if name not in first)]:
            at = f"{path}.{name}" if path else str(name)
            if name not in first or name not in second:
                yield f"{at}: only in the {'first' if name in first else 'second'}"
            else:
                yield from differences(first[name], second[name], relative, at)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, other, relative, f"{path}[{number}]")
    elif not _alike(first, second, relative):
        yield f"{path}: {_short(first)} and {_short(second)}"


def _alike(first: Any, second: Any, relative: float) -> bool:
    if relative and all(isinstance(one, int | float) and not isinstance(one, bool) for one in (first, second)):
        return math.isclose(first, second, rel_tol=relative, abs_tol=relative)
    return type(first) is type(second) and first == second


def _short(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
