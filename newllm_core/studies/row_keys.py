"""What a row of the leaderboard holds: every key with kind, unit and definition; `docs/records.md` is made of it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.experiment.folder_names import SECTIONS
from newllm_core.experiment.record_keys import CHOSEN_KEYS, PROVENANCE_KEYS, TOKEN_KEYS
from newllm_core.metrics.prediction import bits_per_byte
from newllm_core.runs.key_kinds import COMPUTED_KEYS, FORMAT, Key, check_record, config_keys, unequal

_BASELINE = "a baseline has none"


def _details(path: str, key: Key) -> dict[str, Key]:
    return {f"details.{path}": Key(key.kind, key.meaning, key.unit, key.missing, optional=True)}


ROW_KEYS: dict[str, Key] = {
    "variant.name": Key("text", "what the variant is called"),
    "variant.label": Key("text", "the same in words, for pictures"),
    "variant.kind": Key("text", "what it is: model, control, network, pretrained …"),
    "variant.group": Key("text", "variants of one group stand together"),
    "variant.sentence": Key("text", "the same in a sentence"),
    "variant.reference": Key("text", "variant that its figures are held against", missing="none"),
    "variant.expected": Key("text", "what was thought of that before it was run", missing="nothing"),
    "start": Key("text", "of the session that finished the row, ISO 8601"),
    "format": Key("count", f"number of this description: {FORMAT}"),
    "corpus": Key("text", "training text, by name"),
    "embeddings": Key("text", "frozen token embeddings, by name"),
    "seed": Key("count", "of everything drawn", missing="nothing is drawn"),
    **CHOSEN_KEYS,
    **TOKEN_KEYS,
    **PROVENANCE_KEYS,
    **COMPUTED_KEYS,
    "paths.conversations_file": Key("text", "where the user's file lay", missing="none was read"),
    "validation_perplexity": Key("positive", "exp of the mean cross-entropy of the validation targets"),
    "bits_per_byte": Key("positive", "cross-entropy of the predicted text", "bits per byte"),
    "validation_bytes": Key("count", "of that text", "bytes"),
    "validation_conversations.nats[]": Key("number", "summed cross-entropy of each conversation", "nats"),
    "validation_conversations.tokens[]": Key("count", "targets in each conversation", "tokens"),
    "trainable_parameters": Key("count", "that were trained", "parameters"),
    **_details("best_epoch", Key("count", "whose weights were kept")),
    **_details("epochs[]", Key("any", "perplexity of each epoch on the text that chooses; of a network, its figures")),
    **_details("validation_rank", Key("object", f"effective rank of the validation contexts; {_BASELINE}")),
    "details.validation_rank.value": Key("positive", "exp(H(p)), p = σ / Σσ, uncentred", "dimensions"),
    "details.validation_rank.share": Key("share", "value / context_dim"),
    "details.validation_rank.context_dim": Key("count", "C", "dimensions"),
    "details.validation_rank.tokens": Key("count", "contexts it was measured on", "tokens"),
    **_details("contraction_rate", Key("number", "largest Lyapunov exponent", "nats per token", "too few tokens")),
    **_details("forgetting_horizon", Key("count", "tokens until a difference fell by 1e-6", "tokens", "it did not")),
    **_details("forgetting_tokens", Key("count", "validation tokens that both were measured on", "tokens")),
    **_details("iterations_kept", Key("count", "of Phase 1; 0 when nothing was trained", "iterations")),
    **_details("phase1_seconds", Key("number", "of Phase 1's training", "seconds", "nothing was trained")),
    **_details("trainable_parameters", Key("count", "of a network", "parameters")),
    **_details("seconds", Key("number", "of a network's training", "seconds")),
    **_details("cpu_seconds", Key("number", "of all cores in it", "seconds")),
    **_details("added_count", Key("positive", "of the unigram's additive smoothing")),
    **_details("counted_ngrams", Key("count", "different ones of the training text, of all lengths", "n-grams")),
    "seconds": Key("positive", "of the session that finished the row", "seconds"),
    "cpu_seconds": Key("positive", "of all cores, over all sessions, both phases", "seconds"),
    **{f"config.{name}": Key("object", _BASELINE, optional=True) for name in ("model", "phase1", "phase2", "run")},
    "config.network": Key("object", "of a network (`newllm_core/baselines/config.py`)", optional=True),
    "config.network.*": Key("any", "its fields"),
    "config.user_loss": Key("object", "only where a user registered the diversity loss", optional=True),
    "config.user_loss.source_sha256": Key("hash", "of that loss's source"),
    "read.*": Key("text", "SHA-256 of what was read, or its name where it was streamed"),
}


def check_row_record(record: Mapping[str, Any], path: Path) -> None:
    """Raises RunError as ``key_kinds.check_record``."""
    check_record(record, path, "a row's", {**ROW_KEYS, **config_keys(Settings, SECTIONS)}, _contradictions)


def _contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    sums, beside = record["validation_conversations"], "the sum of validation_conversations"
    nats, targets = sum(sums["nats"]), sum(sums["tokens"])
    yield from unequal("tokens.validation", record["tokens"]["validation"], beside, targets + 1)
    perplexity = math.exp(min(nats / max(targets, 1), 700.0))
    yield from unequal("validation_perplexity", record["validation_perplexity"], beside, perplexity)
    bits = bits_per_byte(nats, max(record["validation_bytes"], 1))
    yield from unequal("bits_per_byte", record["bits_per_byte"], beside, bits)
    yield from unequal(
        "tokens.train", record["tokens"]["train"], "provenance", record["provenance"]["train"]["num_tokens"]
    )
