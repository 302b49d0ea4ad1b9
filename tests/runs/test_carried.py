"""Runs on a machine that does not see the results folder of the one that gave them."""

import itertools
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from core_helpers import save_always, stop_after
from test_reuse import settings_for, text_file

from newllm_core.batch import carried as carried_module
from newllm_core.batch.carried import FolderKeeper, carried
from newllm_core.batch.sweeps import run_sweep
from newllm_core.batch.tasks import FAILED, FINISHED, Ended, Task, run_task
from newllm_core.runs import copies
from newllm_core.runs.identity import figures_of
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Sweep, grid


class Arrives(FolderKeeper):
    """At another place than it has where it was sent from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self, folder: Path) -> list[str]:
        return super().names(self.folder)

    def read(self, folder: Path, name: str, start: int) -> bytes:
        return super().read(self.folder, name, start)

    def write(self, folder: Path, name: str, start: int, chunk: bytes) -> None:
        super().write(self.folder, name, start, chunk)


class OtherMachines:
    """Of two, the first is lost in Phase 1: what is on its disk goes with it, the copies that were sent are here."""

    def __init__(self, results: Path, here: Path) -> None:
        self.results, self.here = results, here

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
        for place, task in enumerate(tasks):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                stop_after("Phase 1", 2, patch)
                self._work(task)
            ended = self._work(task)
            assert task.copies is not None
            shutil.move(self.here, task.copies)
            yield place, ended

    def _work(self, task: Task) -> Ended:
        assert task.copies is not None and task.copying_work is not None
        try:
            with carried(Arrives(self.here), task.copies):
                return run_task(replace(task, work=task.copying_work))
        finally:
            for folder in (self.results, task.copies):
                shutil.rmtree(folder)


def test_a_run_of_two_other_machines_arrives_with_the_figures_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carried_module, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(carried_module, "_LOOK_SECONDS", 0.01)
    save_always(monkeypatch)
    settings = settings_for(text_file(tmp_path / "my.jsonl"))

    def sweep(results: Path) -> Sweep:
        folders = Folders(results / "experiments", results / "phase1", results / "reference", tmp_path / "data")
        return Sweep(settings, grid({}), [1], ExperimentRunner(folders))

    engine = OtherMachines(tmp_path / "results", tmp_path / "here")
    with caplog.at_level(logging.INFO, "newllm"):
        (outcome,) = run_sweep(sweep(tmp_path / "results"), engine, tmp_path / "sweep")
    assert outcome.status == FINISHED and caplog.text.count("went on from the copy") > 1
    assert figures_of(sweep(tmp_path / "results").finished()) == figures_of(sweep(tmp_path / "alone").run())
    assert len(list((tmp_path / "results").rglob("*.safetensors"))) == 2
    assert not any((tmp_path / "sweep" / "copies").iterdir())


def test_a_run_begun_here_and_finished_on_another_machine_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained here until then is less, and goes."""
    save_always(monkeypatch)
    settings = settings_for(text_file(tmp_path / "my.jsonl"))
    results, away = tmp_path / "results", tmp_path / "results of this machine"
    folders = Folders(results / "experiments", results / "phase1", results / "reference", tmp_path / "data")
    sweep = Sweep(settings, grid({}), [1], ExperimentRunner(folders))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 2", 1, patch)
        sweep.run()

    class AnotherMachine:
        def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
            results.rename(away)
            assert tasks[0].copying_work is not None
            ended = run_task(replace(tasks[0], work=tasks[0].copying_work))
            shutil.rmtree(results)
            away.rename(results)
            yield 0, ended

    (outcome,) = run_sweep(sweep, AnotherMachine(), tmp_path / "sweep")
    assert outcome.status == FINISHED and not list(results.rglob("checkpoint-*.json"))
    alone = replace(folders, experiments=tmp_path / "alone", phase1=tmp_path / "alone phase1")
    assert figures_of(sweep.finished()) == figures_of(Sweep(settings, grid({}), [1], ExperimentRunner(alone)).run())


class Elsewhere(FolderKeeper):
    """Has nothing, and keeps what arrives."""

    def __init__(self) -> None:
        self.arrived: dict[str, bytes] = {}

    def names(self, folder: Path) -> list[str]:
        return []

    def write(self, folder: Path, name: str, start: int, chunk: bytes) -> None:
        self.arrived[name] = self.arrived.get(name, b"")[:start] + chunk


