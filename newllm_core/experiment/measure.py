"""The figures of a run as JSON values: what Phase 1 and Phase 2 add to its record (docs/method.md, section 6)."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.data import token_byte_lengths
from newllm_core.experiment.checks import (
    RepeatedPasses,
    compare_stale,
    fixed_point_check,
    identity_check,
    rank_check,
    repeated_passes,
)
from newllm_core.experiment.prepare import Prepared
from newllm_core.metrics.convergence import Convergence
from newllm_core.metrics.forgetting import (
    FORGETTING_FACTOR,
    FORGETTING_TOKENS,
    MIN_FORGETTING_TOKENS,
    contraction_rate,
    forgetting_horizon,
)
from newllm_core.metrics.prediction import bits_per_byte
from newllm_core.metrics.rank import singular_values, stream_rank
from newllm_core.metrics.spectrum import spectrum_figures
from newllm_core.model import ContextBlock, StreamEmbeddings
from newllm_core.runs.key_kinds import FORMAT
from newllm_core.runs.reproducibility import computed_by
from newllm_core.training.phase1 import IterationRecord, Phase1History, Phase1Result, all_contexts
from newllm_core.training.phase2 import Phase2Result

_IDENTITY_TOKENS = 8192  # that the identity check looks at
SAMPLE_PROMPTS = ("Hi, how are you", "What do you like to do")


def measure_phase1(
    prepared: Prepared, config: Phase1Config, result: Phase1Result, history: Phase1History
) -> dict[str, Any]:
    """Every figure of docs/method.md, section 6 on the kept weights; all of them JSON values."""
    block, contexts = prepared.model.context_block, result.validation_contexts[:, -1]
    embeds = StreamEmbeddings(prepared.model, prepared.validation_tokens)
    passes = repeated_passes(block, embeds, config.validation_passes, config.convergence_threshold)
    best = history.iterations[history.best_iteration - 1] if history.iterations else None
    return {
        "iterations": len(history.iterations),
        "max_iterations": config.max_iterations,
        "best_iteration": history.best_iteration,
        "stopped_early": history.stopped_early,
        "effective_rank": _rank_record(result, history, config),
        "convergence": _convergence_record(best, len(prepared.train_tokens), passes.convergence),
        "cvfp_loss": best.cvfp if best else None,
        "checks": _checks_record(prepared, contexts, passes, config),
        "repeated_passes": passes.record(),
        "stale_against_exact": _stale_record(prepared, result, history),
        **_forgetting_record(block, embeds[0 : min(FORGETTING_TOKENS, len(embeds) - 1)]),
        "spectrum": _spectrum_record(contexts[:-1][: config.effective_rank_tokens]),
        "history": [iteration.record() for iteration in history.iterations],
    }


def _forgetting_record(block: ContextBlock, embeds: Tensor) -> dict[str, Any]:
    """Exponent and horizon on these tokens `[n, E·T]`, with their number; None where they are too few to settle."""
    tokens = len(embeds)
    if tokens < MIN_FORGETTING_TOKENS:
        return {"contraction_rate": None, "contraction_tokens": None, "forgetting": None}
    forgetting = {"factor": FORGETTING_FACTOR, **asdict(forgetting_horizon(block, embeds)), "tokens": tokens}
    return {"contraction_rate": contraction_rate(block, embeds), "contraction_tokens": tokens, "forgetting": forgetting}


def _spectrum_record(measured: Tensor) -> dict[str, Any]:
    return {
        "validation": singular_values(measured).tolist(),
        "measures": [figure.record() for figure in spectrum_figures(measured.cpu())],
    }


def _rank_record(result: Phase1Result, history: Phase1History, config: Phase1Config) -> dict[str, Any]:
    train, validation = (
        stream_rank(contexts[:, -1], config.effective_rank_tokens)
        for contexts in (result.train_contexts, result.validation_contexts)
    )
    return {
        "train": train.value,
        "validation": validation.value,
        "validation_untrained": history.untrained_rank.value,
        "context_dim": train.context_dim,
        "train_tokens": train.num_tokens,
        "validation_tokens": validation.num_tokens,
        "train_ceiling": train.ceiling,
        "validation_ceiling": validation.ceiling,
    }


def _convergence_record(best: IterationRecord | None, num_train: int, validation: Convergence) -> dict[str, Any]:
    train = Convergence(best.converged, num_train) if best else None
    return {
        "train": train.rate if train else None,
        "train_converged": train.converged if train else None,
        "train_total": num_train,
        "validation": validation.rate,
        "validation_converged": validation.converged,
        "validation_total": validation.total,
    }


def _checks_record(
    prepared: Prepared, contexts: Tensor, passes: RepeatedPasses, config: Phase1Config
) -> dict[str, dict[str, Any]]:
    """The three checks on validation contexts `[M, C]`, by name."""
    few = min(_IDENTITY_TOKENS, len(contexts) - 1)
    tokens = prepared.model.embed(prepared.validation_tokens[:few]).detach()
    checks = {
        "rank": rank_check(stream_rank(contexts, config.effective_rank_tokens)),
        "identity": identity_check(contexts[:few], tokens),
        "fixed_point": fixed_point_check(passes),
    }
    return {name: {"verdict": check.verdict, **check.figures} for name, check in checks.items()}


def _stale_record(prepared: Prepared, result: Phase1Result, history: Phase1History) -> dict[str, Any] | None:
    """The notes' cache, one parallel step behind, against exact contexts on the first training tokens."""
    stale = history.stale_contexts
    if stale is None:
        return None
    rows = slice(1, len(stale))  # token 0 is entered by the carry-over, which exact contexts do not have
    embeds = StreamEmbeddings(prepared.model, prepared.train_tokens)[rows]
    exact = result.train_contexts[rows, -1].to(embeds.device)
    return asdict(compare_stale(prepared.model.context_block, embeds, stale[:-1], exact))


