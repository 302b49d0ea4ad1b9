"""Does rank, or dimension, tell how well contexts will predict? Over configurations, under one readout.

    pip install -e '.[dimension]'
    python -m reproduce.rank_and_perplexity --estimate     # runs, hours; trains nothing
    python -m reproduce.rank_and_perplexity                # an hour and a half of one core; goes on where it ended
    python -m reproduce.rank_and_perplexity --page         # page and picture from the record; nothing is trained

The `best` profile on a quarter of its text, with one layer, without cache and n-grams, whose Phase 1 alone is changed:
its objective, its diversity loss and that one's weight, noise, width, start. Rows go to
``results/reference/rank_and_perplexity.json`` as they come, the page to docs/rank.md. Dimension is that of TwoNN (Facco
et al. 2017), by scikit-dimension.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.experiment.folder_names import phase1_folder_name, run_folder_name
from newllm_core.experiment.run import load_model
from newllm_core.losses import DIVERSITY_ALGORITHMS
from newllm_core.model import StreamEmbeddings
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, RESULTS_DIR, read_json, write_json
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.studies.runners import ExperimentRunner, Folders
from newllm_core.studies.sweep import Point, Record, Sweep, Variant
from reproduce.rank_report import write_page

OUTPUT = REFERENCE_DIR / "rank_and_perplexity.json"
FOLDER = RESULTS_DIR / "rank_and_perplexity"
PROFILE = PROJECT_ROOT / "notebooks" / "profiles" / "best.yaml"
SEEDS = (42, 43, 44)
BASE = {
    "num_samples": 20, "validation_range": (1000, 1009), "cache_weight": 0.0, "ngram_weight": 0.0, "num_layers": 1,
    "context_dim": 576, "num_threads": 1,
}  # fmt: skip
FIXED_POINT: Mapping[str, Any] = {"objective": "cvfp", "context_noise": 0.1}
NEIGHBOURS_OF = 4000  # contexts whose two nearest neighbours are looked for, evenly taken


def variants() -> list[Variant]:
    """Phase 1 in 36 ways; a group is an objective."""
    found = [
        _variant("untrained", "untrained", max_iterations=0),
        _variant("untrained", "untrained, weights of 0.1", max_iterations=0, weight_std=0.1),
        _variant("untrained", "untrained, weights of 0.02", max_iterations=0, weight_std=0.02),
        _variant("fixed point", "fixed point alone", **FIXED_POINT, dist_reg_weight=0.0),
        _variant("contrastive", "contrastive alone"),
        _variant("contrastive", "contrastive, no noise", context_noise=0.0),
        _variant("contrastive", "contrastive, noise 1", context_noise=1.0),
        _variant("contrastive", "contrastive, little decay", prediction_weight_decay=0.01),
        _variant("regression", "regression alone", objective="regression"),
    ]
    for name in DIVERSITY_ALGORITHMS:
        for weight in (0.5, 0.9):
            found.append(
                _variant(
                    "fixed point", f"fixed point + {weight} {name}", **FIXED_POINT, diversity_algorithm=name,
                    dist_reg_weight=weight,
                )
            )  # fmt: skip
        common = {"diversity_algorithm": name, "dist_reg_weight": 0.1}
        found.append(_variant("contrastive", f"contrastive + 0.1 {name}", **common))
        if name in ("SIGReg", "LogDet", "MCDL"):
            found.append(_variant("regression", f"regression + 0.1 {name}", **common, objective="regression"))
    for width in (200, 384, 768):
        found.append(_variant("contrastive", f"contrastive, C = {width}", context_dim=width))
    for width in (200, 384, 768):
        found.append(
            _variant(
                "fixed point", f"fixed point + 0.9 MCDL, C = {width}", **FIXED_POINT, dist_reg_weight=0.9,
                context_dim=width,
            )
        )  # fmt: skip
    return found


def _variant(group: str, name: str, **changes: Any) -> Variant:
    return Variant(name, name, changes, group=group)


def nearest_neighbour_dimension(contexts: Tensor) -> float:
    """TwoNN of `[n, C]`, of at most NEIGHBOURS_OF rows, each once: a neighbour at distance zero tells no dimension.

    Raises ModuleNotFoundError without scikit-dimension.
    """
    from skdim.id import TwoNN

    chosen = torch.linspace(0, len(contexts) - 1, min(NEIGHBOURS_OF, len(contexts))).long()
    return float(TwoNN().fit(contexts[chosen].unique(dim=0).double().numpy()).dimension_)


@cache
def normal_cloud() -> dict[str, float]:
    """What TwoNN sees of as many points of a standard normal in all dimensions of the contexts."""
    width = Settings.from_parameters({**load_profile(PROFILE), **BASE}).model.context_dim
    return {
        "context_dim": width,
        "points": NEIGHBOURS_OF,
        "dimension": nearest_neighbour_dimension(
            torch.randn(NEIGHBOURS_OF, width, generator=derived_generator("normal cloud"))
        ),
    }


def validation_contexts(record: Record, settings: Settings) -> Tensor:
    """Of a finished run, as its ranks were measured on: `[n, C]`."""
    phase1 = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    folders = FOLDER / "experiments" / run_folder_name(settings), FOLDER / "phase1" / phase1
    prepared = load_model(record, *folders)
    block = prepared.model.context_block
    embeds = StreamEmbeddings(prepared.model, prepared.validation_tokens)
    found = exact_contexts(block, embeds, torch.zeros(block.context_dim))
    return found.contexts[:-1][: settings.phase1.effective_rank_tokens]


def row_of(point: Point, record: Record) -> dict[str, Any]:
    contexts = validation_contexts(record, point.settings)
    spectrum = {
        figure["name"]: figure["value"] for figure in record["phase1"]["spectrum"]["measures"] if figure["centred"]
    }
    return {
        "variant": point.variant.name, "objective": point.variant.group, "seed": record["seed"],
        "context_dim": contexts.shape[1], "tokens": len(contexts), "train_tokens": record["tokens"]["train"],
        "corpus": record["corpus"], "embeddings": record["embeddings"], "commit": record["commit"],
        "effective_rank": record["phase1"]["effective_rank"]["validation"],
        "participation_ratio": spectrum["participation_ratio"],
        "intrinsic_dimension": nearest_neighbour_dimension(contexts),
        "validation_perplexity": record["phase2"]["best"]["validation_perplexity"],
    }  # fmt: skip


def num_planned() -> int:
    return len(variants()) * len(SEEDS)


def rows_so_far() -> list[dict[str, Any]]:
    return list(read_json(OUTPUT)["rows"]) if OUTPUT.exists() else []


def sweep_of(seed: int) -> Sweep:
    base = Settings.from_parameters({**load_profile(PROFILE), **BASE})
    return Sweep(base, variants(), [seed], ExperimentRunner(Folders(FOLDER / "experiments", FOLDER / "phase1")))


def measure(seeds: Sequence[int]) -> None:
    """All variants with the first seed, then with the next; each row is written when it is there."""
    for seed in seeds:
        sweep, rows = sweep_of(seed), rows_so_far()
        done = {(row["variant"], row["seed"]) for row in rows}
        unfinished = [point for point in sweep.points if (point.variant.name, seed) not in done]
        sweep.runner.check(unfinished)
        for point in progress_bar(unfinished, desc=f"seed {seed}", unit="run"):
            rows.append(row_of(point, sweep.runner.run(point)))
            write_json(OUTPUT, {"base": BASE, "rows": rows, "dimension_of_a_normal_cloud": normal_cloud()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if arguments.estimate:
        print("\n".join(f"seed {seed}: {sweep_of(seed).estimate()}" for seed in arguments.seeds))
        return
    if not arguments.page:
        measure(arguments.seeds)
    record = read_json(OUTPUT)
    write_page(record["rows"], record["dimension_of_a_normal_cloud"], num_planned())


if __name__ == "__main__":
    main()
