"""Hyperparameters that depend on how much text there is: one rule a contender, fixed on small sizes.

What is right for 57,173 tokens is wrong for two million: a model that sees little text learns it by heart, unless it is
held back, and one that sees much needs fewer passes over it. Retuning at every size would give each contender another
search; so each has power laws, ``own · (tokens / 57,173)^exponent`` between two bounds, whose exponents are the same at
every size. At 57,173 tokens a variant is what `variants` and `baselines/registry` say of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from newllm_core.baselines.registry import baseline_config
from newllm_core.config.hyperparameters import Phase1Config, Settings
from newllm_core.config.schema import ConfigError, parameter_fields
from newllm_core.studies.variants import variant

REFERENCE_TOKENS = 57_173  # 80 conversations of the embedded corpus, where every variant has its own values


@dataclass(frozen=True)
class SizeLaw:
    """``own · (tokens / REFERENCE_TOKENS)^exponent``, not below ``low`` nor above ``high``.

    An own value outside the bounds widens them, and 0, which switches a thing off, stays 0. Whole numbers stay whole,
    others are rounded to four digits, so that records stay readable.
    """

    exponent: float
    low: float
    high: float

    def value(self, own: float, tokens: int) -> float:
        """At ``tokens`` of training text, of the kind of ``own``. Raises ConfigError for fewer than one token."""
        if tokens < 1:
            raise ConfigError(f"SizeLaw: expected at least one training token, given {tokens}")
        if tokens == REFERENCE_TOKENS or own == 0:
            return own
        wanted = own * (tokens / REFERENCE_TOKENS) ** self.exponent
        bounded = min(max(wanted, min(self.low, own)), max(self.high, own))
        return round(bounded) if isinstance(own, int) else float(f"{bounded:.4g}")


# The exponents lead from each contender's own values to those that did best, of a few tried, on the selection text at
# 259,763 tokens (docs/findings.md). Bounds: no fewer passes than a config takes; beyond the others nothing was tried.
_PASSES = SizeLaw(-0.46, Phase1Config.min_iterations, 64)
_MIXED: Mapping[str, SizeLaw] = {"cache_weight": SizeLaw(-0.1, 0.05, 0.3), "ngram_weight": SizeLaw(0.22, 0.05, 0.4)}
_PREDICTIVE: Mapping[str, SizeLaw] = {
    "max_iterations": _PASSES,
    "check_interval": SizeLaw(_PASSES.exponent, 1, 16),  # as many checks, whatever the number of passes
    "prediction_weight_decay": SizeLaw(-1.5, 0.01, 2.0),
    "context_noise": SizeLaw(-0.6, 0.1, 0.6),
    "prediction_dropout": SizeLaw(-0.27, 0.1, 0.5),
    "max_epochs": SizeLaw(-0.27, 2, 20),
    "dropout": SizeLaw(-0.46, 0.1, 0.6),
    **_MIXED,
}
_END_TO_END: Mapping[str, SizeLaw] = {
    "max_epochs": SizeLaw(-0.46, 3, 40), "dropout": SizeLaw(-0.27, 0.1, 0.6), **_MIXED
}  # fmt: skip
# By the variant's name; a network that is not named has the law of networks, everyone else stays as it is. `notes` is
# the notes' configuration at every size, and counts choose their discount themselves.
LAWS: Mapping[str, Mapping[str, SizeLaw]] = {
    "best": _PREDICTIVE,
    "best-alone": _PREDICTIVE,
    "untrained": {"max_epochs": SizeLaw(-0.5, 2, 40)},
}


def laws_of(name: str) -> Mapping[str, SizeLaw]:
    """Flat parameter of ``Settings``, or field of a network's config, -> its law. Raises ConfigError for no variant."""
    one = variant(name)
    return LAWS.get(name, _END_TO_END if one.kind == "network" else {})


def own_value(name: str, parameter: str) -> Any:
    """What the variant says of a parameter that has a law, at REFERENCE_TOKENS."""
    one = variant(name)
    if one.kind == "network":
        return getattr(baseline_config(name), parameter)
    section, field_name = parameter_fields(Settings)[parameter]
    return getattr(getattr(one.settings(Settings()), section), field_name)


def size_changes(name: str, train_tokens: int) -> dict[str, Any]:
    """What the rule makes of a variant at ``train_tokens``: changes of ``Settings``, by flat name, or of a network's
    ``BaselineConfig``.

    Raises ConfigError for an unknown variant and for fewer than one token.
    """
    return {parameter: law.value(own_value(name, parameter), train_tokens) for parameter, law in laws_of(name).items()}
