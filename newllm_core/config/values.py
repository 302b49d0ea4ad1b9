"""One reader of values, wherever they are written: ``-p``, a profile, a batch file, papermill, a parameters cell.

All of these may hand over text; what the text means is decided by the kind of the parameter that it is for, so that
``1e-3`` is a number, ``(20, 24)`` and ``[20, 24]`` are the same range, and ``my #1.jsonl`` stays a path everywhere.
"""

import ast
import types
import typing
from typing import Any

import yaml

_WORDS: dict[str, Any] = {"none": None, "null": None, "~": None, "true": True, "false": False}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LONGEST_SHOWN = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """``value`` in a message: its ``repr``, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"an integer of about {int(value).bit_length() * 3 // 10:,} digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}… ({len(text):,} characters)"


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The options of ``int | None``; a kind that is no union is its own only option."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def read_as(kind: Any, value: Any) -> Any:
    """``value`` as the kind of its parameter asks; only text, and lists of text, are read.

    ``kind``: a type, a union of types, or Any where nothing is known. What cannot be read as ``kind`` comes back as
    what it looks like, for the check of the parameter to refuse.
    """
    options = kinds_of(kind)
    if isinstance(value, list | tuple):
        return _read_members(options, value)
    if not isinstance(value, str):
        return value
    if types.NoneType in options and (not value or _WORDS.get(value.lower(), value) is None):
        return None
    if bool in options and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    for number in (int, float):
        if number in options and (read := _number(value, number)) is not None:
            return read
    if str in options:
        return _unquoted(value)
    found = looks_like(value)
    return _read_members(options, found) if isinstance(found, list | tuple) else found


def looks_like(text: str) -> Any:
    """A value whose kind is not known: a number, a truth value, None, a list, a tuple, or else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        if (read := _number(text, number)) is not None:
            return read
    return _sequence(text) if text[:1] in ("[", "(") else _unquoted(text)


def _number(text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _sequence(text: str) -> Any:
    """A list or tuple, written as in Python (``["a"]``) or as in YAML (``[a]``); the text where it is neither."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        try:
            found = yaml.load(text, yaml.BaseLoader)  # noqa: S506  -- the loader that builds only text, lists, mappings
        except (yaml.YAMLError, RecursionError):
            return text
    return found if isinstance(found, list | tuple) else text


def _unquoted(text: str) -> str:
    """Messages offer ``'chitchat'``: with its quotes it is the same."""
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError):
            return text
        return found if isinstance(found, str) else text
    return text


def _read_members(options: tuple[Any, ...], values: list[Any] | tuple[Any, ...]) -> Any:
    """A tuple kind gives its members their kinds; in a list each is what it looks like."""
    for option in options:
        members = typing.get_args(option)
        if typing.get_origin(option) is tuple and len(members) == len(values):
            return tuple(map(read_as, members, values))
    kind = list if list in options else type(values)
    return kind(looks_like(value) if isinstance(value, str) else value for value in values)
