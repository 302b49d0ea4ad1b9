"""Who is compared, and what was expected of it: controls, baselines, objectives, ablations, and the better model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from newllm_core.baselines.registry import BASELINES
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import ConfigError, unknown_name_message
from newllm_core.studies.sweep import Variant


@dataclass(frozen=True)
class LeaderboardVariant(Variant):
    """A change of the notes' model, a control or a baseline, which are rows of one leaderboard.

    ``kind``: "model", "control" (the model, whose contexts were taken away), or one of `registry.KINDS`. ``contexts``
    that the readout of a model or control reads: its "own", "none" (zeros, so that the last token alone is read), or
    "shuffled" (each token gets the context of another).
    """

    contexts: str = "own"

    def settings(self, base: Settings) -> Settings:
        """``base``, changed. Raises ConfigError where that is not the notes' model, or a value is impossible."""
        plain = Settings()
        for part, field_name in _NOTES_MODEL:
            given, expected = getattr(getattr(base, part), field_name), getattr(getattr(plain, part), field_name)
            if given != expected:
                raise ConfigError(
                    f"variants are changes to the notes' model: expected {field_name}={expected!r}, given {given!r} "
                    "(the better model is the variant 'best')"
                )
        return super().settings(base)


# What makes a model another one, and not a larger or shorter trained one.
_NOTES_MODEL = (
    ("model", "weight_std"), ("model", "initial_exponent"), ("model", "time_scales"), ("model", "readout"),
    ("model", "token_gate"), ("model", "adapter_rank"), ("model", "logit_scale"), ("phase1", "objective"),
    ("phase2", "unigram_bias"), ("phase2", "dropout"), ("phase2", "weight_decay"), ("phase2", "schedule"),
    ("phase2", "cache_weight"), ("phase2", "ngram_weight"),
)  # fmt: skip

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
# The project's own model: chosen on conversations 980–999, which are neither trained on nor judged here. ``products``
# is of the fixed-point objective, so it says nothing here, whatever a profile asks for.
BEST: Mapping[str, Any] = {
    **REGULARISED, **CONTRASTIVE, "context_dim": 416, "num_layers": 2, "weight_std": 0.04, "time_scales": True,
    "max_iterations": 16,
    "prediction_weight_decay": 1.0, "readout": "linear", "adapter_rank": 64, "dropout": 0.4, "max_epochs": 6,
    "cache_weight": 0.14, "cache_scale": 8.0, "cache_horizon": 100.0, "ngram_weight": 0.15, "products": "float32",
}  # fmt: skip
# What it was before, for the gain.
_EARLIER_BEST: Mapping[str, Any] = {
    "context_dim": 500, "num_layers": 1, "time_scales": False, "prediction_weight_decay": 0.01, "readout": "sum",
    "adapter_rank": 0, "cache_weight": 0.15, "cache_scale": 10.0, "cache_horizon": None, "ngram_weight": 0.0,
}  # fmt: skip
_FIXED_POINT: Mapping[str, Any] = {
    "objective": "cvfp", "dist_reg_weight": 0.9, "context_noise": 0.1, "max_iterations": 60, "check_interval": 5,
}  # fmt: skip


def _variant(
    group: str, common: Mapping[str, Any], usual_reference: str | None, name: str, label: str,
    expected: str | None = None, reference: str | None = None, *, sentence: str | None = None, contexts: str = "own",
    **changes: Any,
) -> LeaderboardVariant:  # fmt: skip
    """Of a group whose variants have ``common`` changes and, where it is not said, one reference."""
    kind = "model" if contexts == "own" else "control"
    held_against = reference or usual_reference
    return LeaderboardVariant(
        name, label, {**common, **changes}, group, kind, sentence or label, held_against, expected, contexts
    )


_leader = partial(_variant, "leaderboard", {}, None)
_ablation = partial(_variant, "decisions", _SAMPLED, "trained")
_objective = partial(_variant, "objectives", REGULARISED, "regularised")
_part = partial(_variant, "parts", BEST, "best")

