"""The Brown corpus (Francis and Kučera 1964, amplified 1979) as Bengio, Ducharme, Vincent and Jauvin (2003) cut it.

Words are those of NLTK's edition, with a mark after each paragraph and each text, as in 2003. The first 800,000 words
are for training, the next 200,000 choose, the rest judges: a text that reaches over such a border is cut there, so
that every part is a whole number of conversations. The files lie in a folder, a zip, or where NLTK keeps its data, to
which it downloads them where there is a network. (NLTK's own reader refuses every other place since version 3.10.)
"""

import hashlib
import re
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

from newllm_core.data.errors import DataError
from newllm_core.data.places import find_path

PARAGRAPH_MARK, TEXT_MARK = "<p>", "<text>"
BORDERS = (800_000, 1_000_000)  # words before them: trained on, trained on or choosing
_FILE = re.compile(r"(?:brown/)?(c[a-r]\d\d)")
_BLANK_LINES = re.compile(r"\n\s*\n")


def brown_files(given: str | None) -> dict[str, str]:
    """The content of each file by its name, `ca01` … `cr09`, of the folder or zip ``given``, or of NLTK's.

    Raises DataError where it is not there and cannot be downloaded, and for a place that holds no file of it.
    """
    path = _downloaded() if given is None else find_path(given)
    try:
        files = _in_folder(path) if path.is_dir() else _in_zip(path)
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    if not files:
        raise _unreadable(path, "no such file")
    return dict(sorted(files.items()))


def _in_folder(path: Path) -> dict[str, str]:
    folder = path / "brown" if (path / "brown").is_dir() else path
    return {one.name: one.read_text("ascii") for one in folder.iterdir() if _FILE.fullmatch(one.name)}


def _in_zip(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        found = ((name, _FILE.fullmatch(name)) for name in archive.namelist())
        return {match[1]: archive.read(name).decode("ascii") for name, match in found if match}


def _unreadable(path: Path, why: object) -> DataError:
    return DataError(
        f"{path}: expected NLTK's Brown corpus, a folder or zip with files brown/ca01 … brown/cr09 of word/tag ({why})"
    )


def _downloaded() -> Path:
    import nltk  # here: it brings half a second of imports

    places = ("corpora/brown", "corpora/brown.zip")
    try:
        if not (found := _nltk_places(places)):
            nltk.download("brown", quiet=True, raise_on_error=True)
            found = _nltk_places(places)
        return found[0]
    except (ValueError, OSError, IndexError) as error:
        raise DataError(
            f"corpus='brown': NLTK has no copy and cannot download one ({error!s:.200}); conversations_file=… takes "
            "the folder or zip"
        ) from error


def _nltk_places(names: Iterable[str]) -> list[Path]:
    import nltk

    every = (Path(folder) / name for folder in nltk.data.path for name in names)
    return [place for place in every if place.exists()]


def brown_source(given: str | None) -> str:
    """SHA-256 of names and contents of the files, the same for a folder and for its zip. Raises DataError."""
    digest = hashlib.sha256()
    for name, content in brown_files(given).items():
        digest.update(f"{name}\n{content}".encode())
    return digest.hexdigest()


def brown_conversations(given: str | None) -> Generator[str, None, None]:
    """The texts in the order of their names, cut at ``BORDERS``; a blank between two words. Raises DataError."""
    yield from conversations_of(brown_files(given))


def conversations_of(files: Mapping[str, str], borders: Iterable[int] = BORDERS) -> Iterator[str]:
    """The same of files that have been read."""
    return map(" ".join, cut_at(map(marked_words, files.values()), borders))


def marked_words(content: str) -> list[str]:
    """The words of a file of `word/tag`, a mark after each paragraph and one at the end."""
    words: list[str] = []
    for paragraph in _BLANK_LINES.split(content):
        tagged = paragraph.split()
        if tagged:
            words += [one.rpartition("/")[0] or one for one in tagged]
            words.append(PARAGRAPH_MARK)
    return [*words, TEXT_MARK]


def cut_at(texts: Iterable[list[str]], borders: Iterable[int]) -> Iterator[list[str]]:
    """The same words in the same order; a text within which so many ``borders`` words have come is two."""
    left = sorted(borders)
    count = 0
    for words in texts:
        while left and left[0] < count + len(words):
            border = left.pop(0) - count
            if border > 0:
                yield words[:border]
                words, count = words[border:], count + border
        yield words
        count += len(words)
