"""Coverage of the scaling intervals, measured on simulated experiments with a known law.

    python -m reproduce.interval_coverage            # from the repository's folder; about 6 minutes on one core

writes ``results/reference/interval_coverage.json``. Coverage is the share of simulated data sets whose nominal 95 %
interval holds the planted value; beside each share stands its Monte Carlo standard error. The figures are reported as
they are, those far from 95 % included.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from newllm_core.intervals import CONFIDENCE, Floats, Interval, t_margin
from newllm_core.runs.files import REFERENCE_DIR, write_json
from newllm_core.runs.reproducibility import library_versions
from newllm_core.scaling.bootstrap import LEVELS, ScalingPoint, bootstrap_alpha, points_from_losses
from newllm_core.scaling.floor import bootstrap_floor_law
from newllm_core.scaling.law import fit_power_law, mean_over_seeds

OUTPUT = REFERENCE_DIR / "interval_coverage.json"


@dataclass(frozen=True)
class CoverageConfig:
    """What is simulated. Standard deviations are of log PPL (nats per token) unless said otherwise."""

    alpha: float = -0.35
    first_tokens: float = 12_000.0  # sizes double from here, as 10, 20, 40 … samples do
    first_perplexity: float = 1_000.0
    num_seeds: int = 3
    num_conversations: int = 20
    conversation_tokens: float = 1_500.0
    size_std: float = 0.03  # shared by the seeds of a size: they train on the same text
    seed_std: float = 0.02
    conversation_std: float = 0.3  # shared by all runs: some conversations are harder
    run_conversation_std: float = 0.03  # of one run on one conversation
    floor_noise_std: float = 0.005  # of log loss
    t_simulations: int = 4_000
    bootstrap_simulations: int = 1_000
    bootstrap_resamples: int = 1_000
    floor_simulations: int = 200
    floor_resamples: int = 200
    seed: int = 42


def share(hits: Sequence[bool]) -> dict[str, float | int]:
    """A share with its Monte Carlo standard error, both in percent."""
    rate = float(np.mean(hits))
    return {
        "percent": 100.0 * rate,
        "standard_error_percent": 100.0 * math.sqrt(rate * (1.0 - rate) / len(hits)),
        "simulations": len(hits),
    }


def covers(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def width(interval: Interval | None) -> float:
    return math.nan if interval is None else interval[1] - interval[0]


def sizes(config: CoverageConfig, num_sizes: int, ratio: float = 2.0) -> Floats:
    return np.array([config.first_tokens * ratio**step for step in range(num_sizes)])


def planted_log_perplexity(config: CoverageConfig, tokens: Floats) -> Floats:
    return math.log(config.first_perplexity) + config.alpha * np.log(tokens / config.first_tokens)


def t_interval_coverage(config: CoverageConfig, num_sizes: int, rng: np.random.Generator) -> dict[str, Any]:
    """One run per size, independent deviations: the case the t-interval is made for."""
    tokens = sizes(config, num_sizes)
    law = planted_log_perplexity(config, tokens)
    noise = rng.normal(scale=config.size_std, size=(config.t_simulations, num_sizes))
    intervals = [fit_power_law(tokens, row).alpha_interval for row in np.exp(law + noise)]
    return {
        "num_sizes": num_sizes,
        "coverage": share([covers(interval, config.alpha) for interval in intervals]),
        "median_width": float(np.median([width(interval) for interval in intervals])),
    }


def seeds_coverage(config: CoverageConfig, num_sizes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Seeds of a size share a deviation: averaged first, as the project does, against all runs as if independent."""
    tokens = sizes(config, num_sizes)
    law = planted_log_perplexity(config, tokens)
    averaged, pooled = [], []
    for _ in range(config.t_simulations):
        shared = rng.normal(scale=config.size_std, size=(num_sizes, 1))
        runs = law[:, None] + shared + rng.normal(scale=config.seed_std, size=(num_sizes, config.num_seeds))
        means = [mean_over_seeds(row) for row in np.exp(runs)]
        averaged.append(covers(fit_power_law(tokens, means).alpha_interval, config.alpha))
        line = stats.linregress(np.repeat(np.log(tokens), config.num_seeds), runs.ravel())
        pooled.append(bool(abs(line.slope - config.alpha) <= t_margin(float(line.stderr), runs.size - 2)))
    return {"num_sizes": num_sizes, "seeds_averaged_first": share(averaged), "runs_as_if_independent": share(pooled)}


def simulated_points(config: CoverageConfig, num_sizes: int, rng: np.random.Generator) -> list[ScalingPoint]:
    """One experiment: every source of deviation that CoverageConfig names."""
    tokens = sizes(config, num_sizes)
    conversations = rng.normal(scale=config.conversation_std, size=config.num_conversations)
    counts = np.full(config.num_conversations, config.conversation_tokens)
    points = []
    for size, level in zip(tokens, planted_log_perplexity(config, tokens)):
        runs = level + rng.normal(scale=config.size_std) + rng.normal(scale=config.seed_std, size=(config.num_seeds, 1))
        own = rng.normal(scale=config.run_conversation_std, size=(config.num_seeds, config.num_conversations))
        points.append(ScalingPoint(float(size), (runs + conversations + own) * counts, counts))
    return points