def test_a_copy_is_sent_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried_module, "_LOOK_SECONDS", 0.001)
    other, looks = Elsewhere(), threading.Semaphore(0)
    names = FolderKeeper.names

    def counted_names(keeper: FolderKeeper, folder: Path) -> list[str]:
        looks.release()
        return names(keeper, folder)

    monkeypatch.setattr(FolderKeeper, "names", counted_names)
    archive = tmp_path / "run" / "000001-finished.zip"
    mark = archive.with_suffix("." + "0" * 64)
    archive.parent.mkdir()
    with carried(other, tmp_path):
        archive.write_bytes(b"half")
        for _ in range(5):
            assert looks.acquire(timeout=60)
        archive.write_bytes(b"half and half")
        mark.touch()
    assert other.arrived == {f"run/{archive.name}": b"half and half", f"run/{mark.name}": b""}


def test_a_run_that_cannot_be_taken_up_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(text_file(tmp_path / "my.jsonl"))
    folders = Folders(tmp_path / "experiments", tmp_path / "phase1", tmp_path / "reference", tmp_path / "data")
    runner = ExperimentRunner(folders)
    sweep = Sweep(settings, grid({}), [1, 2], runner)

    class Leaves:
        """The first run has copies, and a file lies where its folder should be; the second one ran here."""

        def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
            assert tasks[0].copies is not None
            tasks[0].copies.mkdir(parents=True)
            (folders.experiments / runner.key(sweep.points[0])).touch()
            yield 0, Ended(FINISHED)
            yield 1, run_task(tasks[1])

    folders.experiments.mkdir()
    failed, finished = run_sweep(sweep, Leaves(), tmp_path / "sweep")
    assert failed.status == FAILED and "could not be taken up here: " in str(failed)
    assert finished.status == FINISHED and "failed" in (tmp_path / "sweep" / "runs.csv").read_text()
    assert "[1/2] base, seed 1 failed" in capsys.readouterr().out


def copied(folder: Path, number: int) -> None:
    """One more copy of a run in ``folder``."""
    content = folder.with_name("content.txt")
    content.write_text(f"state {number}")
    assert copies.copy_files(folder / "run", {"one.txt": content}, f"{number:06d}-00000000")


def restored(folder: Path) -> str:
    target = folder.with_name("restored.txt")
    assert copies.restore(folder / "run", {"one.txt": target})
    return target.read_text()


def test_what_an_earlier_try_left_pushes_no_copy_out_that_is_further_along(tmp_path: Path) -> None:
    """It was cut off with copies that were not sent; another machine went on from the first one, and finished."""
    here, node, content = tmp_path / "here", tmp_path / "node", tmp_path / "content.txt"
    copied(here, 1)
    shutil.copytree(here, node)
    for number in (2, 3, 4):
        copied(node, number)
    for reached in ("000050-00000000", copies.FINISHED):
        content.write_text(reached)
        assert copies.copy_files(here / "run", {"one.txt": content}, reached)
    with carried(Arrives(here), node):
        assert restored(node) == copies.FINISHED
    assert restored(here) == copies.FINISHED


def test_what_an_earlier_try_left_on_this_machine_is_sent(tmp_path: Path) -> None:
    """It ended after its copy was written and before that was sent."""
    here, node = tmp_path / "here", tmp_path / "node"
    copied(node, 1)
    with carried(Arrives(here), node):
        pass
    assert restored(here) == "state 1"


def test_copies_that_make_room_while_they_are_handed_over_stop_nothing(tmp_path: Path) -> None:
    """The machine that an earlier try ran on still sends."""
    here, node, numbers = tmp_path / "here", tmp_path / "node", itertools.count(3)

    class Receives(Arrives):
        def names(self, folder: Path) -> list[str]:
            found = super().names(folder)
            copied(here, next(numbers))  # of two that were found, the older one goes
            return found

    copied(here, 1)
    copied(here, 2)
    with carried(Receives(here), node):
        assert restored(node) == "state 3"


def test_a_run_whose_record_did_not_arrive_has_failed(tmp_path: Path) -> None:
    class Forgets:
        def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Ended]]:
            yield from ((place, Ended(FINISHED)) for place in range(len(tasks)))

    folders = Folders(tmp_path / "experiments", tmp_path / "phase1", tmp_path / "reference", tmp_path / "data")
    settings = settings_for(text_file(tmp_path / "my.jsonl"))
    (outcome,) = run_sweep(Sweep(settings, grid({}), [1], ExperimentRunner(folders)), Forgets(), tmp_path / "sweep")
    assert outcome.status == FAILED and "record is not here" in str(outcome)


@pytest.mark.parametrize("name", ["../run/000001-finished.zip", "/etc/000001-finished.zip", "run/other.zip", "run"])
def test_only_copies_are_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the name of a copy"):
        FolderKeeper().write(tmp_path, name, 0, b"content")
    assert not list(tmp_path.iterdir())
