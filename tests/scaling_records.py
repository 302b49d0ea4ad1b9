"""Records as `run.json` holds them, with figures that follow a planted law."""

import math
from typing import Any

COUNTS = [300, 700, 1000, 500, 900, 400]  # predicted tokens of each validation conversation
# Differences between conversations that cancel over the text: Σ count · offset = 0.
_OFFSETS = [0.3, -0.2, 0.05, -0.1, 0.1, -0.1]
OFFSETS = [one - sum(c * o for c, o in zip(COUNTS, _OFFSETS)) / sum(COUNTS) for one in _OFFSETS]


def planted_record(
    samples: int, seed: int, *, alpha: float = -0.3, scatter: float = 0.0, **config: Any
) -> dict[str, Any]:
    """A run whose perplexity is `20,000 · tokens^alpha · exp(scatter)`, 700 tokens a sample."""
    tokens = 700 * samples
    loss = math.log(20_000) + alpha * math.log(tokens) + scatter
    measure = {"name": "calibrated_effective_rank", "centred": False, "value": 80.0 + seed % 5}
    return {
        "corpus": "chitchat",
        "embeddings": "random",
        "seed": seed,
        "tokens": {"train": tokens, "validation": sum(COUNTS) + 1},
        "config": {
            "data": {"num_samples": samples, "corpus": "chitchat"},
            "model": {"context_dim": 100},
            "phase1": {"diversity_algorithm": "MCDL", "dist_reg_weight": 0.9, "max_iterations": 10, **config},
            "run": {"seed": seed, "num_threads": 1},
        },
        "phase1": {
            "effective_rank": {"validation": 70.0 + seed % 5, "context_dim": 100},
            "spectrum": {"measures": [measure]},
        },
        "phase2": {
            "best": {"validation_perplexity": math.exp(loss), "validation_accuracy": 0.1},
            "validation_conversations": {
                "nats": [count * (loss + offset) for count, offset in zip(COUNTS, OFFSETS)],
                "tokens": COUNTS,
            },
        },
    }


def planted_records(sizes: list[int], seeds: list[int], **values: Any) -> list[dict[str, Any]]:
    """Every size and seed; seeds scatter by a per cent, differently at each size."""
    return [
        planted_record(size, seed, scatter=0.01 * math.sin(7 * seed + size), **values)
        for size in sizes
        for seed in seeds
    ]
