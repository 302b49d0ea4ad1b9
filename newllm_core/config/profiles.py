"""Parameters from outside a notebook: YAML files, and ``-p NAME VALUE`` on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from newllm_core.config.schema import ConfigError


class _TextLoader(yaml.BaseLoader):
    """Every scalar stays the text that it is written as: its parameter's kind says what it means (``values.read_as``).

    YAML's own guesses make `off` a truth value, `1e-3` text, `2024-01-02` a date, and the later of two equal keys wins.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Lists, mappings and text of a YAML file. Raises ConfigError naming the file."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:  # TypeError: a list as a key
        raise ConfigError(f"{path}: not YAML ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply for a file of parameters") from error


def load_profile(path: Path | str) -> dict[str, Any]:
    """The parameters of a profile, a flat YAML mapping, as text and lists of text.

    ``Settings.from_parameters`` gives each its kind. Raises ConfigError for anything else than such a mapping.
    """
    profile = read_yaml(Path(path))
    if not isinstance(profile, dict):
        found = "nothing" if profile in (None, "") else type(profile).__name__
        raise ConfigError(f"{path}: expected lines of the form name: value, found {found}")
    nested = [name for name, value in profile.items() if isinstance(value, dict)]
    if nested:
        raise ConfigError(f"{path}: expected lines of the form name: value, found a mapping under {nested[0]!r}")
    return profile


def take_parameters(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The ``-p NAME VALUE`` of a command line, and the words that are left.

    argparse would take the value ``-1e-1`` for an option. Raises ConfigError where name or value is missing.
    """
    parameters: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word != "-p":
            rest.append(word)
            continue
        name, value = next(waiting, None), next(waiting, None)
        if name is None or value is None:
            raise ConfigError(f"-p: expected a name and a value, given {'nothing' if name is None else repr(name)}")
        parameters[name] = value
    return parameters, rest