def validation_spectrum(prepared: Prepared, config: Phase1Config) -> list[float]:
    contexts = all_contexts(prepared.model, prepared.validation_tokens[: config.effective_rank_tokens + 1])
    return singular_values(contexts[:-1, -1]).tolist()


def describe(prepared: Prepared) -> dict[str, Any]:
    """What a record says about itself beside its figures."""
    statistics, selection = prepared.token_data.statistics, prepared.token_data.selection
    apart = prepared.data.selection_range is not None
    return {
        "format": FORMAT,
        "corpus": prepared.data.corpus,
        "embeddings": prepared.data.embeddings,
        "seed": prepared.run.seed,
        "chosen_on": "selection" if apart else "validation",
        "tokens": {
            "train": statistics.num_tokens,
            "validation": statistics.validation_tokens,
            **({"selection": selection.num_tokens} if apart else {}),
            "distinct_train": statistics.distinct_tokens,
            "distinct_validation": statistics.distinct_validation_tokens,
            "unseen_validation_share": statistics.unseen_validation_share,
        },
        "parameters": prepared.model.parameter_counts(),
        "provenance": {
            "train": prepared.token_data.train.provenance,
            "validation": prepared.token_data.validation.provenance,
            **({"selection": selection.provenance} if apart else {}),
            "embeddings": prepared.embeddings.provenance,
        },
        **computed_by(prepared.train_tokens.device),
        "paths": {"conversations_file": prepared.data.conversations_file},
    }


def phase2_record(prepared: Prepared, result: Phase2Result) -> dict[str, Any]:
    """Phase 2's figures, with the best epoch's loss per validation conversation and a sample of generated text."""
    stream = prepared.token_data.validation
    target_bytes = token_byte_lengths(stream.vocabulary)[stream.tokens[1:]]
    record = result.record()
    total = float(result.validation.nats.double().sum())
    record["best"]["validation_bits_per_byte"] = bits_per_byte(total, int(target_bytes.sum()))
    record["validation_conversations"] = per_conversation_sums(result.validation.nats, stream.boundaries)
    # With a fixed seed: the same model writes the same text.
    texts = [prepared.model.generate(prompt, seed=prepared.run.seed)[0] for prompt in SAMPLE_PROMPTS]
    record["generated"] = [{"prompt": prompt, "text": text} for prompt, text in zip(SAMPLE_PROMPTS, texts)]
    record["seconds"] = result.seconds
    return record


def per_conversation_sums(nats: Tensor, boundaries: Tensor) -> dict[str, list[float]]:
    """Summed nats and predicted tokens of each validation conversation: what a bootstrap over conversations needs.

    ``nats`` `[N - 1]`, ``boundaries`` `[conversations + 1]`. Target i is token i + 1 of the stream, so the stream's
    first token is nobody's target.
    """
    owner = torch.bucketize(torch.arange(1, len(nats) + 1), boundaries[1:-1], right=True)
    num_conversations = len(boundaries) - 1
    sums = torch.zeros(num_conversations, dtype=torch.float64).index_add_(0, owner, nats.double())
    return {"nats": sums.tolist(), "tokens": torch.bincount(owner, minlength=num_conversations).tolist()}
