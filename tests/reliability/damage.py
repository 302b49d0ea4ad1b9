"""Files that are cut, emptied, altered by a bit or a digit, or another run's: of finished runs and of half-finished."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from newllm_core.runs.files import read_json
from newllm_core.runs.identity import figures_of
from newllm_core.runs.record_differences import differences

from .cases import OTHER_SEED, SEED, Case, FailedError, Workshop
from .faults import killing
from .process import run
from .scenarios import DATA, SCENARIOS, TEXT, Scenario
from .state import without_seconds

Damage = Callable[[Path, Path | None, Random], object]  # the file, another run's, what is drawn


def cut(path: Path, other: Path | None, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def bit(path: Path, other: Path | None, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def digit(path: Path, other: Path | None, random: Random) -> None:
    content = bytearray(path.read_bytes())
    place = random.choice([place for place, byte in enumerate(content) if byte in _DIGITS])
    content[place] = random.choice([one for one in _DIGITS if one != content[place]])
    path.write_bytes(content)


def emptied(path: Path, other: Path | None, random: Random) -> None:
    path.write_bytes(b"")


def swapped(path: Path, other: Path | None, random: Random) -> None:
    assert other is not None
    shutil.copy(other, path)


_DIGITS = b"0123456789"
DAMAGES: dict[str, Damage] = {"cut": cut, "bit": bit, "digit": digit, "emptied": emptied, "swapped": swapped}
_ADVICE = ("delete", "restore", "move", "use another", "again", "migrate")


def damages(scenario: Scenario, workshop: Workshop, rounds: int) -> Iterator[Case]:
    """Every file of a finished run and of one that was stopped in between, every damage, ``rounds`` times; mixed."""
    drawn = []
    for state in ("finished", "half"):
        source, another = _sources(scenario, state, workshop)
        files = sorted(path.relative_to(source) for path in source.rglob("*") if _is_ours(path, source))
        drawn += [
            (state, file, kind, number)
            for file in files
            for kind in DAMAGES
            for number in range(1 if kind in ("emptied", "swapped") else rounds)
            if _is_possible(kind, source / file, _namesake(source / file, source, another))
        ]
    Random(scenario.name).shuffle(drawn)
    for state, file, kind, number in drawn:
        name = f"{scenario.name}-{state}-{file}-{kind}-{number}"
        yield Case("damage", name, partial(_damaged, scenario, state, file, kind, Random(name)))


def _is_ours(path: Path, folder: Path) -> bool:
    """Written by the project and not empty: no lock, and not what the user brought."""
    return path.is_file() and path.parent != folder and path.stat().st_size > 0 and not path.name.endswith(".lock")


def _is_possible(kind: str, path: Path, other: Path | None) -> bool:
    """Whether this damage would change the file."""
    if kind == "digit":
        return any(byte in _DIGITS for byte in path.read_bytes())
    return kind != "swapped" or (other is not None and not _is_of_the_same_run(path, other))


def _is_of_the_same_run(path: Path, other: Path) -> bool:
    """The same content; of a row that no seed changes, all but the seed and what it draws."""
    if path.suffix != ".json" or not path.name.startswith("kneser-ney"):
        return path.read_bytes() == other.read_bytes()
    one, two = (without_seconds(figures_of(read_json(place))) for place in (path, other))
    return all(line.startswith(("seed:", "provenance.embeddings")) for line in differences(one, two))


def _sources(scenario: Scenario, state: str, workshop: Workshop) -> tuple[Path, Path]:
    """What is damaged, and another run's, in the same state."""
    make = workshop.finished if state == "finished" else partial(half_finished, workshop=workshop)
    return make(scenario), make(scenario, seed=OTHER_SEED)


def half_finished(scenario: Scenario, workshop: Workshop, seed: int = SEED) -> Path:
    """A folder in which the scenario was killed when most of its checkpoints had been written, made once."""
    target = workshop.root / f"half-{scenario.name}-{seed}"
    if target not in workshop.halves:
        number = workshop.num_operations(scenario) * 3 // 4
        folder = workshop.fresh(scenario)
        run(lambda: scenario.run(folder, seed), workshop.told(), killing(folder, number))
        workshop.must_leave_no_process()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        workshop.halves.add(target)
    return target


def _damaged(scenario: Scenario, state: str, file: Path, kind: str, random: Random, workshop: Workshop) -> None:
    source, another = _sources(scenario, state, workshop)
    folder = workshop.copy_of(source)
    path = folder / file
    DAMAGES[kind](path, _namesake(source / file, source, another), random)
    ended = run(lambda: scenario.load(folder, SEED), workshop.told())
    if ended.how == "finished":
        # A file that nobody asked for may lie there as it is: what was read and made must be right.
        workshop.must_have_read(scenario, ended.value, "the damage was not noticed")
        workshop.must_equal(scenario, folder, "the damage was not noticed", but=file)
        return
    if ended.how != "refused":
        raise FailedError(f"{ended.how}: {ended.text[-1500:]}")
    text = ended.text.lower()
    if path.name.lower() not in text and str(path.parent).lower() not in text:
        raise FailedError(f"the message names no file: {ended.text}")
    if not any(word in text for word in _ADVICE):
        raise FailedError(f"the message does not say what to do: {ended.text}")
    follow(ended.text, path, folder)
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {ended.text!r} was followed")


def follow(advice: str, path: Path, folder: Path) -> None:
    """Delete what the message says to delete: a folder of checkpoints, or the file."""
    named = [part for part in (path.parent, *path.parents) if f"delete {part} " in f"{advice} "]
    if named and named[0] != folder:
        shutil.rmtree(named[0])
    else:
        weights = path.with_name(path.name.removesuffix(".sha256"))  # a message names what a checksum is of
        (path if str(path) in advice else weights).unlink(missing_ok=True)


def _namesake(path: Path, source: Path, another: Path) -> Path | None:
    """The other run's file in the same place, or else of the same kind: names hold hashes."""
    place = path.relative_to(source)
    if (another / place).is_file():
        return another / place
    alike = [one for one in sorted(another.rglob(f"*{path.suffix}")) if one.parent.name[:4] == path.parent.name[:4]]
    return alike[0] if alike else None


def user_file_changes(workshop: Workshop, count: int) -> Iterator[Case]:
    """The user's own text, changed between start and resume."""
    for number in range(count):
        name = f"user-text-{number}"
        yield Case("damage", name, partial(_changed_text, Random(name)))


def _changed_text(random: Random, workshop: Workshop) -> None:
    scenario = SCENARIOS["cvfp"]
    folder = workshop.copy_of(half_finished(scenario, workshop))
    text = folder / TEXT
    original = text.read_bytes()
    digit(text, None, random)
    ended = run(lambda: scenario.load(folder, SEED), workshop.told())
    if ended.how != "refused" or "other text" not in ended.text and "content.text" not in ended.text:
        raise FailedError(f"changed text: {ended.how}: {ended.text[-800:]}")
    text.write_bytes(original)
    shutil.rmtree(folder / DATA)  # tokens of the other text lie there too
    workshop.must_be_as_uninterrupted(scenario, folder, "with the text as it was")
