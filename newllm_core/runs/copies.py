"""A second place for what a run has so far, from which a fresh machine goes on: a mounted drive, which may be slow,
know no locks and no renames, and be away for a while.

A copy is a zip and, written after it, an empty file whose name says the zip's checksum. Neither is changed afterwards,
so a copy that was cut, or is still being written, is not taken for one. Names hold how far a copy's run was: one that
is further along is never replaced, as when the drive was away when this machine began anew. The two that are furthest
along are kept, and the one that was written last.
"""

import functools
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from newllm_core.runs.disk import RunError, disk_errors_named
from newllm_core.runs.files import content_sha256, sha256_bytes, sha256_file, write_atomically
from newllm_core.runs.identity import Identity

logger = logging.getLogger("newllm")

_NUM_KEPT = 2
_NAME_DIGITS = 16
FINISHED = "finished"  # comes after all digits
_STEM = re.compile(rf"(\d{{6,}})-([0-9-]+|{FINISHED})")  # number of the copy, and how far its run was
_MARK = re.compile(rf"{_STEM.pattern}\.[0-9a-f]{{64}}")


def copies_folder(copy_to: str | None, kind: str, identity: Identity) -> Path | None:
    """Where copies of one run are, wherever it runs: by what it is. ``kind``: tells runs of one identity apart."""
    if copy_to is None:
        return None
    digest = sha256_bytes(json.dumps(identity.record(), sort_keys=True).encode())
    return Path(copy_to).expanduser() / f"{kind}-{digest[:_NAME_DIGITS]}"


def copy_files(copies: Path, files: Mapping[str, Path], reached: str) -> bool:
    """Copy ``files`` under their names; False, with a notice, where the place does not take them now, or has a copy
    that is further along. ``reached``: how far the run is, as digits that sort, or FINISHED.
    """
    try:
        size = sum(path.stat().st_size for path in files.values())
        with disk_errors_named(copies, size):
            copies.mkdir(parents=True, exist_ok=True)
            further = _further(copies, reached)
            if further is not None:
                _say_further(further)
                return False
            _write(copies / f"{_last_number(copies) + 1:06d}-{reached}.zip", files)
            remove_older(copies)
    except (OSError, RunError) as error:
        logger.warning("no copy was written: %s", error)
        return False
    return True


def _last_number(copies: Path) -> int:
    """Of zips and marks: a drive may have lost the zip of a mark, and a later copy must come after both."""
    return max((int(path.name.partition("-")[0]) for path in copies.iterdir() if is_copy(path.name)), default=0)


def _write(archive: Path, files: Mapping[str, Path]) -> None:
    """The zip, then its mark; after an error neither. Raises OSError."""
    zipped = zipfile.ZipFile(archive, "x")  # outside: one that is there already is somebody else's, and stays
    try:
        with zipped:
            for name, path in files.items():
                zipped.write(path, name)
        archive.with_suffix(f".{sha256_file(archive)}").touch(exist_ok=False)
    except BaseException:
        with suppress(OSError):  # the drive may be away by now; a later copy then removes it
            archive.unlink()
        raise


def _further(copies: Path, reached: str) -> Path | None:
    """A whole copy of a run that was further along."""
    for mark in _marks(copies):
        if _progress(mark)[0] > reached and _is_whole(mark):
            return mark.with_suffix(".zip")
    return None


@functools.cache
def _say_further(archive: Path) -> None:
    """Once: it holds until the run has passed that place."""
    logger.warning(
        "no copy is written yet: %s is further along than this run, which began without it, and is kept; "
        "stop, delete this run's folder and run the same again to go on from there", archive,
    )  # fmt: skip


def has_finished(copies: Path) -> bool:
    """Whether there is a whole copy of the finished run; it is read again only when it may have changed."""
    return any(_is_finished(mark) and _is_whole(mark, known=True) for mark in _marks(copies))


def _is_finished(mark: Path) -> bool:
    return mark.stem.endswith(f"-{FINISHED}")


def is_copy(name: str) -> bool:
    """Whether a file of this name is a copy's, or its mark."""
    return bool(_MARK.fullmatch(name) or (name.endswith(".zip") and _STEM.fullmatch(name.removesuffix(".zip"))))


def remove_older(copies: Path) -> None:
    """All but the furthest along that have zip and mark, and the last one, in case those are damaged.

    A mark that lost its zip holds no place of one that can be read.
    """
    stems = {path.stem for path in copies.glob("*.zip")}
    marks = _marks(copies)
    whole = [stem for stem in dict.fromkeys(mark.stem for mark in marks) if stem in stems]
    kept = {*whole[:_NUM_KEPT], max(whole, default="")}
    for mark in marks:
        if mark.stem not in kept:
            mark.unlink()
            mark.with_suffix(".zip").unlink(missing_ok=True)
    for archive in copies.glob("*.zip"):  # without a mark: cut, or still being written, which is a later one
        if _STEM.fullmatch(archive.stem) and archive.stem < min(kept):
            archive.unlink()


def _marks(copies: Path) -> list[Path]:
    """What says that a copy is whole, the furthest along first; a drive has files of its own beside them."""
    if not os.path.isdir(copies):  # noqa: PTH112  a drive that is away has none; `Path.is_dir` would raise
        return []
    return sorted((path for path in copies.glob("*.*") if _MARK.fullmatch(path.name)), key=_progress, reverse=True)


def _progress(path: Path) -> tuple[str, str]:
    """How far its run was, and of copies that were as far their number."""
    number, _, reached = path.stem.partition("-")
    return reached, number


def restore(copies: Path, targets: Mapping[str, Path], *, only_finished: bool = False) -> bool:
    """Write the files of the whole copy that is furthest along to their ``targets``, in the order of the copy; False:
    there is none.

    A name that ends with "/" stands for everything below it. Names that are not expected are left alone.
    ``only_finished``: copies of a finished run alone.
    """
    for mark in _marks(copies):
        if only_finished and not _is_finished(mark):
            continue
        archive = mark.with_suffix(".zip")
        if _is_whole(mark):
            _extract(archive, targets)
            logger.info("went on from the copy %s", archive)
            return True
        logger.warning("%s cannot be read, or does not match its checksum; looking for the copy before", archive)
    return False


def _is_whole(mark: Path, *, known: bool = False) -> bool:
    """Whether its zip is as it was written; ``known``: not read again while its times and size are the same."""
    digest = content_sha256 if known else sha256_file
    try:
        return f".{digest(mark.with_suffix('.zip'))}" == mark.suffix
    except OSError:  # not there, or a drive that reports an error
        return False


def _extract(archive: Path, targets: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            folder, _, name = member.filename.rpartition("/")
            target = targets[f"{folder}/"] / name if folder and f"{folder}/" in targets else targets.get(name)
            if target is not None and name:
                write_atomically(target, partial(_copy_member, zipped, member), member.file_size)


def _copy_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with zipped.open(member) as source, path.open("wb") as stream:
        shutil.copyfileobj(source, stream)
