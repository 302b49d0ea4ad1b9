"""The committed records and their SHA-256, a line each, as `sha256sum` writes and checks them: `SHA256SUMS`.

Records alone (.json), because every figure is read from one. Pictures and tables are made of them in seconds, and
nothing reads those.
"""

from collections.abc import Iterator
from pathlib import Path

from newllm_core.runs.files import RunError, sha256_file, write_text

MANIFEST_NAME = "SHA256SUMS"
COMMAND = "python -m reproduce.records list"
_BESIDE_ROWS = ("phase1", "networks", "checkpoints")
# Below results/reference/, what a run makes and .gitignore leaves out.
UNCOMMITTED = (
    *(f"{rows}/{kept}/" for rows in ("leaderboard", "brown", "growth") for kept in _BESIDE_ROWS),
    "nkat/search/", "nkat/front/",
)  # fmt: skip


def write_manifest(folder: Path) -> list[str]:
    """List every record below ``folder``; what differs from the list before, a line a file."""
    listed = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else {}
    found = {name: sha256_file(folder / name) for name in _records(folder)}
    write_text(folder / MANIFEST_NAME, "".join(f"{digest}  {name}\n" for name, digest in found.items()))
    new = [f"new: {name}" for name in found if name not in listed]
    gone = [f"gone: {name}" for name in listed if name not in found]
    changed = [f"changed: {name}" for name, digest in found.items() if listed.get(name, digest) != digest]
    return [*new, *gone, *changed]


def read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 by relative name. Raises RunError where a line is none of the form "SHA-256, two blanks, name"."""
    path = folder / MANIFEST_NAME
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise RunError(
                f'{path}, line {number}: expected "SHA-256  name", found {line[:80]!r}; make it anew: {COMMAND}'
            )
        found[name] = digest
    return found


def manifest_problems(folder: Path) -> Iterator[str]:
    """A sentence for every record below ``folder`` that was changed, is missing or is not listed."""
    listed, records = read_manifest(folder), _records(folder)
    accept = f"if it was meant: {COMMAND} {folder}"
    for name in records:
        if name not in listed:
            yield f"{folder / name}: the record is not listed in {MANIFEST_NAME}; delete it, or, {accept}"
        elif sha256_file(folder / name) != listed[name]:
            yield f"{folder / name}: the record is not as it is listed in {MANIFEST_NAME}; restore it, or, {accept}"
    for name in sorted(listed.keys() - set(records)):
        yield f"{folder / name}: the record is listed in {MANIFEST_NAME}, and missing; restore it, or, {accept}"


def _records(folder: Path) -> list[str]:
    """Relative names, sorted, without checkpoints and hidden files."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    return [name for name in names if not name.startswith(UNCOMMITTED) and _is_record(name.split("/"))]


def _is_record(parts: list[str]) -> bool:
    return "checkpoint" not in parts and not parts[-1].startswith(".")
