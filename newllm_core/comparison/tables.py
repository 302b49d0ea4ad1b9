"""Figures side by side: as numbers, to be computed with, and as text, to be read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from newllm_core.intervals import NOT_MEASURED, Estimate, interval_text

Cell = Estimate | float | str | None
VERDICT = "verdict"  # the column of what a comparison comes to
_PATTERNS = {
    "contraction rate": "{:+.4f}", "contraction, nats a token": "{:+.3f}", "bits a byte": "{:.3f}", "seconds": "{:.0f}",
    "horizon, tokens": "{:.0f}", "difference": "{:+.1f}", "PPL": "{:,.1f}", "CPU minutes": "{:.1f}",
    "iterations kept": "{:.1f}", "Phase 1 s": "{:.1f}", "α": "{:.3f}", "change of α": "{:+.3f}", "R²": "{:.4f}",
}  # fmt: skip


def table_of(rows: Sequence[Mapping[str, Cell]], index: str | list[str]) -> pd.DataFrame:
    """A row each; an Estimate takes the columns "name", "name low" and "name high"."""
    flat = [dict(_columns(row)) for row in rows]
    return pd.DataFrame(flat, columns=None if flat else list(np.atleast_1d(index))).set_index(index)


def _columns(row: Mapping[str, Cell]) -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        if not isinstance(cell, Estimate):
            yield name, cell
            continue
        yield name, cell.value
        yield from zip((f"{name} low", f"{name} high"), cell.interval or (None, None))


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """``table_of`` as text: "value [low, high]"; a dash for what was not measured."""
    text = pd.DataFrame(index=table.index)
    for name in (name for name in table if not name.endswith((" low", " high"))):
        bounds = [table[f"{name} low"], table[f"{name} high"]] if f"{name} low" in table else []
        text[name] = [_cell(name, *values) for values in zip(table[name], *bounds)]
    return text


def _cell(name: str, value: Any, *interval: float) -> str:
    if pd.isna(value):
        return NOT_MEASURED
    if isinstance(value, str):
        return value
    pattern = _pattern(name, value)
    bounds = "" if not interval or pd.isna(interval[0]) else f" {interval_text((interval[0], interval[1]), pattern)}"
    return pattern.format(value) + bounds


def _pattern(name: str, value: Any) -> str:
    ratio, percent, whole = name.startswith("×"), name.endswith("%"), float(value).is_integer()
    return _PATTERNS.get(name) or ("{:.3f}" if ratio else "{:,.1f}" if percent else "{:,.0f}" if whole else "{:.4g}")