_LEADERS = [
    _leader(
        "notes", "the notes' configuration", context_source="previous_iteration", shuffle=False, selection_range=None,
        sentence="the notes' configuration: stale contexts, batches in stream order",
    ),
    _leader(
        "trained", "trained block", sentence="the ContextBlock trained by Phase 1, exact contexts, shuffled batches",
        **_SAMPLED,
    ),
    _leader(
        "untrained", "untrained block", sentence="the same with a ContextBlock that was never trained",
        max_iterations=0, **_SAMPLED,
    ),
    _leader(
        "last-token", "last token alone", sentence="no context: the TokenBlock reads zeros", contexts="none",
        max_iterations=0, **_SAMPLED,
    ),
    _leader(
        "shuffled", "contexts of other tokens", sentence="every token reads the context of another token",
        contexts="shuffled", **_SAMPLED,
    ),
    _leader(
        "best", "the better model", **BEST, sentence="contrastive contexts of two layers with learned gains, linear "
        "readout with adapter and unigram bias, fading continuous cache, counted n-grams",
    ),
]  # fmt: skip

# The decisions of the notes, one changed at a time.
_DECISIONS = [
    _ablation("whole-softmax", "trained with the whole softmax", "the same, in three times the time", **_WHOLE_SOFTMAX),
    _ablation("stale", "stale contexts", "a little worse", context_source="previous_iteration"),
    _ablation("w-0.5", "w = 0.5", "less rank, worse", dist_reg_weight=0.5),
    _ablation("w-1.0", "w = 1: no fixed-point term", "the same: the term's share is small", dist_reg_weight=1.0),
    _ablation("no-noise", "no context noise", "a little worse: noise makes contexts robust", context_noise=0.0),
    _ablation("odcm", "ODCM for MCDL", "more rank, better", diversity_algorithm="ODCM"),
    _ablation("pr", "participation ratio for MCDL", "more rank, better", diversity_algorithm="PR"),
    _ablation("sigreg", "SIGReg for MCDL", "more rank, better", diversity_algorithm="SIGReg"),
    _ablation("tokens-2", "T = 2 input tokens", "better: two tokens without recurrence", num_input_tokens=2),
    _ablation("tokens-3", "T = 3 input tokens", "better than two", num_input_tokens=3),
    _ablation("deep", "L = 3", "a little better: three times the parameters", **_DEEP),
    _ablation(
        "deep-first-layer", "L = 3, token at the first layer only", "worse (notes: 536 against 334)", "deep", **_DEEP,
        token_input="first-layer",
    ),
    _ablation(
        "deep-plan-a", "L = 3, plan A: the final context for all layers", "worse", "deep", **_DEEP,
        context_routing="final",
    ),
    _ablation(
        "untied", "an untied head, trained", "worse: 19 million parameters for 57,000 tokens", "whole-softmax",
        **_WHOLE_SOFTMAX, tie_weights=False,
    ),
    _ablation(
        "trained-embedding", "embedding and tied head trained", "worse (notes: 1189 against 334)", "whole-softmax",
        **_WHOLE_SOFTMAX, freeze_embedding=False,
    ),
    _ablation("width-200", "C = 200", "worse: fewer parameters", context_dim=200),
    _ablation("width-768", "C = 768", "worse (notes): forgets more slowly", context_dim=768),
    _ablation("width-1085", "C = 1,085", "worse still", context_dim=1085),
    _ablation("width-1536", "C = 1,536", "worst: it does not forget at first", context_dim=1536),
    _ablation("exponent-500", "initial exponent -0.15", "better", initial_exponent=-0.15),
    _ablation(
        "exponent-768", "C = 768, initial exponent -0.15", "no worse than C = 500", "exponent-500", context_dim=768,
        initial_exponent=-0.15,
    ),
    _ablation(
        "exponent-1536", "C = 1,536, initial exponent -0.15", "no worse than C = 500", "exponent-500", context_dim=1536,
        initial_exponent=-0.15,
    ),
]  # fmt: skip


