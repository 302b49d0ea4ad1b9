"""What a row of the leaderboard holds: every key with kind, unit and definition; `docs/records.md` is made of it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.experiment.record_keys import (
    ARITHMETIC_KEYS,
    FORMAT,
    PROVENANCE_KEYS,
    RUN_SECTIONS,
    TOKEN_KEYS,
    refuse_other_format,
)
from newllm_core.metrics.forgetting import FORGETTING_TOKENS
from newllm_core.metrics.prediction import bits_per_byte
from newllm_core.runs.files import RunError
from newllm_core.runs.key_kinds import Key, config_keys, wrong_keys

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
    **TOKEN_KEYS,
    **PROVENANCE_KEYS,
    "device": Key("text", "device that computed"),
    **ARITHMETIC_KEYS,
    "versions.*": Key("text", "of Python and of a library"),
    "commit": Key("text", "of the checkout, `+changes` with files that differ", missing="outside a git checkout"),
    "paths.conversations_file": Key("text", "where the user's file lay", missing="none was read"),
    "validation_perplexity": Key("positive", "exp of the mean cross-entropy of the validation targets"),
    "bits_per_byte": Key("positive", "cross-entropy of the predicted text", "bits per byte"),
    "validation_bytes": Key("count", "of that text", "bytes"),
    "validation_conversations.nats[]": Key("number", "summed cross-entropy of each conversation", "nats"),
    "validation_conversations.tokens[]": Key("count", "targets in each conversation", "tokens"),
    "trainable_parameters": Key("count", "that were trained", "parameters"),
    **_details("best_epoch", Key("count", "whose weights were kept")),
    **_details("epochs[]", Key("any", "validation perplexity of each epoch; of a network, its figures")),
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
    **_details("discount", Key("positive", "of Kneser-Ney smoothing")),
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
    """Raises RunError that names every wrong key of the row at ``path``, and every figure that contradicts others."""
    refuse_other_format(record, path)
    lines = wrong_keys(record, {**ROW_KEYS, **config_keys(Settings, RUN_SECTIONS)}) or list(_contradictions(record))
    if lines:
        raise RunError("\n  ".join([f"{path}: not a row's record:", *lines]))


def _contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    sums = record["validation_conversations"]
    nats, targets = sum(sums["nats"]), sum(sums["tokens"])
    expected = {
        "tokens.validation": (record["tokens"]["validation"], targets + 1),
        "validation_perplexity": (record["validation_perplexity"], math.exp(min(nats / max(targets, 1), 700.0))),
        "bits_per_byte": (record["bits_per_byte"], bits_per_byte(nats, max(record["validation_bytes"], 1))),
        "tokens.train": (record["tokens"]["train"], record["provenance"]["train"]["num_tokens"]),
    }
    for name, (given, sums_give) in expected.items():
        if not math.isclose(given, sums_give, rel_tol=1e-9):
            yield f"{name} is {given!r}, but the figures beside it give {sums_give!r}"


def migrated_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of format 1 in today's: exponent and horizon with the tokens that they were measured on."""
    if "format" in record:
        return dict(record)
    details = dict(record["details"])
    if "contraction_rate" in details:
        details["forgetting_tokens"] = min(FORGETTING_TOKENS, record["tokens"]["validation"])
    paths = {"conversations_file": record["config"]["data"]["conversations_file"]}
    return {"format": FORMAT, **record, "arithmetic": None, "paths": paths, "details": details}
