"""Tables and pictures are made from records alone, whatever made the records."""

import ast
from pathlib import Path

import pytest

import newllm_core

PACKAGE = Path(newllm_core.__file__).parent
ALLOWED = {
    "comparison": {"comparison", "config", "intervals"},
    "scaling": {"scaling", "comparison", "config", "intervals"},
    "report": {"report", "scaling", "comparison", "config", "intervals", "runs"},
}


def rooms_read(path: Path) -> set[str]:
    """Rooms of the package that a file imports from, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{alias.name}" if node.module == "newllm_core" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name and name.startswith("newllm_core.")}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_that_works_from_records_imports_nothing_that_trains(room: str) -> None:
    files = sorted((PACKAGE / room).glob("*.py"))
    assert files
    assert {path.name: rooms_read(path) - ALLOWED[room] for path in files} == {path.name: set() for path in files}


def test_the_level_of_confidence_and_student_t_stand_in_one_file() -> None:
    text = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [name for name, code in text.items() if "CONFIDENCE =" in code] == ["intervals.py"]
    assert [name for name, code in text.items() if "stats.t." in code or "0.975" in code] == ["intervals.py"]
