"""Stale or exact contexts in Phase 1? Both on the `cpu` profile, several seeds.

    python -m reproduce.context_source            # about 20 minutes on two cores; finished runs are not repeated

Writes results/reference/context_source.json: per seed effective rank, convergence, perplexity after Phase 2, seconds;
the runs themselves go to results/context_source/.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import RunConfig, Settings
from newllm_core.config.profiles import load_profile
from newllm_core.experiment.run import run_experiment
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, RESULTS_DIR, write_json

SOURCES = ("previous_iteration", "exact")


def measure(source: str, seed: int, max_epochs: int, runs_dir: Path) -> dict[str, Any]:
    """One run of the profile, with at most ``max_epochs`` epochs; the figures that the choice rests on."""
    settings = Settings.from_parameters(load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "cpu.yaml"))
    phase1 = dataclasses.replace(settings.phase1, context_source=source)
    run: RunConfig = dataclasses.replace(settings.run, seed=seed)
    phase2 = dataclasses.replace(settings.phase2, max_epochs=max_epochs)
    folder = runs_dir / f"{source}-seed{seed}-{max_epochs}epochs"
    record = run_experiment(settings.data, settings.model, phase1, phase2, folder, run=run)
    rank, best = record["phase1"]["effective_rank"], record["phase2"]["best"]
    return {
        "context_source": source,
        "seed": seed,
        "tokens": record["tokens"]["train"],
        "corpus": record["corpus"],
        "embeddings": record["embeddings"],
        "iterations": record["phase1"]["iterations"],
        "best_iteration": record["phase1"]["best_iteration"],
        "effective_rank_share": rank["validation"] / rank["context_dim"],
        "effective_rank_tokens": rank["validation_tokens"],
        "convergence_train": record["phase1"]["convergence"]["train"],
        "contraction_rate": record["phase1"]["contraction_rate"],
        "validation_perplexity": best["validation_perplexity"],
        "validation_accuracy": best["validation_accuracy"],
        "epochs": len(record["phase2"]["epochs"]),
        "max_epochs": max_epochs,
        "phase1_seconds": record["phase1"]["seconds"],
        "phase2_seconds": record["phase2"]["seconds"],
        "num_threads": run.num_threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--max-epochs", type=int, default=5, help="of Phase 2: its first epochs tell the order")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "context_source.json")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        for source in SOURCES:
            rows.append(measure(source, seed, arguments.max_epochs, RESULTS_DIR / "context_source"))
            row = rows[-1]
            print(
                f"{source:18} seed {seed}: ER {row['effective_rank_share']:.1%}, "
                f"PPL {row['validation_perplexity']:.1f}, {row['phase1_seconds']:.0f} + {row['phase2_seconds']:.0f} s",
                flush=True,
            )
            write_json(arguments.out, {"rows": rows})


if __name__ == "__main__":
    main()
