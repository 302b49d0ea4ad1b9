"""How tables are written: rows in Markdown, an interval with its verdict, the marks of a page that hold them."""

import re
from collections.abc import Callable, Mapping, Sequence

from newllm_core.intervals import NOT_DISTINGUISHABLE, Estimate

_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.S)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(estimate: Estimate, pattern: str = "{:.3f}") -> str:
    """Value and interval, and a word where they do not tell it from the reference."""
    return estimate.text(pattern) + ("" if estimate.is_distinguishable else f": {NOT_DISTINGUISHABLE}")


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with every table made anew. Raises KeyError for a mark of no table."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n\n{found[3]}", page)
