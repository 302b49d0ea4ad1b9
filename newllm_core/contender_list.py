"""Who is compared, and what was expected of it: controls, baselines, objectives, ablations, and the better model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newllm_core.baselines.config import BASELINES
from newllm_core.config import ConfigError, unknown_name_message


@dataclass(frozen=True)
class Contender:
    """``sentence`` says what it is. ``changes``: of the settings, by their notebook names.

    ``contexts`` of a "model": its own, "none" (zeros, so that the last token alone is read), or "shuffled" (each token
    gets the context of another). Other kinds are "unigram", "kneser-ney" and "network", a name in BASELINES.
    ``reference`` is what it is held against, and ``expected`` what was thought of that before it was run.
    """

    sentence: str
    kind: str = "model"
    changes: Mapping[str, Any] = field(default_factory=dict)
    contexts: str = "own"
    network: str | None = None
    reference: str | None = None
    expected: str | None = None


# Softmax of training over all tokens that occur and 2,048 of the others: a third of the time.
_SAMPLED: Mapping[str, Any] = {"unseen_sample": 2048}
_WHOLE_SOFTMAX: Mapping[str, Any] = {"unseen_sample": None}
_DEEP: Mapping[str, Any] = {"num_layers": 3}
# The notes' readout with what keeps it from learning its 57,000 tokens by heart.
REGULARISED: Mapping[str, Any] = {
    "unigram_bias": True, "dropout": 0.3, "weight_decay": 0.1, "schedule": "cosine", "max_epochs": 16,
    "phase2_patience": 3, **_SAMPLED,
}  # fmt: skip
# Phase 1 that predicts: the same text, as many passes as CVFP takes iterations.
CONTRASTIVE: Mapping[str, Any] = {
    "objective": "contrastive",
    "dist_reg_weight": 0.0,
    "context_noise": 0.0,
    "max_iterations": 16,
}


def _regularised(sentence: str, contexts: str = "own", **changes: Any) -> Contender:
    return Contender(sentence, changes={**REGULARISED, **changes}, contexts=contexts)


CONTENDERS: dict[str, Contender] = {
    "notes": Contender(
        "the notes' configuration: stale contexts, batches in stream order",
        changes={"context_source": "previous_iteration", "shuffle": False},
    ),
    "trained": Contender("the ContextBlock trained by Phase 1, exact contexts, shuffled batches", changes=_SAMPLED),
    "untrained": Contender(
        "the same with a ContextBlock that was never trained", changes={**_SAMPLED, "max_iterations": 0}
    ),
    "last-token": Contender(
        "no context: the TokenBlock reads zeros", changes={**_SAMPLED, "max_iterations": 0}, contexts="none"
    ),
    "shuffled": Contender("every token reads the context of another token", changes=_SAMPLED, contexts="shuffled"),
    "unigram": Contender("token frequencies", "unigram"),
    "kneser-ney-5": Contender("interpolated Kneser-Ney, five tokens", "kneser-ney"),
    **{name: Contender(f"{name.upper()}, trained end to end", "network", network=name) for name in BASELINES},
}


def _ablation(sentence: str, expected: str, reference: str = "trained", **changes: Any) -> Contender:
    return Contender(sentence, changes={**_SAMPLED, **changes}, reference=reference, expected=expected)


# The decisions of the notes, one changed at a time.
DECISIONS: dict[str, Contender] = {
    "whole-softmax": _ablation("trained with the whole softmax", "the same, in three times the time", **_WHOLE_SOFTMAX),
    "stale": _ablation("stale contexts", "a little worse", context_source="previous_iteration"),
    "w-0.5": _ablation("w = 0.5", "less rank, worse", dist_reg_weight=0.5),
    "w-1.0": _ablation("w = 1: no fixed-point term", "the same: the term's share is small", dist_reg_weight=1.0),
    "no-noise": _ablation("no context noise", "a little worse: noise makes contexts robust", context_noise=0.0),
    "odcm": _ablation("ODCM for MCDL", "more rank, better", diversity_algorithm="ODCM"),
    "pr": _ablation("participation ratio for MCDL", "more rank, better", diversity_algorithm="PR"),
    "sigreg": _ablation("SIGReg for MCDL", "more rank, better", diversity_algorithm="SIGReg"),
    "tokens-2": _ablation("T = 2 input tokens", "better: two tokens without recurrence", num_input_tokens=2),
    "tokens-3": _ablation("T = 3 input tokens", "better than two", num_input_tokens=3),
    "deep": _ablation("L = 3", "a little better: three times the parameters", **_DEEP),
    "deep-first-layer": _ablation(
        "L = 3, token at the first layer only", "worse (notes: 536 against 334)", "deep", **_DEEP,
        token_input="first-layer",
    ),
    "deep-plan-a": _ablation(
        "L = 3, plan A: the final context for all layers", "worse", "deep", **_DEEP, context_routing="final"
    ),
    "untied": _ablation(
        "an untied head, trained", "worse: 19 million parameters for 57,000 tokens", "whole-softmax", **_WHOLE_SOFTMAX,
        tie_weights=False,
    ),
    "trained-embedding": _ablation(
        "embedding and tied head trained", "worse (notes: 1189 against 334)", "whole-softmax", **_WHOLE_SOFTMAX,
        freeze_embedding=False,
    ),
    "width-200": _ablation("C = 200", "worse: fewer parameters", context_dim=200),
    "width-768": _ablation("C = 768", "worse (notes): forgets more slowly", context_dim=768),
    "width-1085": _ablation("C = 1,085", "worse still", context_dim=1085),
    "width-1536": _ablation("C = 1,536", "worst: it does not forget at first", context_dim=1536),
    "exponent-500": _ablation("initial exponent -0.15", "better", initial_exponent=-0.15),
    "exponent-768": _ablation(
        "C = 768, initial exponent -0.15", "no worse than C = 500", "exponent-500", context_dim=768,
        initial_exponent=-0.15,
    ),
    "exponent-1536": _ablation(
        "C = 1,536, initial exponent -0.15", "no worse than C = 500", "exponent-500", context_dim=1536,
        initial_exponent=-0.15,
    ),
}  # fmt: skip

GROUPS: Mapping[str, Mapping[str, Contender]] = {"contenders": CONTENDERS, "decisions": DECISIONS}


def contender(name: str) -> Contender:
    """Raises ConfigError for an unknown name."""
    known = {name: one for group in GROUPS.values() for name, one in group.items()}
    if name not in known:
        raise ConfigError(unknown_name_message("contender", name, known))
    return known[name]
