"""Where a path that the user gave points to, the same in Jupyter, in a batch, and after a restart."""

from pathlib import Path

from newllm_core.data.errors import DataError
from newllm_core.runs.files import PROJECT_ROOT, sha256_file


def find_path(name: str) -> Path:
    """The file or folder: `~` is the home folder, and a relative path is looked for in two base folders.

    They are the working directory, which differs between Jupyter, a batch and a terminal, and the project's folder,
    which does not. Raises DataError that names both when there is nothing in either, and when what they hold differs.
    """
    try:
        path = Path(name).expanduser()
        places = list(dict.fromkeys(base / path for base in (Path.cwd(), PROJECT_ROOT)))  # one where it is absolute
        found = [place for place in places if place.exists()]
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user's home, a zero byte
        raise DataError(f"{name!r:.200}: this cannot be the path of a file or folder ({error!s:.200})") from error
    if not found:
        looked = f", neither in the working directory, {Path.cwd()}, nor in the project's folder, {PROJECT_ROOT}"
        raise DataError(f"{path}: there is no such file or folder{'' if path.is_absolute() else looked}")
    if not _alike(found):
        raise DataError(f"{name}: {found[0]} and {found[1]} differ; give the whole path of one")
    return found[0]


def _alike(places: list[Path]) -> bool:
    """One place, or files of the same content; folders are not compared."""
    if len(places) == 1:
        return True
    return all(place.is_file() for place in places) and len({sha256_file(place) for place in places}) == 1
