"""What a language run's `run.json` holds: every key with kind, unit and definition; `docs/records.md` is made of it.

A record is checked when it is written and when it is read: keys, kinds, and figures that must agree with each other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.experiment.agreement import contradictions
from newllm_core.experiment.folder_names import SECTIONS
from newllm_core.runs.key_kinds import COMPUTED_KEYS, FORMAT, Key, check_record, config_keys

_NOT_TRAINED = "nothing was trained"
_FEW_TOKENS = "not measurable on so few tokens"
_NOT_CHECKED = "no check in this iteration"
_NO_PREDICTION = f"objective cvfp, or {_NOT_CHECKED}"


def _rank_keys(path: str, of: str, missing: str = "") -> dict[str, Key]:
    return {
        path: Key("object", f"effective rank of {of}", missing=missing),
        f"{path}.value": Key("positive", "exp(H(p)), p = σ / Σσ, uncentred (Roy & Vetterli 2007)", "dimensions"),
        f"{path}.share": Key("share", "value / context_dim"),
        f"{path}.context_dim": Key("count", "C", "dimensions"),
        f"{path}.tokens": Key("count", "contexts it was measured on", "tokens"),
    }


def _epoch_keys(path: str, moment: str) -> dict[str, Key]:
    keys = {f"{path}.epoch": Key("count", "number of the epoch, from 1")}
    for part, when in (("train", "mean over the epoch, while the weights moved"), ("validation", moment)):
        keys |= {
            f"{path}.{part}_loss": Key("number", f"mean cross-entropy, {when}", "nats per token"),
            f"{path}.{part}_perplexity": Key("positive", "exp of the loss"),
            f"{path}.{part}_accuracy": Key("share", "share of targets that were the most probable token"),
        }
    return keys


def _stream_keys(part: str, *, optional: bool = False) -> dict[str, Key]:
    path = f"provenance.{part}"
    whole = {path: Key("object", f"the {part} stream, where there is one", optional=True)} if optional else {}
    return {
        **whole,
        f"{path}.corpus": Key("text", "corpus that the conversations are from"),
        f"{path}.source": Key("text", "SHA-256 of the corpus file, or revision of a hosted one"),
        f"{path}.tokenizer_sha256": Key("hash", "of the tokenizer's files"),
        f"{path}.first_sample": Key("count", "corpus index of the first conversation"),
        f"{path}.last_sample": Key("count", "corpus index of the last conversation"),
        f"{path}.num_samples": Key("count", "conversations", "conversations"),
        f"{path}.num_tokens": Key("count", "tokens of the stream", "tokens"),
        f"{path}.tokens_sha256": Key("hash", "of the token ids as little-endian int64"),
    }


TOKEN_KEYS = {
    "tokens.train": Key("count", "training stream, N", "tokens"),
    "tokens.validation": Key("count", "validation stream, M", "tokens"),
    "tokens.selection": Key("count", "selection stream, where there is one", "tokens", optional=True),
    "tokens.distinct_train": Key("count", "different token ids in the training stream", "token ids"),
    "tokens.distinct_validation": Key("count", "different token ids in the validation stream", "token ids"),
    "tokens.unseen_validation_share": Key("share", "validation tokens whose id never occurs in training"),
}

PROVENANCE_KEYS = {
    **_stream_keys("train"),
    **_stream_keys("validation"),
    **_stream_keys("selection", optional=True),
    "provenance.embeddings.name": Key("text", "source of the embeddings"),
    "provenance.embeddings.source_sha256": Key("text", "of the file read", missing="drawn from the seed, no file"),
    "provenance.embeddings.vocab_size": Key("count", "V", "token ids"),
    "provenance.embeddings.embed_dim": Key("count", "E", "dimensions"),
    "provenance.embeddings.matrix_sha256": Key("hash", "of the matrix `[V, E]` in float32"),
}

CHOSEN_KEYS = {
    "chosen_on": Key(
        "text", "text that chose iteration and epoch: selection, or validation, which is judged; of counts, which "
        "choose nothing on either: training",
    ),
}  # fmt: skip

RUN_KEYS: dict[str, Key] = {
    "format": Key("count", f"number of this description: {FORMAT}"),
    "corpus": Key("text", "training text, by name (`config.data.corpus`)"),
    "embeddings": Key("text", "frozen token embeddings, by name (`config.data.embeddings`)"),
    "seed": Key("count", "of everything drawn (`config.run.seed`)"),
    **CHOSEN_KEYS,
    **TOKEN_KEYS,
    "parameters.embedding": Key("count", "embedding matrix, V · E", "parameters"),
    "parameters.embed_norm": Key("count", "LayerNorm of the embeddings, never trained", "parameters"),
    "parameters.context_block": Key("count", "ContextBlock", "parameters"),
    "parameters.token_block": Key("count", "TokenBlock and what stands between it and the head", "parameters"),
    "parameters.head": Key("count", "head of its own; 0 when tied to the embedding", "parameters"),
    "parameters.total": Key("count", "all of them", "parameters"),
    "parameters.trained_in_phase1": Key("count", "that Phase 1 trains", "parameters"),
    "parameters.trained_in_phase2": Key("count", "that Phase 2 trains", "parameters"),
    **PROVENANCE_KEYS,
    **COMPUTED_KEYS,
    "config.user_loss": Key("object", "only where a user registered the diversity loss", optional=True),
    "config.user_loss.source_sha256": Key("hash", "of that loss's source"),
    "read.*": Key("text", "SHA-256 of what was read, or its name where it was streamed: text, vocabulary, embeddings"),
    "paths.conversations_file": Key("text", "where the user's file lay", missing="none was read"),
    "phase1.iterations": Key("count", "iterations run", "iterations"),
    "phase1.max_iterations": Key("count", "iterations allowed", "iterations"),
    "phase1.best_iteration": Key("count", "the one whose weights were kept; 0 when nothing was trained"),
    "phase1.stopped_early": Key("truth", "whether the checks stopped improving before max_iterations"),
    "phase1.effective_rank.train": Key("positive", "of the kept weights' training contexts", "dimensions"),
    "phase1.effective_rank.validation": Key("positive", "of their validation contexts", "dimensions"),
    "phase1.effective_rank.validation_untrained": Key("positive", "of those before training", "dimensions"),
    "phase1.effective_rank.context_dim": Key("count", "C, the most that it can be", "dimensions"),
    "phase1.effective_rank.train_tokens": Key("count", "training contexts measured", "tokens"),
    "phase1.effective_rank.validation_tokens": Key("count", "validation contexts measured", "tokens"),
    "phase1.effective_rank.train_ceiling": Key("positive", "that of white noise of the same shape", "dimensions"),
    "phase1.effective_rank.validation_ceiling": Key("positive", "that of white noise of the same shape", "dimensions"),
    "phase1.convergence.train": Key("share", "tokens converged in the best iteration", missing=_NOT_TRAINED),
    "phase1.convergence.train_converged": Key("count", "their number", "tokens", missing=_NOT_TRAINED),
    "phase1.convergence.train_total": Key("count", "training tokens", "tokens"),
    "phase1.convergence.validation": Key("share", "tokens converged between the last two repeated passes"),
    "phase1.convergence.validation_converged": Key("count", "their number", "tokens"),
    "phase1.convergence.validation_total": Key("count", "validation tokens", "tokens"),
    "phase1.cvfp_loss": Key("number", "fixed-point loss of the best iteration", "mean square", _NOT_TRAINED),
    "phase1.checks.rank.verdict": Key("text", "PASS, or FAIL where share_of_ceiling < failure_below"),
    "phase1.checks.rank.share": Key("share", "validation effective rank / C"),
    "phase1.checks.rank.share_of_ceiling": Key("share", "the same rank / what so few tokens can reach"),
    "phase1.checks.rank.failure_below": Key("share", "limit of the check"),
    "phase1.checks.identity.verdict": Key("text", "PASS or FAIL: contexts are not zero, the token, or all the same"),
    "phase1.checks.identity.distance_from_zero": Key("number", "mean root mean square of a context"),
    "phase1.checks.identity.cosine_to_token": Key("number", "mean cosine to the token embedding", missing="C ≠ E"),
    "phase1.checks.identity.deviation_from_mean": Key("number", "mean root mean square of context - mean context"),
    "phase1.checks.identity.tokens": Key("count", "validation contexts compared", "tokens"),
    "phase1.checks.fixed_point.verdict": Key("text", "PASS, UNDECIDED or FAIL: whether repeated passes settle"),
    "phase1.checks.fixed_point.last_difference": Key("number", "of the repeated passes", "mean square"),
    "phase1.checks.fixed_point.slope": Key("number", "of the repeated passes", "mean square per pass"),
    "phase1.repeated_passes.differences[]": Key("number", "between successive validation passes", "mean square"),
    "phase1.repeated_passes.convergence.rate": Key("share", "converged / total"),
    "phase1.repeated_passes.convergence.converged": Key("count", "converged between the last two", "tokens"),
    "phase1.repeated_passes.convergence.total": Key("count", "validation tokens", "tokens"),
    "phase1.repeated_passes.slope": Key("number", "linear trend of the differences", "mean square per pass"),
    "phase1.repeated_passes.spread": Key("number", "standard deviation of the differences", "mean square"),
    "phase1.repeated_passes.verdict": Key("text", "CONVERGING, CONVERGED, DIVERGING or UNSTABLE"),
    "phase1.stale_against_exact": Key("object", "the notes' cache against exact contexts", missing=_NOT_TRAINED),
    "phase1.stale_against_exact.mean_cosine": Key("number", "mean cosine of stale to exact contexts"),
    "phase1.stale_against_exact.min_cosine": Key("number", "smallest cosine"),
    "phase1.stale_against_exact.mse": Key("number", "mean squared difference", "mean square"),
    "phase1.stale_against_exact.num_tokens": Key("count", "training contexts compared", "tokens"),
    "phase1.contraction_rate": Key("number", "largest Lyapunov exponent", "nats per token", _FEW_TOKENS),
    "phase1.contraction_tokens": Key("count", "validation tokens that the rate was measured on", "tokens", _FEW_TOKENS),
    "phase1.forgetting": Key("object", "how trajectories from unlike starts approach", missing=_FEW_TOKENS),
    "phase1.forgetting.factor": Key("positive", "fall of the distance that is asked for"),
    "phase1.forgetting.distances[]": Key("number", "largest difference of a component after each token"),
    "phase1.forgetting.horizon": Key("count", "tokens until the distance fell by the factor", "tokens", "it did not"),
    "phase1.forgetting.tokens": Key("count", "validation tokens it was measured on, in streams side by side", "tokens"),
    "phase1.spectrum.validation[]": Key("number", "singular values of the validation contexts, falling"),
    "phase1.spectrum.validation_before[]": Key("number", "the same before training"),
    "phase1.spectrum.measures[]": Key("object", "measures of the validation contexts", missing="made before they were"),
    "phase1.spectrum.measures[].name": Key("text", "which measure"),
    "phase1.spectrum.measures[].centred": Key("truth", "whether the mean context was subtracted"),
    "phase1.spectrum.measures[].value": Key("number", "the measure", "see unit", "undefined for these contexts"),
    "phase1.spectrum.measures[].interval[]": Key("number", "its 95 % interval", "see unit", "fewer than 100 tokens"),
    "phase1.spectrum.measures[].unit": Key("text", "dimensions, or exponent"),
    "phase1.spectrum.measures[].tokens": Key("count", "contexts measured", "tokens"),
    "phase1.spectrum.measures[].source": Key("text", "where the definition comes from"),
    "phase1.history[].iteration": Key("count", "number of the iteration, from 1"),
    "phase1.history[].cvfp": Key("number", "change of the contexts since the iteration before", "mean square"),
    "phase1.history[].diversity": Key("number", "diversity loss (`config.phase1.diversity_algorithm`)"),
    "phase1.history[].prediction": Key("number", "loss of the predictive objective", "its own", "objective cvfp"),
    "phase1.history[].total": Key("number", "what was minimised"),
    "phase1.history[].gradient_norm": Key("number", "before clipping"),
    "phase1.history[].converged": Key("count", "training tokens that moved by less than the threshold", "tokens"),
    **_rank_keys("phase1.history[].train_rank", "the training contexts"),
    **_rank_keys("phase1.history[].validation_rank", "contexts of the text that chooses", _NOT_CHECKED),
    "phase1.history[].validation_prediction": Key(
        "number", "of the text that chooses", "its own", _NO_PREDICTION
    ),
    "phase1.seconds": Key("positive", "of Phase 1, measures included, over all sessions", "seconds"),
    **_epoch_keys("phase2.epochs[]", "after the epoch, of the text that chooses (`chosen_on`)"),
    **_epoch_keys("phase2.best", "of the validation text with the kept weights, exact products"),
    "phase2.best.validation_bits_per_byte": Key("positive", "cross-entropy of the predicted text", "bits per byte"),
    "phase2.stopped_early": Key("truth", "whether the text that chooses stopped improving before max_epochs"),
    "phase2.head_method": Key("text", "how the cross-entropy was computed"),
    "phase2.device_batch_size": Key("count", "computed at once at the end", "tokens"),
    "phase2.validation_conversations.nats[]": Key("number", "summed cross-entropy of each conversation", "nats"),
    "phase2.validation_conversations.tokens[]": Key("count", "targets in each conversation", "tokens"),
    "phase2.generated[].prompt": Key("text", "start of a sample of text"),
    "phase2.generated[].text": Key("text", "what the model wrote after it, with a fixed seed"),
    "phase2.seconds": Key("positive", "of Phase 2, over all sessions", "seconds"),
    "start": Key("text", "of the session that finished the run, ISO 8601"),
    "seconds": Key("positive", "of that session", "seconds"),
}  # fmt: skip


def check_run_record(record: Mapping[str, Any], path: Path) -> None:
    """Raises RunError as ``key_kinds.check_record``."""
    check_record(record, path, "a run's", {**RUN_KEYS, **config_keys(Settings, SECTIONS)}, contradictions)
