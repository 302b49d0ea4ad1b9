"""Who is compared, and what was expected of it: controls, baselines, objectives, ablations, and the better model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newllm_core.baselines.config import BASELINES
from newllm_core.config.schema import ConfigError, unknown_name_message


@dataclass(frozen=True)
class Contender:
    """``sentence`` says what it is. ``changes``: of the settings, by their notebook names.

    ``contexts`` of a "model": its own, "none" (zeros, so that the last token alone is read), or "shuffled" (each token
    gets the context of another). Other kinds are "unigram", "kneser-ney",
    "network", a name in BASELINES, and "pretrained".
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
    **_SAMPLED, "unigram_bias": True, "dropout": 0.3, "weight_decay": 0.1, "schedule": "cosine", "max_epochs": 8,
    "phase2_patience": 3,
}  # fmt: skip
# Phase 1 that predicts.
CONTRASTIVE: Mapping[str, Any] = {
    "objective": "contrastive", "dist_reg_weight": 0.0, "context_noise": 0.5, "max_iterations": 24, "check_interval": 4,
}  # fmt: skip
# The project's own model: chosen on conversations 980–999, which are neither trained on nor judged here.
BEST: Mapping[str, Any] = {
    **REGULARISED, **CONTRASTIVE, "context_dim": 576, "weight_std": 0.04, "time_scales": True, "max_iterations": 16,
    "prediction_weight_decay": 1.0, "readout": "linear", "adapter_rank": 64, "dropout": 0.4, "max_epochs": 6,
    "cache_weight": 0.15, "cache_scale": 10.0,
}  # fmt: skip
# What it was before, for the gain.
_EARLIER_BEST: Mapping[str, Any] = {
    "context_dim": 500, "time_scales": False, "prediction_weight_decay": 0.01, "readout": "sum", "adapter_rank": 0,
}  # fmt: skip
_FIXED_POINT: Mapping[str, Any] = {
    "objective": "cvfp", "dist_reg_weight": 0.9, "context_noise": 0.1, "max_iterations": 60, "check_interval": 5,
}  # fmt: skip
_NETWORK_TITLES: Mapping[str, str] = {
    "gru": "GRU", "gru-cache": "GRU with the same continuous cache", "lstm": "LSTM", "mingru": "minGRU of two layers",
    "gpt": "small GPT of four layers",
}  # fmt: skip


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
    **{name: Contender(f"{_NETWORK_TITLES[name]}, trained end to end", "network", network=name) for name in BASELINES},
    "best": Contender(
        "contrastive contexts with learned gains, linear readout with adapter and unigram bias, continuous cache",
        changes=BEST,
    ),
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


def _objective(
    sentence: str, expected: str, reference: str = "regularised", contexts: str = "own", **changes: Any
) -> Contender:
    return Contender(sentence, "model", {**REGULARISED, **changes}, contexts, reference=reference, expected=expected)


# What Phase 1 minimises, all with the same regularised readout.
OBJECTIVES: dict[str, Contender] = {
    "regularised": _objective("CVFP + MCDL, regularised readout", "half the perplexity", "trained"),
    "regularised-untrained": _objective("an untrained block", "a little worse", max_iterations=0),
    "regularised-last-token": _objective(
        "no context: the same readout of zeros", "worse: without regularisation it was better", contexts="none",
        max_iterations=0,
    ),
    "regularised-shuffled": _objective("contexts of other tokens", "worst of them", contexts="shuffled"),
    "regularised-exponent": _objective(
        "CVFP + MCDL from an initial exponent of -0.15", "less gained than with the notes' readout",
        initial_exponent=-0.15,
    ),
    "regularised-untrained-exponent": _objective(
        "an untrained block with an exponent of -0.15", "the same: it is the forgetting", "regularised-exponent",
        initial_exponent=-0.15, max_iterations=0,
    ),
    "regularised-odcm": _objective("CVFP + ODCM", "the same", diversity_algorithm="ODCM"),
    "contrastive": _objective("contrastive prediction", "a quarter lower", **CONTRASTIVE),
    "contrastive-odcm": _objective(
        "contrastive prediction + ODCM", "more rank, no better", "contrastive",
        **{**CONTRASTIVE, "diversity_algorithm": "ODCM", "dist_reg_weight": 0.1},
    ),
    "regression-sigreg": _objective(
        "regression + SIGReg, as LeJEPA", "between CVFP and contrastive",
        **{**CONTRASTIVE, "objective": "regression", "diversity_algorithm": "SIGReg", "dist_reg_weight": 0.1},
    ),
}  # fmt: skip


def _without(sentence: str, expected: str, reference: str = "best", **changes: Any) -> Contender:
    return Contender(sentence, changes={**BEST, **changes}, reference=reference, expected=expected)


# The better model, one part exchanged at a time: what pays its way, and what did not.
PARTS: dict[str, Contender] = {
    "best-earlier": _without(
        "C = 500, TokenBlock beside the linear map, no gains, no adapter, little weight decay",
        "7 % worse",
        **_EARLIER_BEST,
    ),
    "best-no-gains": _without("without learned gains (time-scales)", "2 % worse", time_scales=False),
    "best-less-decay": _without("with a weight decay of 0.01 in Phase 1", "3 % worse", prediction_weight_decay=0.01),
    "best-no-adapter": _without("without the adapter of rank 64", "2 % worse", adapter_rank=0),
    "best-no-cache": _without("without the continuous cache", "a tenth worse", cache_weight=0.0),
    "best-no-bias": _without("without the unigram bias", "a tenth worse", unigram_bias=False),
    "best-no-dropout": _without("without dropout in Phase 2", "the same", dropout=0.0),
    "best-untrained": _without("on an untrained block", "much worse", max_iterations=0),
    "best-fixed-point": _without("on CVFP + MCDL contexts", "much worse", **_FIXED_POINT),
    "best-sum": _without("with a TokenBlock beside the linear map", "the same", readout="sum"),
    "best-token-block": _without("with the TokenBlock", "a third worse: it learns by heart", readout="token-block"),
    "best-gate": _without("with a gated TokenBlock", "a fifth worse", readout="token-block", token_gate=True),
    "best-logit-scale": _without("with a learned scale of the logits", "the same", logit_scale=1.0),
    "best-width-500": _without("C = 500", "the same", context_dim=500),
    "best-width-720": _without("C = 720", "the same", context_dim=720),
    "best-wide-start": _without(
        "with the notes' initial weights (std 0.1) and 24 passes",
        "a little worse, in more time",
        weight_std=0.1,
        max_iterations=24,
    ),
    # With gains above 1 no scale of the recurrent weights reaches that exponent.
    "best-exponent": _without(
        "without gains, from an initial exponent of -0.15",
        "a little better than without either",
        "best-no-gains",
        time_scales=False,
        initial_exponent=-0.15,
    ),
    "best-two-tokens": _without("T = 2 input tokens", "a little worse", num_input_tokens=2),
}

# What was trained on other text; needs a network.
CEILINGS: dict[str, Contender] = {
    "gpt2": Contender("GPT-2 itself, 124 million parameters trained on some ten billion other tokens", "pretrained"),
}

GROUPS: Mapping[str, Mapping[str, Contender]] = {
    "contenders": CONTENDERS,
    "objectives": OBJECTIVES,
    "parts": PARTS,
    "decisions": DECISIONS,
    "ceilings": CEILINGS,
}


def contender(name: str) -> Contender:
    """Raises ConfigError for an unknown name."""
    known = {name: one for group in GROUPS.values() for name, one in group.items()}
    if name not in known:
        raise ConfigError(unknown_name_message("contender", name, known))
    return known[name]
