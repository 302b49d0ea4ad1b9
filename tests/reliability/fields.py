"""Every field of both lines at its ends and far beyond: accepted, and the run ends, or refused in a sentence."""

import dataclasses
import math
import resource
import types
import typing
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import changed, parameter_fields, parameter_kinds
from newllm_core.experiment.run import run_experiment
from newllm_core.vision.experiment import run_vision
from newllm_core.vision.settings import VisionSettings

from .cases import SEED, Case, FailedError, Workshop
from .process import start
from .scenarios import BASE, CONTRASTIVE, DATA, RUN, SCENARIOS, VISION, settings_in

_SECONDS = 60.0  # a run at its smallest takes half of one
_LONG = {"max_epochs": 600.0, "epochs": 900.0}  # trains as long as it is asked to
_MORE_BYTES = 2 * 10**9  # of memory, that a run may take
_INTEGERS = (0, 1, 2, 3, -1, 2**31, 2**53, 2**53 + 1, -(2**53), 10**300)
_FLOATS = (0.0, 1e-38, 1e-9, 0.5, 1.0, 1e3, 1e38, 1e308, -1.0, -1e38, math.inf, math.nan)
_TEXTS = ("", "nonsense", "x" * 10_000, "../../x", "a\0b")
_RANGES = ((0, 0), (0, 1), (5, 2), (-1, 3), (0, 2**53), (2**53, 2**53 + 5), (0, 10**300))
# Where something lies is not a value; how much text there is, the data's tests say.
_LEFT_OUT = ("conversations_file", "path", "copy_to", "device")


def field_cases() -> Iterator[Case]:
    """A case for every value of every field, of the first line and then of the second."""
    for line, base in (("language", BASE), ("predictive", CONTRASTIVE), ("images", VISION)):
        for name, value in _values(type(base)):
            if line != "predictive" or name.startswith("prediction_"):
                shown = repr(value)[:40]
                yield Case("fields", f"{line}-{name}-{shown}", partial(_tried, base, name, value))


def _values(settings_type: type) -> Iterator[tuple[str, Any]]:
    kinds = parameter_kinds(settings_type)
    sections = {section.name: section.type for section in dataclasses.fields(settings_type)}
    for name, (section, key) in parameter_fields(settings_type).items():
        spec = next(one for one in dataclasses.fields(sections[section]) if one.name == key)  # type: ignore[arg-type]
        if key not in _LEFT_OUT and section != "scaling":
            for value in dict.fromkeys(_values_of(kinds[name], spec.metadata)):
                yield name, value


def _values_of(kind: Any, limits: typing.Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(kind, types.UnionType):
        for option in typing.get_args(kind):
            yield from _values_of(option, limits)
    elif kind in (int, float):
        ends = [limits[name] for name in ("low", "high", "above") if limits.get(name) is not None]
        yield from ends
        yield from (end + step for end in ends for step in (-1, 1))
        yield from _INTEGERS if kind is int else _FLOATS
    elif kind is bool:
        yield from (False, True)
    elif kind is types.NoneType:
        yield None
    elif kind is str:
        yield from (*limits.get("choices", ()), *_TEXTS)
    elif typing.get_origin(kind) is tuple:
        yield from _RANGES


def _tried(base: Any, name: str, value: Any, workshop: Workshop) -> None:
    scenario = SCENARIOS["cvfp" if isinstance(base, Settings) else "nkat"]
    folder = workshop.fresh(scenario)
    before = sorted(path.name for path in workshop.root.iterdir())

    def work() -> None:
        if isinstance(base, VisionSettings):
            run_vision(changed(base, {name: value}), folder / RUN, show_progress=False)
            return
        asked = changed(settings_in(base, folder, SEED), {name: value})
        run_experiment(
            asked.data, asked.model, asked.phase1, asked.phase2, folder / RUN, run=asked.run, data_dir=folder / DATA
        )

    def limit() -> None:
        used = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (used + _MORE_BYTES, resource.RLIM_INFINITY))

    ended = start(work, workshop.told(), limit).wait(_LONG.get(name, _SECONDS))
    if ended.how not in ("finished", "refused"):
        raise FailedError(f"{name} = {str(value)[:60]}: {ended.how}: {ended.text[-1000:]}")
    left = sorted(path.name for path in workshop.root.iterdir())
    if left != before or sorted(path.name for path in folder.iterdir()) != sorted([DATA, RUN, "my.jsonl"]):
        raise FailedError(f"{name} = {str(value)[:60]}: something was written beside the run's folder")
