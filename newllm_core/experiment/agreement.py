"""Figures of a run's record that must agree with each other: a digit that was altered seldom fits the others."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from newllm_core.runs.key_kinds import SAME_SUM, unequal

Record = Mapping[str, Any]


def contradictions(record: Record) -> list[str]:
    """A sentence for every pair of figures that cannot both be right; the keys must have been checked before."""
    parts = (_whole, _phase1, _history, _ranks, _epochs, _best, _conversations)
    return [line for part in parts for line in part(record)]


def _share(path: str, rate: float, converged: int, total: int) -> Iterator[str]:
    yield from unequal(path, rate, f"{converged}/{total}", converged / total if total else math.nan)


def _whole(record: Record) -> Iterator[str]:
    config, tokens, provenance, parameters = (record[name] for name in ("config", "tokens", "provenance", "parameters"))
    for name, section in (("corpus", "data"), ("embeddings", "data"), ("seed", "run")):
        yield from unequal(name, record[name], f"config.{section}.{name}", config[section][name])
    for part in ("train", "validation"):
        yield from unequal(f"tokens.{part}", tokens[part], "provenance", provenance[part]["num_tokens"])
    summed = sum(parameters[name] for name in ("embedding", "embed_norm", "context_block", "token_block", "head"))
    yield from unequal("parameters.total", parameters["total"], "the sum of the parts", summed)


def _phase1(record: Record) -> Iterator[str]:
    phase1, config, tokens = record["phase1"], record["config"]["phase1"], record["tokens"]
    iterations, best = phase1["iterations"], phase1["best_iteration"]
    yield from unequal("phase1.iterations", iterations, "phase1.history", len(phase1["history"]))
    yield from unequal("phase1.max_iterations", phase1["max_iterations"], "config", config["max_iterations"])
    early = iterations < phase1["max_iterations"]
    yield from unequal("phase1.stopped_early", phase1["stopped_early"], "phase1.iterations", early)
    if best > iterations or (best == 0) != (iterations == 0):
        yield f"phase1.best_iteration is {best}, but {iterations} iterations were run"
        return
    kept = phase1["history"][best - 1] if best else None
    convergence, passes = phase1["convergence"], phase1["repeated_passes"]
    yield from unequal("phase1.cvfp_loss", phase1["cvfp_loss"], f"phase1.history[{best - 1}]", kept and kept["cvfp"])
    given = convergence["train_converged"]
    yield from unequal("phase1.convergence.train_converged", given, "phase1.history", kept and kept["converged"])
    for part in ("train", "validation"):
        total = convergence[f"{part}_total"]
        yield from unequal(f"phase1.convergence.{part}_total", total, f"tokens.{part}", tokens[part])
        if convergence[part] is not None:
            converged = convergence[f"{part}_converged"]
            yield from _share(f"phase1.convergence.{part}", convergence[part], converged, total)
    rate, converged, total = (passes["convergence"][name] for name in ("rate", "converged", "total"))
    yield from _share("phase1.repeated_passes.convergence.rate", rate, converged, total)


def _history(record: Record) -> Iterator[str]:
    for number, iteration in enumerate(record["phase1"]["history"], start=1):
        path = f"phase1.history[{number - 1}]"
        yield from unequal(f"{path}.iteration", iteration["iteration"], "its place", number)
        for name in ("train_rank", "validation_rank"):
            rank = iteration[name]
            if rank is not None:
                share = rank["value"] / rank["context_dim"]
                yield from unequal(f"{path}.{name}.share", rank["share"], "value / context_dim", share)


def _ranks(record: Record) -> Iterator[str]:
    ranks = record["phase1"]["effective_rank"]
    width = record["config"]["model"]["context_dim"]
    yield from unequal("phase1.effective_rank.context_dim", ranks["context_dim"], "config", width)
    for name in ("train", "validation", "validation_untrained"):
        highest = min(width, ranks[f"{name.removesuffix('_untrained')}_tokens"])
        if not 1 - SAME_SUM <= ranks[name] <= highest * (1 + SAME_SUM):
            yield f"phase1.effective_rank.{name} is {ranks[name]!r}, but lies in 1 … {highest}"
    share = record["phase1"]["checks"]["rank"]["share"]
    yield from unequal("phase1.checks.rank.share", share, "phase1.effective_rank", ranks["validation"] / width)


def _epochs(record: Record) -> Iterator[str]:
    phase2 = record["phase2"]
    for number, epoch in enumerate(phase2["epochs"], start=1):
        yield from unequal(f"phase2.epochs[{number - 1}].epoch", epoch["epoch"], "its place", number)
        yield from _perplexities(f"phase2.epochs[{number - 1}]", epoch)
    early = len(phase2["epochs"]) < record["config"]["phase2"]["max_epochs"]
    yield from unequal("phase2.stopped_early", phase2["stopped_early"], "phase2.epochs", early)


def _perplexities(path: str, epoch: Record) -> Iterator[str]:
    for part in ("train", "validation"):
        loss, given = epoch[f"{part}_loss"], epoch[f"{part}_perplexity"]
        yield from unequal(f"{path}.{part}_perplexity", given, f"exp({part}_loss)", math.exp(min(loss, 700.0)))


def _best(record: Record) -> Iterator[str]:
    epochs, best = record["phase2"]["epochs"], record["phase2"]["best"]
    lowest = min(range(len(epochs)), key=lambda number: epochs[number]["validation_loss"], default=-1) + 1
    yield from unequal("phase2.best.epoch", best["epoch"], "the lowest validation_loss", lowest)
    if best["epoch"] == lowest:
        for name in ("train_loss", "train_accuracy"):
            yield from unequal(f"phase2.best.{name}", best[name], "phase2.epochs", epochs[lowest - 1][name])
    yield from _perplexities("phase2.best", best)


def _conversations(record: Record) -> Iterator[str]:
    sums = record["phase2"]["validation_conversations"]
    targets = sum(sums["tokens"])
    path = "phase2.validation_conversations"
    yield from unequal(f"{path}.tokens", targets, "tokens.validation - 1", record["tokens"]["validation"] - 1)
    if targets:
        loss = record["phase2"]["best"]["validation_loss"]
        yield from unequal("phase2.best.validation_loss", loss, f"{path}.nats", sum(sums["nats"]) / targets)
