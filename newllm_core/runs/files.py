"""Files that are whole or absent, and their checksums.

Every file of the project is written through here: to a temporary name beside the target, synced, then renamed, so that
a reader finds either the old file or the new one, whole.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from newllm_core.runs.disk import RunError, disk_errors_named
from newllm_core.runs.lock import is_running

PROJECT_ROOT = Path(__file__).resolve().parents[2]  # of a checkout; of an installed package, where packages are


def home_folder() -> Path:
    """Where data and results go: ``$NEWLLM_HOME``, else the checkout, else (an installed package) where you work."""
    if chosen := os.environ.get("NEWLLM_HOME"):
        return Path(chosen).expanduser().resolve()
    return PROJECT_ROOT if (PROJECT_ROOT / "notebooks" / "profiles").is_dir() else Path.cwd()


HOME = home_folder()
DATA_DIR = HOME / "data"
RESULTS_DIR = HOME / "results"
REFERENCE_DIR = PROJECT_ROOT / "results" / "reference"  # committed with the project; only read by runs


_PARTIAL = ".partial"
# Seconds that a file must have been left alone before its checksum is remembered: its times count in steps.
_SETTLED_SECONDS = 2.0


def write_atomically(path: Path, write: Callable[[Path], object], num_bytes: int | None = None) -> None:
    """Call ``write`` with a temporary path in the target's folder, sync it, rename it to ``path``, sync the folder.

    What a process that was killed has left of the same target goes. ``num_bytes``: about how large it becomes, for the
    message. Raises DiskError, with the numbers, where the disk does not take it; an earlier ``path`` stays as it was.
    """
    with disk_errors_named(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        owner = f"{platform.node()}-{os.getpid()}"
        # A folder of its own: safetensors writes to a temporary name beside the one that it is given.
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.{owner}.", suffix=_PARTIAL))
        temporary = place / "content"
        try:
            write(temporary)
            sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
            sync(path.parent)  # the name too
        finally:
            shutil.rmtree(place, ignore_errors=True)


_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk now, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # as of mounted drives, which write when they like
            raise
    finally:
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Temporary files of ``target`` whose process has ended; of another machine's nobody here can know."""
    mine = f".{target.name}.{platform.node()}-"
    for path in target.parent.iterdir():
        if path.name.startswith(mine) and path.name.endswith(_PARTIAL):
            process = path.name.removeprefix(mine).split(".")[0]
            if not (process.isdigit() and is_running(int(process))):
                shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    # As bytes: text that contains "\r\n" must come back as it was, or its checksum would not hold.
    content = text.encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content), len(content))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON that ends with a checksum of what it says; ``read_json`` looks at it.

    A figure that is not finite is an error here, a missing one is null. A list of numbers stands on one line, so that
    a record of hundreds of singular values can be read and compared.
    """
    plain = json.loads(json_text(value))  # as it will be read: keys as text, tuples as lists
    write_text(path, json_text({**plain, _CHECKSUM: _json_sha256(plain)}) + "\n")


def json_text(value: Any, indent: str = "") -> str:
    """As ``write_json`` lays it out; ``indent`` is that of the line where it stands."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        members = [f"{_on_one_line(str(name))}: {json_text(one, deeper)}" for name, one in value.items()]
        return "{\n" + ",\n".join(deeper + member for member in members) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple | str) for one in value):
        return "[\n" + ",\n".join(deeper + json_text(one, deeper) for one in value) + f"\n{indent}]"
    return _on_one_line(value)


# `json.dumps` makes one at every call.
_on_one_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` was given. Raises RunError when the file is no JSON, or not as it was written."""
    value = _parsed(path)
    if not isinstance(value, dict) or value.pop(_CHECKSUM, None) != _json_sha256(value):
        raise RunError(
            f"{path}: what it says does not match its checksum ({_CHECKSUM}), so it was damaged, or edited by hand. "
            f"Delete it to make it again; after an edit that you stand by: python -m reproduce.records sign {path}"
        )
    return value


def read_unchecked_json(path: Path) -> Any:
    """Of an earlier version, which had no checksums, or of others. Raises RunError when it is no JSON."""
    value = _parsed(path)
    return {name: one for name, one in value.items() if name != _CHECKSUM} if isinstance(value, dict) else value


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: expected a file here, found none; run the same again to make it") from error
    except (ValueError, RecursionError) as error:  # not UTF-8 and not JSON are ValueErrors
        raise RunError(f"{path}: expected JSON, found something else ({error}). Delete it to make it again") from error


_CHECKSUM = "own_sha256"


def _json_sha256(value: Mapping[str, Any]) -> str:
    """Of the content, however it is laid out."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(path: Path) -> str:
    """The same, of a file that is asked about often: read again only when it may have changed since the last time."""
    state = path.stat()
    key = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _known_content:
        digest = sha256_file(path)
        # A change within the same step of the file system's clock would not show.
        if time.time() - max(state.st_mtime, state.st_ctime) < _SETTLED_SECONDS:
            return digest
        _known_content[key] = digest
    return _known_content[key]


_known_content: dict[tuple[str, int, int, int, int], str] = {}


def sha256_tensors(*tensors: torch.Tensor) -> str:
    """Of their bytes, one after the other, read where they lie."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, and their SHA-256 beside them as ``<name>.sha256``."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, contiguous)
    write_text(checksum_path(path), sha256_file(path) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """As safetensors, and nothing beside them. ``tensors`` are contiguous."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_atomically(path, lambda temporary: save_file(dict(tensors), temporary), size)


def checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def has_valid_checksum(path: Path) -> bool:
    """True when file and checksum exist and agree."""
    sidecar = checksum_path(path)
    if not (path.is_file() and sidecar.is_file()):
        return False
    return sha256_file(path) == sidecar.read_text(encoding="utf-8", errors="replace").strip()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors written by ``save_tensors``. Raises RunError when they were altered since."""
    if not has_valid_checksum(path):
        raise RunError(f"{path}: the file is missing or does not match its checksum; delete it to make it again")
    return load_file(path)
