"""Less memory than a run wants: it finishes with the same figures, or says in a sentence why it does not."""

import resource
from collections.abc import Iterator
from functools import partial

import psutil
import torch

from newllm_core.config.hyperparameters import ModelConfig, Phase1Config
from newllm_core.contexts import shooting, store
from newllm_core.model import NewLLM
from newllm_core.runs.files import sha256_tensors
from newllm_core.training.phase1 import train_phase1

from .cases import SEED, Case, FailedError, Workshop
from .process import run, start
from .scenarios import Scenario

# `ulimit -d` leaves mapped files out, `ulimit -v` does not.
_LIMITS = {"data": resource.RLIMIT_DATA, "address": resource.RLIMIT_AS}
_MEGABYTES = {"data": (2, 4, 8, 16, 32, 64), "address": (32, 64, 128, 256)}
_SECONDS = 3600.0  # of a million tokens: 200 CPU seconds, on a machine that may be busy
_IN_FILES = ("cvfp", "exact", "contrastive", "regression")


def shortages(scenario: Scenario) -> Iterator[Case]:
    """A limit of so much more than the process has when the run begins."""
    for name in _LIMITS:
        for megabytes in _MEGABYTES[name]:
            yield Case("memory", f"{scenario.name}-{name}-{megabytes}", partial(_short, scenario, name, megabytes))
    if scenario.name in _IN_FILES:
        yield Case("memory", f"{scenario.name}-contexts-in-files", partial(_in_files, scenario))


def _short(scenario: Scenario, name: str, megabytes: int, workshop: Workshop) -> None:
    folder = workshop.fresh(scenario)

    def limit() -> None:
        process = psutil.Process().memory_info()
        used = process.data if name == "data" else process.vms
        resource.setrlimit(_LIMITS[name], (used + megabytes * 10**6, resource.RLIM_INFINITY))

    ended = run(lambda: scenario.run(folder, SEED), workshop.told(), limit)
    if ended.how not in ("finished", "refused"):
        raise FailedError(f"{ended.how}: {ended.text[-1500:]} {ended.log[-500:]}")
    if ended.how == "refused" and not ("memory" in ended.text and "MB" in ended.text):
        raise FailedError(f"the message says nothing of memory: {ended.text}")
    workshop.must_be_as_uninterrupted(scenario, folder, f"after {ended.how}")


def _in_files(scenario: Scenario, workshop: Workshop) -> None:
    """Contexts in files from the first byte on: the same figures and weights."""
    folder = workshop.fresh(scenario)

    def no_room() -> None:
        store.room_bytes = lambda: 0  # type: ignore[attr-defined]

    ended = run(lambda: scenario.run(folder, SEED), workshop.told(), no_room)
    workshop.must_finish(ended, "contexts in files")
    if "kept in a file" not in ended.log:
        raise FailedError("the contexts were kept in memory")
    workshop.must_equal(scenario, folder, "contexts in files")


def beyond_memory(num_tokens: int, context_dim: int) -> Case:
    """Phase 1 with half of the memory that its contexts need, beside what the process has: the same figures."""
    name = f"half-of-contexts-{num_tokens}x{context_dim}"
    return Case("memory", name, partial(_beyond_memory, num_tokens, context_dim))


def _beyond_memory(num_tokens: int, context_dim: int, workshop: Workshop) -> None:
    def limit() -> None:
        half = num_tokens * context_dim * 4 // 2
        used = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (used + half, resource.RLIM_INFINITY))

    work = partial(_phase1, num_tokens, context_dim)
    with_room, limited = (start(work, workshop.told(), fault).wait(_SECONDS) for fault in (_no_limit, limit))
    for ended, when in ((with_room, "with room"), (limited, "limited")):
        workshop.must_finish(ended, when)
    if "kept in a file" in with_room.log or "kept in a file" not in limited.log:
        raise FailedError("the contexts were not kept where they should be")
    if limited.value != with_room.value:
        raise FailedError("weights or contexts differ")


def _no_limit() -> None:
    return


def _phase1(num_tokens: int, context_dim: int) -> tuple[str, str]:
    torch.manual_seed(SEED)
    model = NewLLM(ModelConfig(context_dim=context_dim, embed_dim=8), torch.randn(1000, 8), SEED)
    tokens = torch.randint(1000, (num_tokens,))
    # Batches and chunks as much smaller than the defaults as the contexts are smaller than two gigabytes.
    share = min(1.0, num_tokens * context_dim / 5e8)
    shooting._CHUNK_NUMBERS = {"cpu": int(2**24 * share)}
    batch_tokens = max(200, int(5000 * share))
    config = Phase1Config(
        max_iterations=1, min_iterations=1, batch_tokens=batch_tokens, min_last_batch=100, effective_rank_tokens=1000
    )
    result = train_phase1(model, tokens, tokens[:500], config, SEED)
    weights = sha256_tensors(*model.context_block.state_dict().values())
    return weights, sha256_tensors(result.train_contexts[::97])
