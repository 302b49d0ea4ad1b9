"""Settings from a notebook's parameters cell, in the kernel and outside of it.

A kernel holds more than parameters: what earlier cells computed, variables of the user's own, values of a parameters
cell that has been changed since. So the names and values are read from the *source* of the cells that were run last:
the parameters cell, the cell that papermill injects behind it, Colab's form fields (``# @param``). That is the same
under Jupyter, VS Code, Colab and papermill, whose kernels all keep the source of each cell in ``In``.
"""

import ast
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from newllm_core.config.schema import ConfigError, changed, parameter_fields, parameter_kinds, require_kind
from newllm_core.config.values import read_as

_INJECTED = re.compile(r"^# Parameters$", re.MULTILINE)  # how papermill's cell begins
_FORM = re.compile(r"#\s*@param\b")  # Colab's
_PLAIN = (str, int, float, list, tuple, type(None))
_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (str, int, float, bool, list, tuple)} | {"None": None}


@dataclass(frozen=True)
class Parameter:
    """``value`` as it stands in the cell; ``kind`` from its annotation or, without one, from the value."""

    value: Any
    kind: Any


class NotebookSettings:
    """What ``Settings`` of either line have in common: how they come from a notebook's flat parameters."""

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], own: Collection[str] = ()) -> Self:
        """The defaults, changed by flat parameters; see ``schema.changed``. Raises ConfigError."""
        return changed(cls(), parameters, own)

    @classmethod
    def from_notebook(cls, own: Collection[str] = ()) -> Self:
        """What the notebook's parameters cells say now; each value is read as its kind asks (``values.read_as``).

        ``own``: the notebook's further parameters. Afterwards the variables of all parameters hold what was read,
        whatever other cells made of them. Raises ConfigError for an unknown name and an impossible value, and outside
        a notebook.
        """
        shell, known = _shell(), {*parameter_fields(cls), *own}
        namespace, history = shell.user_ns, shell.history_manager.input_hist_parsed
        kept = any(history)  # nbval's kernel keeps no sources
        written = _merged(parameter_cells(history, known)) if kept else _plain_values(namespace, known)
        parameters = read_parameters(cls, written, own)
        settings = cls.from_parameters(parameters, own)
        namespace.update(parameters)
        return settings


def read_parameters(settings_type: type, written: Mapping[str, Parameter], own: Iterable[str]) -> dict[str, Any]:
    """The value of each parameter, read as the configuration's or the cell's kind. Raises ConfigError for ``own``."""
    kinds = parameter_kinds(settings_type)
    values = {name: read_as(kinds.get(name, one.kind), one.value) for name, one in written.items()}
    for name in own:
        if name not in written:
            raise ConfigError(f"parameter {name!r}: the parameters cell does not have it; run that cell again, whole")
        require_kind(name, values[name], written[name].kind)
    return values


