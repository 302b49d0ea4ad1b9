"""Stale or exact contexts in Phase 1? Both on the `cpu` profile, several seeds.

    python -m reproduce.context_source            # about 20 minutes on two cores; finished runs are not repeated

Writes results/reference/context_source.json: per seed effective rank, convergence, perplexity after Phase 2, seconds;
the runs themselves go to results/context_source/.
"""

import argparse
from pathlib import Path
from typing import Any

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, RESULTS_DIR, write_json
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Record, Sweep, grid

SOURCES = ("previous_iteration", "exact")


def figures(record: Record, max_epochs: int) -> dict[str, Any]:
    """The figures that the choice rests on, of one run with at most ``max_epochs`` epochs."""
    rank, best = record["phase1"]["effective_rank"], record["phase2"]["best"]
    return {
        "context_source": record["config"]["phase1"]["context_source"],
        "seed": record["seed"],
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
        "num_threads": record["config"]["run"]["num_threads"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--max-epochs", type=int, default=5, help="of Phase 2: its first epochs tell the order")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "context_source.json")
    parser.add_argument("--estimate", action="store_true", help="runs, finished runs, hours; trains nothing")
    arguments = parser.parse_args()
    base = Settings.from_parameters(load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "cpu.yaml"))
    variants = grid({"context_source": SOURCES, "max_epochs": [arguments.max_epochs]})
    folder = RESULTS_DIR / "context_source"
    runner = ExperimentRunner(Folders(folder / "experiments", folder / "phase1"))
    sweep = Sweep(base, variants, arguments.seeds, runner)
    print(sweep.estimate())
    if arguments.estimate:
        return
    rows = sorted((figures(record, arguments.max_epochs) for record in sweep.run()), key=lambda row: int(row["seed"]))
    write_json(arguments.out, {"rows": rows})
    for row in rows:
        print(
            f"{row['context_source']:18} seed {row['seed']}: ER {row['effective_rank_share']:.1%}, "
            f"PPL {row['validation_perplexity']:.1f}, {row['phase1_seconds']:.0f} + {row['phase2_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