# What Phase 1 minimises, all with the same regularised readout.
_OBJECTIVES = [
    _objective("regularised", "CVFP + MCDL, regularised readout", "half the perplexity", "trained"),
    _objective("regularised-untrained", "an untrained block, regularised readout", "a little worse", max_iterations=0),
    _objective(
        "regularised-last-token", "no context: the same readout of zeros",
        "worse: without regularisation it was better", contexts="none", max_iterations=0,
    ),
    _objective(
        "regularised-shuffled", "contexts of other tokens, regularised readout", "worst of them", contexts="shuffled"
    ),
    _objective(
        "regularised-exponent", "CVFP + MCDL from an initial exponent of -0.15",
        "less gained than with the notes' readout", initial_exponent=-0.15,
    ),
    _objective(
        "regularised-untrained-exponent", "an untrained block with an exponent of -0.15",
        "the same: it is the forgetting", "regularised-exponent", initial_exponent=-0.15, max_iterations=0,
    ),
    _objective("regularised-odcm", "CVFP + ODCM", "the same", diversity_algorithm="ODCM"),
    _objective("contrastive", "contrastive prediction", "a quarter lower", **CONTRASTIVE),
    _objective(
        "contrastive-odcm", "contrastive prediction + ODCM", "more rank, no better", "contrastive",
        **{**CONTRASTIVE, "diversity_algorithm": "ODCM", "dist_reg_weight": 0.1},
    ),
    _objective(
        "regression-sigreg", "regression + SIGReg, as LeJEPA", "between CVFP and contrastive",
        **{**CONTRASTIVE, "objective": "regression", "diversity_algorithm": "SIGReg", "dist_reg_weight": 0.1},
    ),
]  # fmt: skip


# The better model, one part exchanged at a time: what pays its way, and what did not.
_PARTS = [
    _part(
        "best-earlier", "the better model as it was before", "a sixth worse",
        sentence="C = 500, TokenBlock beside the linear map, no gains, no adapter, little weight decay, a cache that "
        "does not fade, no n-grams",
        **_EARLIER_BEST,
    ),
    _part("best-no-gains", "without learned gains (time-scales)", "2 % worse", time_scales=False),
    _part("best-less-decay", "with a weight decay of 0.01 in Phase 1", "3 % worse", prediction_weight_decay=0.01),
    _part("best-no-adapter", "without the adapter of rank 64", "2 % worse", adapter_rank=0),
    _part("best-no-cache", "without the continuous cache", "a tenth worse", cache_weight=0.0),
    _part("best-no-fading", "with a cache that does not fade", "5 % worse", cache_horizon=None),
    _part("best-no-ngrams", "without counted n-grams", "5 % worse", ngram_weight=0.0),
    _part("best-alone", "without cache and counted n-grams", "a sixth worse", cache_weight=0.0, ngram_weight=0.0),
    _part("best-no-bias", "without the unigram bias", "a tenth worse", unigram_bias=False),
    _part("best-no-dropout", "without dropout in Phase 2", "the same", dropout=0.0),
    _part("best-untrained", "on an untrained block", "much worse", max_iterations=0),
    _part("best-fixed-point", "on CVFP + MCDL contexts", "much worse", **_FIXED_POINT),
    _part("best-sum", "with a TokenBlock beside the linear map", "the same", readout="sum"),
    _part("best-token-block", "with the TokenBlock", "a third worse: it learns by heart", readout="token-block"),
    _part("best-gate", "with a gated TokenBlock", "a fifth worse", readout="token-block", token_gate=True),
    _part("best-logit-scale", "with a learned scale of the logits", "the same", logit_scale=1.0),
    _part("best-one-layer", "L = 1, C = 576: as many parameters", "2 % worse", num_layers=1, context_dim=576),
    _part("best-three-layers", "L = 3, C = 336: as many parameters", "the same", num_layers=3, context_dim=336),
    _part(
        "best-wide-start", "with the notes' initial weights (std 0.1) and 24 passes", "a little worse, in more time",
        weight_std=0.1, max_iterations=24,
    ),
    # With gains above 1 no scale of the recurrent weights reaches that exponent.
    _part(
        "best-exponent", "without gains, from an initial exponent of -0.15", "a little better than without either",
        "best-no-gains", time_scales=False, initial_exponent=-0.15,
    ),
    _part("best-two-tokens", "T = 2 input tokens", "a little worse", num_input_tokens=2),
]  # fmt: skip

VARIANTS: dict[str, LeaderboardVariant] = {one.name: one for one in [*_LEADERS, *_OBJECTIVES, *_PARTS, *_DECISIONS]}


def known_variants() -> dict[str, LeaderboardVariant]:
    """Those of this file and every registered baseline, by name."""
    groups = {"network": "leaderboard", "counts": "leaderboard", "pretrained": "ceilings"}
    baselines = [
        LeaderboardVariant(name, one.label, {}, groups[one.kind], one.kind, one.sentence)
        for name, one in BASELINES.items()
    ]
    return {**VARIANTS, **{one.name: one for one in baselines}}


def variant(name: str) -> LeaderboardVariant:
    """Raises ConfigError for an unknown name."""
    known = known_variants()
    if name not in known:
        raise ConfigError(unknown_name_message("variant", name, known))
    return known[name]
