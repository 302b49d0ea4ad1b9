"""A sweep as a YAML file: what kind of runs, from which base, which axes, which seeds; the same for every engine.

    runs: experiments                          # or phase1, leaderboard, images
    profile: notebooks/profiles/quick.yaml     # the base; paths start at the project's folder
    parameters: {num_threads: 1}               # changes of it
    axes:
      diversity_algorithm: [MCDL, ODCM]
      context_dim: [64, 96]
    design: grid                               # or one-at-a-time: each axis alone, from the base
    seeds: [42, 43, 44]

Only ``seeds`` is required. ``variants: [notes, trained, gru]`` takes the place of the axes in a leaderboard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from newllm_core.batch.jobs import BatchError, notebook_parameters, settings_type_of
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.notebook import NotebookSettings
from newllm_core.config.profiles import load_profile, read_yaml
from newllm_core.config.schema import ConfigError, changed, parameter_fields, unknown_name_message
from newllm_core.config.values import read_as
from newllm_core.runs.files import PROJECT_ROOT
from newllm_core.studies.runners import ExperimentRunner, RowRunner
from newllm_core.studies.sweep import Runner, Sweep, Variant, grid, one_axis_at_a_time
from newllm_core.studies.variants import variant
from newllm_core.vision.runner import VisionRunner
from newllm_core.vision.settings import VisionSettings

RUNS: Mapping[str, tuple[type[NotebookSettings], Callable[[], Runner]]] = {
    "experiments": (Settings, ExperimentRunner),
    "phase1": (Settings, partial(ExperimentRunner, phase1_only=True)),
    "leaderboard": (Settings, RowRunner),
    # Something is chosen by them, so the test images stay unread.
    "images": (VisionSettings, partial(VisionRunner, read_test=False)),
}
DESIGNS: Mapping[str, Callable[[Mapping[str, Sequence[Any]]], list[Variant]]] = {
    "grid": grid, "one-at-a-time": one_axis_at_a_time,
}  # fmt: skip
AnySettings = TypeVar("AnySettings", bound=NotebookSettings)
KEYS = ("runs", "profile", "parameters", "axes", "design", "variants", "seeds")


@dataclass(frozen=True)
class SweepFile:
    """``name``: the file's, without its ending. ``runs``: in RUNS."""

    name: str
    runs: str
    sweep: Sweep


def load_sweep(path: Path) -> SweepFile:
    """What a file describes; nothing is run.

    Raises ConfigError, with the file's name, for an unknown key, parameter or value, and for what does not go together.
    """
    content = read_yaml(path)
    try:
        return SweepFile(path.stem, *_read(content))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(content: Any) -> tuple[str, Sweep]:
    if not isinstance(content, Mapping):
        raise ConfigError(f"expected lines of the form name: value with {', '.join(KEYS)}, given {content!r:.80}")
    for key in content:
        if key not in KEYS:
            raise ConfigError(unknown_name_message("key of a sweep", key, KEYS))
    runs = _one_of("runs", content.get("runs", "experiments"), RUNS)
    settings_type, runner = RUNS[runs]
    variants = _variants(content, runs)
    seeds = [read_as(int, seed) for seed in _of_kind(content, "seeds", list)]
    return runs, Sweep(_base(content, settings_type), variants, seeds, runner())


def _base(content: Mapping[str, Any], settings_type: type[NotebookSettings]) -> NotebookSettings:
    """The profile's settings, changed."""
    profile = _of_kind(content, "profile", str)
    return profile_settings(Path(profile) if profile else None, settings_type, _of_kind(content, "parameters", dict))


def profile_settings(
    profile: Path | None, settings_type: type[AnySettings], parameters: Mapping[str, Any]
) -> AnySettings:
    """Of a profile, whose path starts at the project's folder, with some ``parameters`` changed.

    A profile serves notebooks too, whose own parameters say nothing here. Raises ConfigError.
    """
    settings = settings_type()
    if profile is not None:
        found = load_profile(PROJECT_ROOT / profile.expanduser())
        settings = changed(settings, found, _notebooks_own(settings_type))
    return changed(settings, parameters)


def _notebooks_own(settings_type: type[NotebookSettings]) -> set[str]:
    """Parameters that only notebooks of this line have."""
    known = set[str]()
    for path in (PROJECT_ROOT / "notebooks").glob("*.ipynb"):
        try:
            names = notebook_parameters(path)
        except BatchError:
            continue  # one without parameters, such as a tour
        if settings_type_of(names) is settings_type:
            known |= names.keys() - parameter_fields(settings_type).keys()
    return known


def _variants(content: Mapping[str, Any], runs: str) -> list[Variant]:
    names, axes = _of_kind(content, "variants", list), _of_kind(content, "axes", dict)
    if names and (axes or runs != "leaderboard"):
        raise ConfigError("variants: expected in a leaderboard, and without axes, since each is a change of its own")
    if runs == "leaderboard":
        if not names:
            raise ConfigError("a leaderboard: expected variants, names of newllm_core/studies/variants.py, given none")
        return [variant(name) for name in names]
    design = _one_of("design", content.get("design", "grid"), DESIGNS)
    return DESIGNS[design](axes)


def _of_kind(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """Its value, empty where it is left out. Raises ConfigError for another kind."""
    value = content.get(key) or kind()
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "a path" if kind is str else "lines of the form name: value"
        raise ConfigError(f"{key}: expected {expected}, given {value!r:.80}")
    return value


def _one_of(key: str, value: Any, known: Mapping[str, Any]) -> str:
    if value not in known:
        raise ConfigError(f"{key}: expected one of {', '.join(known)}, given {value!r}")
    return str(value)