def bootstrap_coverage(config: CoverageConfig, num_sizes: int, levels: Sequence[str], seed: int) -> dict[str, Any]:
    """Percentile interval of α over the given levels, every source of deviation present."""
    rng = np.random.default_rng(seed)
    intervals = []
    for simulation in range(config.bootstrap_simulations):
        points = simulated_points(config, num_sizes, rng)
        intervals.append(bootstrap_alpha(points, config.bootstrap_resamples, simulation, levels).alpha_interval)
    return {
        "num_sizes": num_sizes,
        "levels": list(levels),
        "coverage": share([covers(interval, config.alpha) for interval in intervals]),
        "median_width": float(np.median([width(interval) for interval in intervals])),
    }


def floor_coverage(
    config: CoverageConfig, floor: float, beta: float, ratio: float, num_sizes: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Floored law, one run per size, points resampled: coverage of E and β, and how often E is called identified."""
    tokens = sizes(config, num_sizes, ratio)
    first_loss = math.log(config.first_perplexity)
    law = floor + (first_loss - floor) * (tokens / config.first_tokens) ** -beta
    fits = []
    for simulation in range(config.floor_simulations):
        noise = rng.normal(scale=config.floor_noise_std, size=num_sizes)
        points = points_from_losses(tokens, law * np.exp(noise))
        fits.append(bootstrap_floor_law(points, config.floor_resamples, simulation, ("points",)))
    return {
        "E": floor,
        "beta": beta,
        "num_sizes": num_sizes,
        "span": float(tokens[-1] / tokens[0]),
        "E_coverage": share([covers(fit.E_interval, floor) for fit in fits]),
        "beta_coverage": share([covers(fit.beta_interval, beta) for fit in fits]),
        "E_median_width": float(np.nanmedian([width(fit.E_interval) for fit in fits])),
        "called_identified_by_fit": share([fit.fit.E_identified for fit in fits]),
        "called_identified_with_bootstrap": share([fit.E_identified for fit in fits]),
        "failed_draws": sum(fit.num_failed for fit in fits),
        "used_draws": sum(fit.num_used for fit in fits),
    }


def floor_bootstrap_seconds(config: CoverageConfig, num_resamples: int = 4_000) -> dict[str, float | int]:
    tokens = sizes(config, 5)
    points = points_from_losses(tokens, 1.7 + 5.2 * (tokens / tokens[0]) ** -0.3)
    start = time.perf_counter()
    bootstrap_floor_law(points, num_resamples)
    return {"resamples": num_resamples, "seconds": round(time.perf_counter() - start, 2)}


def measure(config: CoverageConfig, log: Callable[[str], None]) -> dict[str, Any]:
    rng = np.random.default_rng(config.seed)
    start = time.perf_counter()
    t_intervals = [t_interval_coverage(config, count, rng) for count in (3, 4, 5, 8)]
    seeds = [seeds_coverage(config, count, rng) for count in (4, 5)]
    log(f"t-intervals done after {time.perf_counter() - start:.0f} s")
    chosen_levels = (LEVELS, ("points",), ("seeds", "conversations"), ("conversations",))
    bootstraps = [
        bootstrap_coverage(config, count, levels, config.seed) for count in (4, 5, 8) for levels in chosen_levels
    ]
    log(f"bootstrap of α done after {time.perf_counter() - start:.0f} s")
    worlds = ((1.7, 0.3, 3.0, 8), (3.0, 0.3, 2.0, 5), (0.0, 0.1, 2.0, 5), (0.0, 0.1, 3.0, 8))
    floors = [floor_coverage(config, *world, rng) for world in worlds]
    log(f"floored law done after {time.perf_counter() - start:.0f} s")
    return {
        "meaning": "coverage: share of simulated data sets whose nominal interval holds the planted value",
        "nominal_percent": 100.0 * CONFIDENCE,
        "settings": dataclasses.asdict(config),
        "t_interval_of_alpha": t_intervals,
        "t_interval_of_alpha_with_seeds": seeds,
        "bootstrap_of_alpha": bootstraps,
        "floored_law": floors,
        "floor_bootstrap_time": floor_bootstrap_seconds(config),
        "versions": library_versions(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=CoverageConfig.seed)
    arguments = parser.parse_args()
    record = measure(CoverageConfig(seed=arguments.seed), print)
    write_json(arguments.output, {"command": "python -m reproduce.interval_coverage", **record})
    print(f"written to {arguments.output} after {record['seconds']} s")


if __name__ == "__main__":
    main()
