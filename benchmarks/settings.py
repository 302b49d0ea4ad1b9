"""Sizes and repetitions of the benchmarks; the model's own are in newllm_core/config/hyperparameters.py."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkSettings:
    """How much is measured. Token counts are of the embedded corpus's stream, from its start."""

    seed: int = 42
    num_threads: int = 2
    repetitions: int = 3  # timed rounds; the median counts
    num_conversations: int = 80  # the cpu profile; 57,173 tokens
    # (a) contexts
    context_tokens: int = 31_024  # as many as the notes' validation text
    context_dims: tuple[int, ...] = (500, 768)
    embed_dims: tuple[int, ...] = (384, 768)
    trained_iterations: int = 10
    small_tokens: tuple[int, ...] = (1, 10, 50, 200, 300, 1_000, 3_000)
    small_context_dims: tuple[int, ...] = (8, 64, 200, 1_536)
    small_weight_stds: tuple[float, ...] = (0.1, 0.5)  # the given one, and one that expands
    small_seconds: float = 0.1  # calls are repeated until a timing lasts this long
    # (c) head and epoch
    batch_sizes: tuple[int, ...] = (512, 2_048)
    epoch_tokens: int = 8_192  # training targets of the epoch that is timed
    epoch_repetitions: int = 3
    evaluation_tokens: int = 4_096
    head_repetitions: int = 3
    reference_rows: int = 512  # whose gradient is computed in float64
    memory_batches: tuple[int, ...] = (512, 2_048, 16_384)
    direct_memory_batch: int = 2_048  # a full matrix of logits beyond this would not fit everywhere
    # (e) peak memory
    memory_steps: int = 8  # optimizer steps of Phase 2 after which its peak is reached
    # (f) against the number of tokens
    scaling_tokens: tuple[int, ...] = (50_000, 100_000, 200_000, 500_000, 1_000_000)
    scaling_conversations: int = 1_600  # enough for the largest
    whole_epoch_tokens: int = 100_000  # up to here the whole epoch is timed, beyond it a share
    epoch_share: float = 0.1
    scaling_repetitions: int = 1  # of contexts and iteration; the epoch runs once
    # (d) the whole run
    whole_run_iterations: int | None = None  # at most; None: what the config says
    whole_run_epochs: int = 5  # at most: the plain side takes minutes for each
    whole_run_seeds: tuple[int, ...] = (42, 43, 44)


FULL = BenchmarkSettings()

QUICK = dataclasses.replace(
    FULL,
    num_threads=1,
    repetitions=2,
    num_conversations=6,
    context_tokens=2_000,
    context_dims=(64,),
    embed_dims=(384,),
    trained_iterations=2,
    small_tokens=(1, 300),
    small_context_dims=(8, 64),
    small_seconds=0.02,
    batch_sizes=(128,),
    epoch_tokens=256,
    epoch_repetitions=1,
    evaluation_tokens=256,
    reference_rows=64,
    memory_batches=(128,),
    head_repetitions=1,
    direct_memory_batch=128,
    memory_steps=1,
    scaling_tokens=(1_000, 2_000, 4_000),
    scaling_conversations=8,
    whole_epoch_tokens=1_000,
    scaling_repetitions=1,
    whole_run_iterations=1,
    whole_run_epochs=1,
    whole_run_seeds=(42,),
)
