"""What a study searches: the fixed part of a run, the data sets of both stages, and the space."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from newllm_core.config.schema import ConfigError, changed, config_values
from newllm_core.runs.files import RunError, read_json, write_json
from newllm_core.runs.identity import Identity, refuse_other_run
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.data import images_read
from newllm_core.vision.search.config import SEARCH_SPACES, SearchConfig
from newllm_core.vision.settings import VisionSettings, for_data_set

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class SearchPlan:
    """What a study searches.

    Attributes:
        base: everything that the space does not name; its data set is not used.
        gate_data: stage A.
        other_data: stage B. Global is over all of them.
        space: flat parameter of a run -> values.
    """

    base: VisionSettings
    gate_data: VisionDataConfig
    other_data: tuple[VisionDataConfig, ...] = ()
    search: SearchConfig = SearchConfig()
    space: Mapping[str, BaseDistribution] = field(default_factory=lambda: SEARCH_SPACES["full"])

    @property
    def data_sets(self) -> tuple[VisionDataConfig, ...]:
        return (self.gate_data, *self.other_data)

    @property
    def names(self) -> list[str]:
        return [data.dataset for data in self.data_sets]

    def settings(self, parameters: Mapping[str, Any], data: VisionDataConfig) -> VisionSettings:
        """Of one trial on one data set. Raises ConfigError."""
        return for_data_set(changed(for_data_set(self.base, self.gate_data), parameters), data)

    def check(self) -> None:
        """Raises ConfigError when some choice of the space is impossible on some data set, before any is trained."""
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"SearchPlan: expected every data set once, given {', '.join(self.names)}")
        for parameters in self._corners():
            for data in self.data_sets:
                self.settings(parameters, data)

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Every combination of the choices at the lowest numbers, then each other number alone."""
        first_of_each = [_numbers(values)[:1] or values.choices for values in self.space.values()]  # type: ignore[attr-defined]
        for corner in itertools.product(*first_of_each):
            yield dict(zip(self.space, corner))
        lowest = {name: first[0] for name, first in zip(self.space, first_of_each)}
        for name, values in self.space.items():
            yield from ({**lowest, name: number} for number in _numbers(values)[1:])

    def record(self) -> dict[str, Any]:
        """What must not change while a study is continued: all but the number of trials, and paths."""
        base = config_values(self.base)
        del base["data"]
        search = {name: value for name, value in asdict(self.search).items() if name != "num_trials"}
        data = {part.dataset: config_values(part) for part in self.data_sets}
        space = {name: json.loads(distribution_to_json(values)) for name, values in self.space.items()}
        gate = {"dataset": self.gate_data.dataset}
        return {**base, "gate": gate, "data_sets": data, "search": search, "space": space}

    def identity(self) -> Identity:
        """With the images as they are now. Raises DataError where some are missing."""
        read = {part.dataset: images_read(part).get("images") for part in self.data_sets}
        return Identity(self.record(), {f"{name} images": content for name, content in read.items() if content})


def _numbers(distribution: BaseDistribution) -> tuple[float, ...]:
    """The lowest, the one after it where there are steps, and the highest; none of a choice."""
    if isinstance(distribution, CategoricalDistribution):
        return ()
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    second = () if distribution.step is None else (min(distribution.low + distribution.step, distribution.high),)
    return (distribution.low, *second, distribution.high)


def refuse_other_plan(stored: Mapping[str, Any], plan: SearchPlan, place: Path) -> None:
    """Raises RunError unless ``stored``, of a file or a study, is this plan with these images."""
    if set(stored["config"]["data_sets"]) != set(plan.names) or set(stored["config"]["space"]) != set(plan.space):
        raise RunError(f"{place} holds a search over other data sets or another space; use another folder")
    refuse_other_run(stored, plan.identity(), place)


def keep_plan(plan: SearchPlan, folder: Path) -> None:
    """Write `plan.json`. Raises RunError when the folder holds another plan."""
    path = folder / PLAN_NAME
    if path.is_file():
        refuse_other_plan(read_json(path), plan, folder)
    else:
        write_json(path, plan.identity().record())