def cell_parameters(source: str) -> dict[str, Parameter]:
    """The parameters of a cell that holds ``name = literal`` lines only. Raises ConfigError for any other line.

    A value that is computed there would keep the default's result when papermill injects other parameters behind it.
    """
    try:
        return dict(_assigned_literal(statement) for statement in ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the parameters cell takes lines of the form name = literal; {error}") from error


def _assigned_literal(statement: ast.stmt) -> tuple[str, Parameter]:
    """The name and value of ``name = literal``, annotated or not. Raises ValueError for any other statement."""
    name = _target(statement)
    if name is not None and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        try:
            found = ast.literal_eval(statement.value)
        except ValueError:
            pass  # not a literal: said below, with the line
        else:
            return name, Parameter(found, _kind(getattr(statement, "annotation", None), found))
    raise ValueError(f"line {statement.lineno} is: {ast.unparse(statement)}")


def _target(statement: ast.stmt) -> str | None:
    """The name that ``name = …`` or ``name: kind = …`` assigns; None for any other statement."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    single = isinstance(statement, ast.Assign | ast.AnnAssign) and len(targets) == 1 and statement.value is not None
    return targets[0].id if single and isinstance(targets[0], ast.Name) else None


def _kind(annotation: ast.expr | None, value: Any) -> Any:
    """``int | None`` from its source; without an annotation the value's own kind, and Any for None."""
    if annotation is None:
        return typing.Any if value is None else type(value)
    if isinstance(annotation, ast.BinOp):
        return _kind(annotation.left, value) | _kind(annotation.right, value)
    return _KINDS.get(ast.unparse(annotation), typing.Any)


@dataclass(frozen=True)
class _Cell:
    source: str
    names: frozenset[str]  # that its top level assigns

    @property
    def injected(self) -> bool:
        return _INJECTED.search(self.source) is not None

    def repeats(self, earlier: "_Cell") -> bool:
        """The same cell, run again after a change: it assigns at least half of the earlier one's names."""
        return self.injected == earlier.injected and 2 * len(self.names & earlier.names) >= len(earlier.names)

    def is_literal(self) -> bool:
        try:
            return bool(cell_parameters(self.source))
        except ConfigError:
            return False


def parameter_cells(history: Sequence[str], known: Collection[str]) -> list[str]:
    """The sources of the parameters cells in force, in the order they were run; empty when there is none.

    ``history``: the sources of all cells, as run. A cell of literals belongs to the parameters when all that it
    assigns are parameters, the first one already when most are (the others are misspelled); papermill's and forms
    always do. When one of them runs again, it takes the place of its earlier form and of all that came after that.
    """
    in_force: list[_Cell] = []
    for source in history:
        cell = _cell(source)
        if cell is None:
            continue
        place = next((place for place, one in enumerate(in_force) if cell.repeats(one)), None)
        if place is not None:
            in_force = [*in_force[:place], cell]
        elif _is_new(cell, known, first=not in_force):
            in_force.append(cell)
    return [cell.source for cell in in_force]


def _is_new(cell: _Cell, known: Collection[str], *, first: bool) -> bool:
    if cell.injected or _FORM.search(cell.source):
        return True
    share = len(cell.names & set(known)) / len(cell.names)
    return share >= 0.5 if first else share == 1 and cell.is_literal()


def _cell(source: str) -> _Cell | None:
    """None for a cell that assigns nothing, or is not Python."""
    try:
        targets = [_target(statement) for statement in ast.parse(source).body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = frozenset(name for name in targets if name is not None)
    return _Cell(source, names) if names else None


def _merged(cells: Iterable[str]) -> dict[str, Parameter]:
    """Later cells go before earlier ones, but a kind is that of the cell that states it first: the notebook's own.

    Raises ConfigError when there is no cell, or one that computes a value.
    """
    merged: dict[str, Parameter] = {}
    for source in cells:
        for name, given in cell_parameters(source).items():
            merged[name] = Parameter(given.value, merged.get(name, given).kind)
    if not merged:
        raise ConfigError("no parameters: run the parameters cell (lines of the form name = literal) first")
    return merged


def _plain_values(namespace: Mapping[str, Any], known: Collection[str]) -> dict[str, Parameter]:
    """Where a kernel keeps no sources, each cell runs once: so far it holds parameters, and what code imported."""
    ours = {
        name: value
        for name, value in namespace.items()
        if name in known or (isinstance(value, _PLAIN) and not name.startswith("_") and name != "In")
    }
    return {name: Parameter(value, _kind(None, value)) for name, value in ours.items()}


def _shell() -> Any:
    """The running IPython. Raises ConfigError where there is none."""
    try:
        from IPython import get_ipython
    except ImportError:  # not a requirement of the package
        shell = None
    else:
        shell = get_ipython()  # type: ignore[no-untyped-call]
    if shell is None:
        raise ConfigError("from_notebook: expected to run in a notebook; in a script, use from_parameters({...})")
    return shell
