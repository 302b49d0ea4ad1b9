"""What a record's keys mean, once: for the check of a record, and for the page that explains it.

A record is described by a mapping from dotted paths to ``Key``. `epochs[]` stands for every element of a list, `*` for
any name, and an object or a list of objects has an entry of its own only where all of it may be missing.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm_core.runs.files import RunError

# Of every record. 1: records without this key, up to November 2026.
FORMAT = 3
SAME_SUM = 1e-9  # relative difference that rounding can make between two ways to add up

# What a value of each kind must be; missing is null, and only where the key says so.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a text", lambda value: isinstance(value, str)),
    "truth": ("true or false", lambda value: isinstance(value, bool)),
    "count": ("a whole number, at least 0", lambda value: _is_whole(value) and value >= 0),
    "number": ("a finite number", lambda value: _is_number(value)),
    "positive": ("a finite number above 0", lambda value: _is_number(value) and value > 0),
    "share": ("a number in 0 … 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "hash": ("a SHA-256 in 64 hexadecimal digits", lambda value: _is_hash(value)),
    "any": ("any value", lambda value: True),
    "object": ("an object", lambda value: isinstance(value, dict)),
}


@dataclass(frozen=True)
class Key:
    """One key of a record.

    Attributes:
        kind: a name in ``_KINDS``; at the end of a path with `[]`, that of every element.
        meaning: its definition, in a phrase.
        unit: of a figure.
        missing: what a null means; empty where null is an error.
        optional: whether the key itself may be absent.
    """

    kind: str
    meaning: str
    unit: str = ""
    missing: str = ""
    optional: bool = False


Keys = Mapping[str, Key]

# What `reproducibility.computed_by` says.
COMPUTED_KEYS = {
    "device": Key("text", "device that computed"),
    "arithmetic": Key("object", "what rounding depends on beside versions", missing="made before format 2"),
    "arithmetic.cpu": Key("text", "the processor's model name", missing="the system does not tell"),
    "arithmetic.capability": Key("text", "vector instructions that torch uses: DEFAULT, AVX2, AVX512 …"),
    "arithmetic.bf16_products": Key("truth", "whether products in bfloat16 are faster on this CPU (runs/products.py)"),
    "arithmetic.ranks": Key("count", "processes that computed it together; left out for one", optional=True),
    "versions.*": Key("text", "of Python and of a library"),
    "commit": Key("text", "of the checkout, `+changes` with files that differ", missing="outside a git checkout"),
}


def check_record(
    record: Mapping[str, Any], path: Path, whose: str, keys: Keys,
    contradictions: Callable[[Mapping[str, Any]], Iterable[str]],
) -> None:  # fmt: skip
    """Raises RunError for a record of an earlier version, with the way on; else one that names every wrong key of the
    record at ``path`` or, where all are right, the figures that contradict others.
    """
    if record.get("format") != FORMAT:
        raise RunError(
            f"{path}: expected a record of format {FORMAT}, given {record.get('format', 'none')}; "
            "`python -m reproduce.records migrate` brings records of earlier versions up to date"
        )
    lines = wrong_keys(record, keys) or list(contradictions(record))
    if lines:
        raise RunError("\n  ".join([f"{path}: not {whose} record:", *lines]))


def unequal(path: str, given: Any, other: str, expected: Any) -> Iterator[str]:
    """A sentence where two figures of a record should be equal and are not.

    They are the same sum in another order or precision; an altered digit shows up to the ninth place.
    """
    rounded = isinstance(given, float) and isinstance(expected, float)
    if not (math.isclose(given, expected, rel_tol=SAME_SUM) if rounded else given == expected):
        yield f"{path} is {given!r}, but {other} gives {expected!r}"


@dataclass
class _Node:
    """The part of a record at one path. ``element`` is what a list holds, ``children`` what an object holds."""

    key: Key | None = None
    element: "_Node | None" = None
    children: dict[str, "_Node"] = field(default_factory=dict)


def wrong_keys(record: Any, keys: Keys) -> list[str]:
    """A sentence for every key that is missing, unknown or of the wrong kind, each with its dotted path."""
    return _wrong(record, _tree(keys), "")


def _tree(keys: Keys) -> _Node:
    root = _Node()
    for path, key in keys.items():
        node = root
        for part in path.split("."):
            name = part.rstrip("[]")
            node = node.children.setdefault(name, _Node())
            if part.endswith("[]"):
                node.element = node.element or _Node()
                node, holder = node.element, node
        if part.endswith("[]"):
            # A list's null, and its absence, are the list's; its kind is the elements'.
            holder.key = Key("any", key.meaning, missing=key.missing, optional=key.optional)
            key = Key(key.kind, key.meaning)
        node.key = key
    return root


def _wrong(value: Any, node: _Node, path: str) -> list[str]:
    missing_allowed = node.key is not None and bool(node.key.missing)
    if value is None and missing_allowed:
        return []
    if node.element is not None:
        if not isinstance(value, list):
            return [f"{path}: expected a list, given {_short(value)}"]
        element = node.element
        return [line for number, one in enumerate(value) for line in _wrong(one, element, f"{path}[{number}]")]
    if node.children:
        return _wrong_children(value, node, path)
    expected, fits = _KINDS[node.key.kind if node.key else "object"]
    return [] if fits(value) else [f"{path}: expected {expected}, given {_short(value)}"]


def _wrong_children(value: Any, node: _Node, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path or 'the record'}: expected an object, given {_short(value)}"]
    lines = []
    for name, child in node.children.items():
        if name not in value and name != "*" and not (child.key and child.key.optional):
            lines.append(f"{_joined(path, name)}: missing")
    for name, one in value.items():
        found = node.children.get(name) or node.children.get("*")
        lines += [_unknown(_joined(path, name), node)] if found is None else _wrong(one, found, _joined(path, name))
    return lines


def _unknown(path: str, node: _Node) -> str:
    nearest = difflib.get_close_matches(path.rsplit(".", 1)[-1], node.children, n=1)
    hint = f" (nearest known: {nearest[0]})" if nearest else ""
    return f"{path}: unknown key{hint}"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # Of a whole number of hundreds of digits math.isfinite would raise.
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def key_table(keys: Keys) -> str:
    """The keys as a Markdown table: path, kind, unit, meaning."""
    lines = ["| key | kind | unit | meaning |", "|---|---|---|---|"]
    for path, key in keys.items():
        kind = _KINDS[key.kind][0] + ("; or absent" if key.optional else "")
        meaning = key.meaning + (f"; null: {key.missing}" if key.missing else "")
        lines.append(f"| `{path}` | {kind} | {key.unit} | {meaning} |")
    return "\n".join(lines)


def config_keys(settings_type: type, sections: Iterable[str]) -> dict[str, Key]:
    """`config.<section>.<field>` for these sections; fields that came later stand where they are set."""
    kinds = typing.get_type_hints(settings_type)
    return {
        f"config.{section}.{spec.name}": Key(
            "any", _values_of(spec), optional=not spec.metadata.keys().isdisjoint(_ABSENT)
        )
        for section in sections
        for spec in dataclasses.fields(kinds[section])
    }


# Fields that came later stand in a record only where they are set; where a file lay is no part of a configuration.
_ABSENT = ("before", "location")


def _values_of(spec: dataclasses.Field[Any]) -> str:
    """Which values a config field takes, and its default."""
    limits = spec.metadata
    if "choices" in limits:
        others = [f"such as {limits['example']}"] if "pattern" in limits else []
        return f"one of {', '.join([*limits['choices'], *others])}"
    words = {"low": "at least", "high": "at most", "above": "above"}
    ranges = [f"{words[name]} {limits[name]:g}" for name in words if limits.get(name) is not None]
    before = limits.get("before", spec.default)
    absent = [f"absent: {before!r}"] if before != spec.default else []
    return "; ".join([str(getattr(spec.type, "__name__", spec.type)), *ranges, f"default {spec.default!r}", *absent])
