"""The training loop, one for all: passes, best weights, patience, checkpoints, resumption, seconds, what stops it.

A training (Phase 1, Phase 2, a baseline network, NKAT) is a subclass. It says what the steps of a pass are, what came
of them, how good that was, and which tensors and states the next step depends on. All else is here, and the same for
all.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from newllm_core.gpu_memory import DeviceBatch
from newllm_core.losses import NotFiniteError, refuse_not_finite
from newllm_core.runs.checkpoint import (
    Checkpoint,
    CheckpointBudget,
    CheckpointPlace,
    copy_checkpoint,
    joined,
    load_checkpoint,
    parted,
    save_checkpoint,
)
from newllm_core.runs.disk import DiskError, disk_errors_named
from newllm_core.runs.interruption import held_signals
from newllm_core.runs.progress import Stopwatch, progress_bar
from newllm_core.runs.reproducibility import generator_states, restore_generators
from newllm_core.runs.world import current_world

logger = logging.getLogger("newllm")

Row = TypeVar("Row")
# Steps between two looks at the sums of a pass: each look makes a GPU wait.
_LOOK_STEPS = 50


@dataclass
class PassState:
    """What has come together within the pass that is running; every pass has a new one.

    Attributes:
        steps: taken so far.
        sums: float64 scalars on the device, under the names that a message says.
        carried: what the next step is entered by, such as a recurrent state; tensors stay where they are.
        began: seconds of the whole training when the pass began.
    """

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    carried: Any = None
    began: float = 0.0

    def add(self, **figures: Tensor) -> None:
        for name, value in figures.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def refuse_not_finite(self) -> None:
        refuse_not_finite({name.replace("_", " "): float(value) for name, value in self.sums.items()})


@dataclass
class Best:
    """The pass whose weights are kept, counted from 1; 0 before the first. ``without_gain``: judged passes since."""

    number: int = 0
    score: float = -math.inf
    without_gain: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class TrainingLoop(ABC, Generic[Row]):
    """Trains pass by pass until ``num_passes``, or until so many judged ones as ``patience`` brought nothing better.

    Resumed from a checkpoint, within a pass or between two, it ends with the same rows and weights to the last bit.

    Attributes:
        name, unit: of the training and of a pass, for bars and messages.
        rows: the figures of every finished pass.
        best: the pass with the highest score.
        within: of the pass that is running.
        parts: all that the next step depends on: the trained ``model``, optimizer, schedule, …
        watch: seconds of all sessions.
        device_batch: how much of a step is computed at once.
        report: called with every row, also those of earlier sessions; what it raises ends the training.
    """

    name: str
    unit: str = "epoch"
    row_kind: type[Row]
    parts: dict[str, Any]

    def __init__(
        self, device: torch.device, num_passes: int, place: CheckpointPlace | None, *, patience: int | None = None,
        min_passes: int = 0, steps_per_pass: int = 1, device_batch: DeviceBatch | None = None,
        report: Callable[[Row], None] = lambda row: None, show_progress: bool = True,
    ) -> None:  # fmt: skip
        self.device, self.num_passes, self.place = device, num_passes, place
        self.patience, self.min_passes, self.steps_per_pass = patience, min_passes, steps_per_pass
        self.device_batch, self.show_progress = (
            device_batch or DeviceBatch(device, 1),
            show_progress and current_world().is_first,
        )
        self.report, self.rows, self.world = report, list[Row](), current_world()
        self.best, self.within = Best(), PassState()
        self.watch, self.budget, self.copying = Stopwatch(), CheckpointBudget(), CheckpointBudget()

    # --- what a training says ---------------------------------------------------------------------------------------

    @abstractmethod
    def steps(self, number: int) -> Iterator[None]:
        """Pass ``number``, from 1: yields after each step, and leaves out the first ``within.steps``."""

    @abstractmethod
    def judged(self, number: int) -> tuple[Row, float | None]:
        """The figures of the pass whose steps have been taken, and its score: the higher, the better the weights; None
        where it was not judged. Raises NotFiniteError.
        """

    def complete_on_first(self) -> None:
        """Before a checkpoint: what ranks have parts of, on the first of them. Called on all."""

    def kept(self) -> Mapping[str, Tensor]:
        """What is kept of a pass that is the best so far."""
        return self.parts["model"].state_dict()

    @abstractmethod
    def shown(self) -> dict[str, str]:
        """Beside the bar, of the last row and the best."""

    def stored_row(self, figures: Mapping[str, Any]) -> Row:
        """What ``asdict`` made of one."""
        return self.row_kind(**figures)

    # --- what is the same for all -----------------------------------------------------------------------------------

    @property
    def stopped_early(self) -> bool:
        return len(self.rows) < self.num_passes

    def pass_seconds(self) -> float:
        """Since the pass began, those of earlier sessions included."""
        return self.watch.total().wall - self.within.began

    def run(self) -> None:
        """Train, from the checkpoint if there is one; the best weights are in ``best``, not yet in the model.

        Raises NotFiniteError that names the term, the pass and the last checkpoint, RunError for a checkpoint of
        another run, and on SIGINT or SIGTERM KeyboardInterrupt or SystemExit, after saving.
        """
        self._resume()
        for row in self.rows:
            self.report(row)
        bar = progress_bar(
            total=self.num_passes, initial=len(self.rows), desc=self.name, unit=self.unit,
            disable=not self.show_progress,
        )  # fmt: skip
        with bar, held_signals(self.place is not None) as stop:
            self._stop = stop
            while not self._is_over():
                number = len(self.rows) + 1
                with self.naming_not_finite(number):
                    row = self._pass(number)
                bar.update()
                bar.set_postfix(self.shown())
                self.report(row)
            if self.world.largest([stop.number or 0])[0]:  # asked after the last step: nothing is forgotten
                self._save_if_due()

    def _is_over(self) -> bool:
        done = len(self.rows)
        patient = self.patience is None or self.best.without_gain < self.patience or done < self.min_passes
        return done >= self.num_passes or not patient

    def _pass(self, number: int) -> Row:
        for _ in self._shown_steps(number):
            self.within.steps += 1
            if self.within.steps % _LOOK_STEPS == 0:
                self.within.refuse_not_finite()
            self._save_if_due()
        self.within.refuse_not_finite()
        row, score = self.judged(number)
        self._keep_if_best(number, score)
        self.rows.append(row)
        self.within = PassState(began=self.watch.total().wall)
        self._save_if_due()
        return row

    def _shown_steps(self, number: int) -> Any:
        return progress_bar(
            self.steps(number), total=self.steps_per_pass, initial=self.within.steps, desc=f"  {self.unit} {number}",
            unit="step", leave=False, disable=not self.show_progress or self.steps_per_pass == 1,
        )  # fmt: skip

    def _keep_if_best(self, number: int, score: float | None) -> None:
        if score is None:
            return
        self.best.without_gain += 1
        if score > self.best.score:
            kept = {name: value.detach().clone() for name, value in self.kept().items()}
            self.best = Best(number, score, 0, kept)

    @contextmanager
    def naming_not_finite(self, number: int) -> Iterator[None]:
        """Adds to a NotFiniteError where it happened, and what is left."""
        try:
            yield
        except NotFiniteError as error:
            raise NotFiniteError(
                f"{self.name}, {self.unit} {number}: {error}. Training stops here; {self._last_checkpoint()}. "
                "A smaller learning rate or gradient clip is the usual remedy."
            ) from error

    def _last_checkpoint(self) -> str:
        if self.place is None or self.budget.saved is None:
            return "no checkpoint was written"
        return f"the last checkpoint, {self.budget.saved}, is in {self.place.folder}"

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        if self.place is None:
            return
        # All ranks do the same: what one was asked, and what the first one's clock says.
        due = self.world.is_first and self.budget.allows(self._tensors)
        asked, is_due = self.world.largest([self._stop.number or 0, due])
        if asked:
            self._stop.number = int(asked)
            self._save_or_say()
            saved = self.budget.saved or "before anything could be saved"
            self._stop.obey(f"{self.name} stopped {saved}; run the same again to go on from there")
        if is_due:
            self._save_or_say()

    def _save_or_say(self) -> None:
        """A disk that takes no checkpoint is no reason to lose what is in memory."""
        self.complete_on_first()
        if not self.world.is_first:
            return
        try:
            self.save()
        except DiskError as error:
            logger.warning("%s. %s goes on in memory; %s", error, self.name, self._last_checkpoint())
            return
        assert self.place is not None
        # A drive is slower than a disk: its copies have a share of the time of their own.
        if self.place.copies is not None and (self._stop.number is not None or self.copying.allows(self._tensors)):
            with self.copying.timed(self._where()):
                copy_checkpoint(self.place)

    def _where(self) -> str:
        return f"after {len(self.rows)} {self.unit}s and {self.within.steps} steps"

    def save(self) -> None:
        """Write a checkpoint; never one of weights that are not finite."""
        assert self.place is not None
        with self.budget.timed(self._where()), disk_errors_named(self.place.folder):
            tensors = self._tensors()
            refuse_not_finite({name: float(value.detach().sum(dtype=torch.float64)) for name, value in tensors.items()})
            rows = [asdict(row) for row in self.rows]  # type: ignore[call-overload]
            checkpoint = Checkpoint(self.place.configs, rows, self.within.steps, tensors, self._states())
            save_checkpoint(self.place.folder, checkpoint)

    def _tensors(self) -> dict[str, Tensor]:
        """Of the parts that are nothing else, by part and name, and the best weights."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return joined({**{name: state for name, state in states.items() if _is_flat(state)}, "best": self.best.weights})

    def _states(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {
            "parts": {name: state for name, state in states.items() if not _is_flat(state)},
            "best": {name: getattr(self.best, name) for name in ("number", "score", "without_gain")},
            "within": vars(self.within),
            "device_batch": {name: getattr(self.device_batch, name) for name in ("size", "records")},
            "seconds": self.watch.state(),
            **generator_states(self.device),
        }

    def _resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        found = load_checkpoint(self.place, self.device)
        if found is None:
            return
        stored = parted(found.tensors) | found.states["parts"]
        for name, part in self.parts.items():
            part.load_state_dict(stored.get(name, {}))
        self.rows = [self.stored_row(figures) for figures in found.rows]
        self.best = Best(**found.states["best"], weights=stored.get("best", {}))
        self.within = PassState(**_moved(found.states["within"], self.device))
        vars(self.device_batch).update(found.states["device_batch"])
        self.budget.saved = self._where()
        self.watch.resume(found.states["seconds"])
        restore_generators(found.states, self.device)


def _is_flat(state: Mapping[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in state.values())


def _moved(value: Any, device: torch.device) -> Any:
    """Every tensor within, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return type(value)(_moved(part, device) for part in value) if isinstance(value, list | tuple) else value
