"""Records of earlier versions in today's format; what was not recorded then stays missing.

Up to format 2 iteration and epoch were chosen on the validation text, and no record said so. Format 1 had no number,
its checks stood in a list, exponent and horizon did not say their tokens, and nothing said which processor computed.
"""

from collections.abc import Mapping
from typing import Any

from newllm_core.experiment.checks import rank_check
from newllm_core.metrics.forgetting import FORGETTING_TOKENS
from newllm_core.metrics.rank import StreamRank, noise_effective_rank
from newllm_core.runs.key_kinds import FORMAT
from newllm_core.studies.rows import chosen_on

Record = dict[str, Any]

# That format 1 measured on, where the validation text was as long.
_EXPONENT_TOKENS, _HORIZON_TOKENS, _IDENTITY_TOKENS = 4096, 8192, 8192
_CHECKS = {"effective rank": "rank", "identity mapping": "identity", "CVFP convergence": "fixed_point"}


def migrated_run(record: Mapping[str, Any]) -> Record:
    """A language run's record in today's format; one that has it already comes back equal."""
    if "format" in record:
        return {"chosen_on": "validation", **record, "format": FORMAT}
    phase1 = _phase1(record["phase1"], record["tokens"]["validation"])
    config, paths = _without_paths(record["config"])
    return {
        "format": FORMAT, **record, "chosen_on": "validation", "arithmetic": None, "config": config, "paths": paths,
        "read": _read(record["provenance"]), "phase1": phase1,
    }  # fmt: skip


def _without_paths(config: Mapping[str, Any]) -> tuple[Record, Record]:
    """A path is no part of what a run is; what it led to is, under "read"."""
    paths = {"conversations_file": config["data"]["conversations_file"]}
    return {**config, "data": {**config["data"], **dict.fromkeys(paths)}}, paths


def _read(provenance: Mapping[str, Any]) -> Record:
    train, embeddings = provenance["train"], provenance["embeddings"]
    read = {"text": train["source"], "vocabulary": train["tokenizer_sha256"]}
    is_file = embeddings["name"] in ("whisper-tiny.en", "gpt2")
    return {**read, "embeddings": embeddings["source_sha256"]} if is_file else read


def _phase1(phase1: Mapping[str, Any], num_validation: int) -> Record:
    measured = num_validation - 1
    ranks = dict(phase1["effective_rank"])
    for part in ("train", "validation"):
        ranks[f"{part}_ceiling"] = noise_effective_rank(ranks[f"{part}_tokens"], ranks["context_dim"])
    return {
        **phase1,
        "effective_rank": ranks,
        "checks": _checks(phase1["checks"], ranks, min(_IDENTITY_TOKENS, measured)),
        "contraction_tokens": min(_EXPONENT_TOKENS, measured),
        "forgetting": {**phase1["forgetting"], "tokens": min(_HORIZON_TOKENS, measured)},
        "spectrum": {"measures": None, **phase1["spectrum"]},
    }


def _checks(listed: list[Mapping[str, Any]], ranks: Mapping[str, Any], identity_tokens: int) -> Record:
    checks = {_CHECKS[check["name"]]: {"verdict": check["verdict"], **check["figures"]} for check in listed}
    checks["identity"]["tokens"] = identity_tokens
    rank = rank_check(StreamRank(ranks["validation"], ranks["context_dim"], ranks["validation_tokens"]))
    return {**checks, "rank": {"verdict": rank.verdict, **rank.figures}}


def migrated_row(record: Mapping[str, Any]) -> Record:
    """A row of format 1 in today's: exponent and horizon with the tokens that they were measured on."""
    if "format" in record:
        return {"chosen_on": chosen_on(record["variant"]["kind"], "validation"), **record, "format": FORMAT}
    details = dict(record["details"])
    if "contraction_rate" in details:
        details["forgetting_tokens"] = min(FORGETTING_TOKENS, record["tokens"]["validation"])
    paths = {"conversations_file": record["config"]["data"]["conversations_file"]}
    chosen = chosen_on(record["variant"]["kind"], "validation")
    return {"format": FORMAT, **record, "chosen_on": chosen, "arithmetic": None, "paths": paths, "details": details}


def migrated_vision(record: Mapping[str, Any]) -> Record:
    """A record of format 1 in today's format; what was read follows from its source, where there was only one file."""
    if "format" in record:
        return {**record, "format": FORMAT}
    sources = record["data"]["sources"]
    found = {"format": FORMAT, **record, "arithmetic": None}
    if "read" not in record and "generator" in sources:
        found["read"] = {}
    elif "read" not in record and len(sources) == 1:
        found["read"] = {"images": next(iter(sources.values()))}
    return found
