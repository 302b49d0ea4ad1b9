"""The rows of `results/reference/brown/`: the Brown corpus as in Table 1 of Bengio et al. (2003).

    python -m reproduce.brown                          # runs what is missing; NLTK downloads the corpus
    python -m reproduce.brown --corpus brown.zip       # or reads this folder or zip
    python -m reproduce.brown --names kneser-ney-5 gru-cache --seeds 42
    python -m reproduce.brown --estimate               # rows, finished rows, hours; runs nothing

One thread. An interrupted row goes on from its last checkpoint. The table of docs/results.md is made of the rows by
`python -m reproduce.results_tables`.
"""

import argparse
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from newllm_core.baselines.registry import BASELINES
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import changed
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR
from newllm_core.studies.runners import RowRunner
from newllm_core.studies.sweep import Sweep
from newllm_core.studies.variants import LeaderboardVariant, variant

ROWS = REFERENCE_DIR / "brown"
# Fourteen times the text of the leaderboard, so a third of the passes, and less against learning it by heart. Set
# before any row was run, and not chosen among others.
LONGER_TEXT: Mapping[str, Mapping[str, Any]] = {
    "best": {"max_iterations": 5, "check_interval": 1, "prediction_weight_decay": 0.1, "max_epochs": 4, "dropout": 0.2},
    "untrained": {"max_epochs": 5},
    "notes": {"max_iterations": 10, "max_epochs": 5},
}
NETWORKS: Mapping[str, Any] = {"max_epochs": 5, "dropout": 0.2}
NAMES = ("unigram", "kneser-ney-5", "gru-cache", "best", "gru", "untrained", "lstm", "gpt", "notes")
SEEDS = [42, 43, 44]
# Table 1 of 2003: perplexity on its test text.
PUBLISHED: Mapping[str, float] = {
    "neural network, mixed with a trigram": 252,
    "the best neural network alone": 257,
    "class-based back-off": 312,
    "Kneser-Ney back-off, five words": 321,
    "Kneser-Ney back-off, three words": 323,
    "interpolated trigram": 336,
}


def brown_variant(name: str) -> LeaderboardVariant:
    """A row's variant, its passes those of a longer text."""
    one = variant(name)
    return dataclasses.replace(one, changes={**one.changes, **LONGER_TEXT.get(name, {})})


def centre(corpus: str | None = None) -> Settings:
    """The profile `brown`, the corpus in the folder or zip ``corpus``, or where NLTK keeps it."""
    profile = load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "brown.yaml")
    return changed(Settings.from_parameters(profile), {"conversations_file": corpus})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="folder or zip; default: NLTK's")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--estimate", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    base = centre(arguments.corpus)
    for seed in arguments.seeds:
        for name in arguments.names:
            is_network = name in BASELINES and BASELINES[name].kind == "network"
            runner = RowRunner(ROWS, NETWORKS if is_network else {})
            sweep = Sweep(base, [brown_variant(name)], [seed], runner)
            print(f"{name}, seed {seed}: {sweep.estimate()}", flush=True)
            if not arguments.estimate:
                sweep.run()


if __name__ == "__main__":
    main()
