"""Hyperparameters of the search (docs/method.md, section 12.5): how it decides, and what it may choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from newllm_core.config.schema import ConfigError, choice, from_mapping, number, unknown_name_message, validate


@dataclass(frozen=True)
class SearchConfig:
    """One study. Accuracies and scores are of the selection images."""

    num_trials: int = number(50, low=1)  # finished or pruned ones; may grow when a search is continued
    objective: str = choice("global", "accuracy_and_parameters")  # the latter: mean accuracy up, parameters down
    score: str = choice("tpe_scalar", "tpe_params")  # which λ Global and the literal gate divide by
    gate: str = choice("accuracy", "score")  # on the gate's data set; literal: score
    gate_threshold: float = number(0.60, low=0)
    startup_trials: int = number(10, low=1)  # drawn at random before the sampler has a model
    pruner: str = choice("median", "off")  # within stage A: below the median of the others at the same epoch
    pruner_startup_trials: int = number(5, low=1)  # before any is stopped
    pruner_warmup_epochs: int = number(5, low=0)  # of each trial
    seed: int = number(42, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        validate(self)
        if self.gate == "accuracy" and self.gate_threshold > 1:
            raise ConfigError(f"SearchConfig.gate_threshold: an accuracy is at most 1, given {self.gate_threshold}")


# Changes to SearchConfig.
SEARCH_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "quick": {"num_trials": 12, "gate_threshold": 0.30, "startup_trials": 5, "pruner_warmup_epochs": 1},
    "literal": {"gate": "score"},
}

# Names are flat parameters of VisionSettings.
_FULL_SPACE: dict[str, BaseDistribution] = {
    "patch": CategoricalDistribution((2, 4)),
    "stem": CategoricalDistribution(("off", "tiny", "small")),
    "width": IntDistribution(384, 512, step=8),  # the step is the number of heads
    "depth": IntDistribution(5, 9),
    "temperature": FloatDistribution(0.6, 1.0),
    "top_p": FloatDistribution(0.80, 0.95),
    "top_k": IntDistribution(4, 8),
    "nkat_strength": FloatDistribution(0.001, 0.005),
    "attention_dropout": FloatDistribution(0.0, 0.30),  # the notes give no range: around their 0.17 …
    "embedding_dropout": FloatDistribution(0.0, 0.15),  # … and their 0.08
    "learning_rate": FloatDistribution(1e-4, 3e-4, log=True),
}
SEARCH_SPACES: Mapping[str, dict[str, BaseDistribution]] = {
    "full": _FULL_SPACE,
    # For the quick model on two cores: small widths, few blocks, and the higher learning rates that short runs need.
    "quick": {
        **_FULL_SPACE,
        "patch": CategoricalDistribution((4,)),
        "stem": CategoricalDistribution(("off", "tiny")),
        "width": IntDistribution(48, 96, step=8),
        "depth": IntDistribution(2, 4),
        "learning_rate": FloatDistribution(3e-4, 3e-3, log=True),
    },
}


def search_profile(name: str, **changes: Any) -> SearchConfig:
    """A named search ("full", "quick", "literal"), then ``changes``. Raises ConfigError for an unknown name."""
    if name not in SEARCH_PROFILES:
        raise ConfigError(unknown_name_message("search profile", name, SEARCH_PROFILES))
    return from_mapping(SearchConfig, {**SEARCH_PROFILES[name], **changes})
