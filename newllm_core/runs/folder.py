"""A run's folder: one owner at a time, complete or to be gone on with, never another run's.

Everybody who keeps a run (an experiment, Phase 1, a row, an image run) goes through `RunFolder`:

    with RunFolder(folder / RECORD_NAME, folder / "checkpoint", identity).held() as run:
        if run.record is None:
            run.finish(figures, {"model.safetensors": weights})
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from newllm_core.runs.checkpoint import CHECKPOINT_NAME, CheckpointPlace, discard_checkpoint
from newllm_core.runs.copies import FINISHED, copies_folder, copy_files, has_finished, restore
from newllm_core.runs.files import REFERENCE_DIR, checksum_path, read_json, save_tensors, write_json
from newllm_core.runs.host_memory import memory_errors_named, refuse_scarce_memory
from newllm_core.runs.identity import Identity, refuse_other_run
from newllm_core.runs.lock import owned, remove_abandoned_lock
from newllm_core.runs.world import current_world

logger = logging.getLogger("newllm")

RECORD_NAME = "run.json"
Record = dict[str, Any]


def is_complete(run_dir: Path) -> bool:
    return (run_dir / RECORD_NAME).is_file()


@dataclass
class HeldRun:
    """A run whose folder is ours.

    Attributes:
        record: of the complete run; None while it is to be trained.
        checkpoints: where its training goes on from.
    """

    place: "RunFolder"
    record: Record | None

    @property
    def checkpoints(self) -> CheckpointPlace:
        # The content too: an interrupted training must not go on with other data.
        identity = self.place.identity
        return CheckpointPlace(self.place.checkpoint, {**identity.config, "content": identity.read}, self.place.copies)

    def finish(self, figures: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> Record:
        """Keep weights, by file name, then the record, which makes the run complete; the record. Of several ranks the
        first writes."""
        self.record = current_world().from_first(lambda: self._finish(figures, weights))
        return self.record

    def _finish(self, figures: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> Record:
        for name, tensors in weights.items():
            save_tensors(self.place.record_path.with_name(name), tensors)
        return self._keep({**self.place.identity.record(), **figures})

    def keep(self, record: Record) -> Record:
        """Write the record, and discard the checkpoint that it makes superfluous."""
        self.record = current_world().from_first(lambda: self._keep(record))
        return self.record

    def _keep(self, record: Record) -> Record:
        self.place.check(record, self.place.record_path)
        write_json(self.place.record_path, record)
        self.place.copy_results()  # again where there is a copy: this record says more, or other files
        discard_checkpoint(self.place.checkpoint)
        return record


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept.

    Attributes:
        record_path: its record, written last; beside it lie its weights and, while somebody works on it, its lock.
        checkpoint: folder of what an interrupted training goes on from.
        identity: what the run must have been made with.
        check: called with the record and its path whenever it is read or written; raises RunError where it is wrong.
        files: what a complete run has beside its record, weights of both phases included; a committed record has none.
        copy_to: a second place for checkpoints and results, for all runs (`copies.py`).
        kind: in the name of its copies, apart from other kinds of runs of the same identity; None: the stem of the
            record's file.
    """

    record_path: Path
    checkpoint: Path
    identity: Identity
    check: Callable[[Record, Path], None] = lambda record, path: None
    files: Sequence[Path] = ()
    copy_to: str | None = None
    kind: str | None = None

    @contextmanager
    def held(self) -> Iterator[HeldRun]:
        """Work on the run alone. Of two processes the second waits, and then finds what the first one has made.

        Ranks of one run work on it together: the first of them owns the folder.

        Raises RunError when the record is damaged or another run's.
        """
        with ExitStack() as stack:
            yield HeldRun(self, current_world().from_first(lambda: stack.enter_context(self._owned())))

    @contextmanager
    def _owned(self) -> Iterator[Record | None]:
        folder = self.record_path.parent
        if self.record_path.is_file() and not os.access(folder, os.W_OK):
            yield self.read()  # an archive, which nobody works on
            return
        with owned(self._lock), memory_errors_named(folder):
            record = self._finished()
            if record is None and self._restored():
                record = self._finished()
            if record is None:
                refuse_scarce_memory(folder)
            else:
                self.copy_finished()  # the place may have been away when it was made
            yield record

    @property
    def copies(self) -> Path | None:
        return copies_folder(self.copy_to, self.kind or self.record_path.stem, self.identity)

    def _results(self) -> dict[str, Path]:
        """All files of a complete run by their names in a copy, the record last."""
        found = dict[str, Path]()
        for number, path in enumerate(self.files):
            found |= {f"file-{number}": path, f"file-{number}.sha256": checksum_path(path)}
        return {**found, "record": self.record_path}

    def copy_finished(self) -> None:
        """To the second place, if there is one that has none."""
        if self.copies is not None and not has_finished(self.copies):
            self.copy_results()

    def copy_results(self) -> None:
        """To the second place, if there is one."""
        if self.copies is not None:
            copy_files(self.copies, {name: path for name, path in self._results().items() if path.is_file()}, FINISHED)

    def _restored(self) -> bool:
        """Whether a copy was taken up: any where nothing is here to go on from, else one of the finished run, which may
        have ended on another machine. A copy's JSON comes last, so that one which was cut is taken up again.
        """
        if self.copies is None:
            return False
        begun = any(self.checkpoint.glob("*.json"))
        return restore(self.copies, {**self._results(), CHECKPOINT_NAME: self.checkpoint}, only_finished=begun)

    @property
    def _lock(self) -> Path:
        return self.record_path.with_name(f".{self.record_path.name}.lock")

    def finished(self) -> Record | None:
        """The record of the complete run, at once, whoever works on it. Raises RunError as ``held``."""
        record = self._finished()
        if record is not None and os.access(self.record_path.parent, os.W_OK):
            remove_abandoned_lock(self._lock)
        return record

    def _finished(self) -> Record | None:
        record = self.read()
        if record is not None and os.access(self.record_path.parent, os.W_OK):
            discard_checkpoint(self.checkpoint)  # of an interruption just before it was discarded
        return record

    def read(self) -> Record | None:
        """The record of the complete run; nothing is changed. Raises RunError as ``held``."""
        if not self.record_path.is_file():
            return None
        record: Record = read_json(self.record_path)
        self.check(record, self.record_path)
        # A record with a name of its own may share its folder with others, which are not to be moved away.
        shared = self.record_path.name != RECORD_NAME
        refuse_other_run(record, self.identity, self.record_path if shared else self.record_path.parent)
        missing = [path for path in self.files if not (path.is_file() or path.is_relative_to(REFERENCE_DIR))]
        if missing:
            logger.warning("%s: %s is missing, so it is made again", self.record_path.parent, missing[0])
            return None
        return record
