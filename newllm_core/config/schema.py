"""Kinds and ranges of fields, unknown names, flat parameters and hashes, for every dataclass of hyperparameters.

A field's metadata says which values it takes; ``validate`` enforces that when a config is built, so an impossible value
is an error where it is written, not an hour into a run. Unknown names are errors too, with the nearest known one.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar

from newllm_core.config.values import read_as, shown

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what was expected and what was given."""


LARGEST = {int: 2**53, float: 1e38}  # in size: what a float still counts exactly, what single precision holds
LARGEST_EPOCHS = 1000  # far above what was ever of use, and even then a run has an end
LARGEST_RATE = 1e37  # of learning: Adam's first step is ten times that, and has to fit single precision

LARGEST_ORDER = 32  # of n-grams: beyond a few tokens nearly none occurs twice


def number(default: Any, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A numeric field: ``low <= value <= high``; with ``above``, ``value > above``."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def choice(default: str, *others: str, pattern: str | None = None, example: str = "") -> Any:
    """A field with one of these values; or, with ``pattern``, a text that it describes, such as ``example``."""
    more = {} if pattern is None else {"pattern": pattern, "example": example}
    return field(default=default, metadata={"choices": (default, *others), **more})


def location() -> Any:
    """A field that says where something lies, or None. It is no part of what a run is: its content is, by its hash."""
    return field(default=None, metadata={"location": True})


def resource(spec: Any) -> Any:
    """A field that says what a run may use of the machine: as a location no part of what a run is."""
    return field(default=spec.default, metadata={**spec.metadata, "location": True})


_AS_DEFAULT: Any = object()


def later(spec: Any, before: Any = _AS_DEFAULT) -> Any:
    """A field that was added after runs had been kept: names and records leave it out at its default, a location
    always.

    Args:
        before: what runs did before the field was there, where that is another value: it is left out instead.
    """
    before = spec.default if before is _AS_DEFAULT else before
    return field(default=spec.default, metadata={**spec.metadata, "before": before})


def type_matches(value: Any, expected: Any) -> bool:
    """Whether ``value`` is of the kind ``expected``, a type or a union; a truth value is no number."""
    if isinstance(expected, types.UnionType):
        return any(type_matches(value, option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        members = typing.get_args(expected)
        return isinstance(value, tuple) and len(value) == len(members) and all(map(type_matches, value, members))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is None or expected is types.NoneType:
        return value is None
    return expected is Any or isinstance(value, expected)


def _check_range(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices, low, high, above = (limits.get(key) for key in ("choices", "low", "high", "above"))
    pattern = limits.get("pattern")
    if choices is not None and value not in choices and not (pattern and re.fullmatch(pattern, value)):
        offered = ", ".join(map(repr, choices)) + (f" or such as {limits['example']!r}" if pattern else "")
        raise ConfigError(f"{name}: expected one of {offered}, given {shown(value)}")
    for member in value if isinstance(value, tuple) else (value,):
        _check_size(name, member)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if low is not None and value < low:
        raise ConfigError(f"{name}: expected at least {low}, given {shown(value)}")
    if high is not None and value > high:
        raise ConfigError(f"{name}: expected at most {high}, given {shown(value)}")
    if above is not None and value <= above:
        raise ConfigError(f"{name}: expected more than {above}, given {shown(value)}")


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number, given {value!r}")
    limit = LARGEST.get(type(value))
    if limit is not None and abs(value) > limit:
        raise ConfigError(f"{name}: expected a number between {-limit} and {limit}, given {shown(value)}")


def require_kind(name: str, value: Any, kind: Any) -> None:
    """Raises ConfigError, with ``name``, for a value of another kind."""
    if not type_matches(value, kind):
        expected = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        raise ConfigError(f"{name}: expected {expected}, given {shown(value)} ({type(value).__name__})")


def validate(config: Any) -> None:
    """Check each field's type and range. Raises ConfigError."""
    hints = typing.get_type_hints(type(config))
    for spec in dataclasses.fields(config):
        name, value = f"{type(config).__name__}.{spec.name}", getattr(config, spec.name)
        require_kind(name, value, hints[spec.name])
        _check_range(name, value, spec.metadata)
        if hints[spec.name] is float:
            # 1 and 1.0 are the same configuration and must be written, and hashed, alike.
            object.__setattr__(config, spec.name, float(value))


def unknown_name_message(kind: str, name: str, known: typing.Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest known one, and all of them."""
    known = sorted(known)
    # A name that sections share is known with its section in front only.
    nearest = [full for full in known if full.endswith(f"_{name}")] or difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Expected one of: {', '.join(known)}"


def from_mapping(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from a mapping such as parsed YAML or JSON; its values are read (``values.read_as``).

    Raises ConfigError for an unknown key or an impossible value.
    """
    hints = typing.get_type_hints(config_type)
    for name in values:
        if name not in hints:
            raise ConfigError(unknown_name_message(f"key of {config_type.__name__}", name, hints))
    return config_type(**{name: read_as(hints[name], value) for name, value in values.items()})


AnySettings = typing.TypeVar("AnySettings", bound=typing.Any)  # Settings, or another dataclass of such sections


def parameter_fields(settings_type: type) -> dict[str, tuple[str, str]]:
    """Notebook parameter -> (section, field). A field name that two sections share is prefixed by its section."""
    pairs = [
        (section.name, spec.name)
        for section in dataclasses.fields(settings_type)
        for spec in dataclasses.fields(section.type)  # type: ignore[arg-type]
    ]
    names = [name for _, name in pairs]
    return {(name if names.count(name) == 1 else f"{section}_{name}"): (section, name) for section, name in pairs}


def parameter_kinds(settings_type: type) -> dict[str, Any]:
    """Notebook parameter -> the type, or union of types, of its values."""
    hints = {section.name: typing.get_type_hints(section.type) for section in dataclasses.fields(settings_type)}
    return {name: hints[section][key] for name, (section, key) in parameter_fields(settings_type).items()}


def changed(settings: AnySettings, changes: Mapping[str, Any], own: typing.Collection[str] = ()) -> AnySettings:
    """``settings`` with some fields changed at once, by their flat names (``parameter_fields``); values are read.

    ``own``: further parameters, a notebook's, which are left out. Raises ConfigError for any other name, so that a
    misspelled parameter cannot run on with a default, and for an impossible value or combination.
    """
    fields, kinds = parameter_fields(type(settings)), parameter_kinds(type(settings))
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name in fields:
            section, key = fields[name]
            sections.setdefault(section, {})[key] = read_as(kinds[name], value)
        elif name not in own:
            raise ConfigError(unknown_name_message("parameter", name, [*fields, *own]))
    replaced = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in sections.items()}
    return dataclasses.replace(settings, **replaced)


def at_defaults(config: Config, names: typing.Collection[str]) -> Config:
    """A config with the fields ``names`` at their defaults: equal for all that differ in these alone."""
    specs: Any = dataclasses.fields(config)  # type: ignore[arg-type]
    return dataclasses.replace(config, **{spec.name: spec.default for spec in specs if spec.name in names})  # type: ignore[type-var]


def location_parameters(settings_type: type) -> set[str]:
    """The flat names of the fields that say where something lies."""
    specs = {
        (section.name, spec.name): spec
        for section in dataclasses.fields(settings_type)
        for spec in dataclasses.fields(section.type)  # type: ignore[arg-type]
    }
    return {name for name, place in parameter_fields(settings_type).items() if specs[place].metadata.get("location")}


def from_sections(settings_type: type[AnySettings], stored: Mapping[str, Mapping[str, Any]]) -> AnySettings:
    """Settings from what a record says of them, section by section; one that it lacks is the default, and a field that
    came later is what it was before."""
    kinds = {spec.name: spec.type for spec in dataclasses.fields(settings_type)}
    sections = {
        name: from_mapping(kind, {**_before(kind), **stored[name]})  # type: ignore[arg-type]
        for name, kind in kinds.items()
        if name in stored
    }
    return settings_type(**sections)


def _before(config_type: Any) -> dict[str, Any]:
    later_fields = (spec for spec in dataclasses.fields(config_type) if "before" in spec.metadata)
    return {spec.name: spec.metadata["before"] for spec in later_fields}


def config_values(config: Any) -> dict[str, Any]:
    """What names and records say of a config, as JSON gives it back, so that a stored one compares equal.

    Locations are null, and what was added later is left out at what it was before.
    """
    values: dict[str, Any] = json.loads(json.dumps(_values(config), allow_nan=False))
    return values


def _values(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    return {
        spec.name: None if spec.metadata.get("location") else _values(getattr(value, spec.name))
        for spec in dataclasses.fields(value)
        if not (
            "before" in spec.metadata
            and (spec.metadata.get("location") or getattr(value, spec.name) == spec.metadata["before"])
        )
    }


def config_hash(*configs: Any) -> str:
    """Eight hexadecimal digits that change with any field of any of the configs but locations."""
    text = json.dumps([config_values(config) for config in configs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
