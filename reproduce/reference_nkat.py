"""The committed figures of the vision line at the `nkat_cpu` profile: quick model, two CPU cores.

    python -m reproduce.reference_nkat --estimate              # runs, finished runs, hours; trains nothing
    python -m reproduce.reference_nkat                         # all parts, each goes on where it was stopped
    python -m reproduce.reference_nkat --only rescue           # CIFAR-10 with and without the rescue pack, three seeds
    python -m reproduce.reference_nkat --only search           # the study, with its workers
    python -m reproduce.reference_nkat --report                # tables and pictures of what is there

Records go to results/reference/nkat/runs, tables and pictures to results/reference/nkat; weights stay beside records
and are not committed. One thread a run, so that two parts can run side by side on two cores. A part whose images are
not on this machine ends the command with what to install.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newllm_core.batch.notebooks import load_profile
from newllm_core.comparison.accuracy import accuracy_table
from newllm_core.comparison.groups import Record
from newllm_core.comparison.tables import readable_table
from newllm_core.config.schema import changed, parameter_fields, settings_of_type
from newllm_core.report.style import save_figure
from newllm_core.runs.files import PROJECT_ROOT, read_json, write_json, write_text
from newllm_core.runs.folder import is_complete
from newllm_core.vision.config import AUGMENTATION_PACKS
from newllm_core.vision.report import comparison as plots_comparison
from newllm_core.vision.report import runs as plots_vision
from newllm_core.vision.report import score_table
from newllm_core.vision.report import search as plots_search
from newllm_core.vision.search.config import SEARCH_SPACES, search_profile
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.search.run import run_search
from newllm_core.vision.settings import VisionSettings, for_data_set
from newllm_core.vision.variant_series import VariantSeries
from newllm_core.vision.variants import Variant, term_variants
from reproduce.reference_experiments import REFERENCE

NKAT = REFERENCE / "nkat"
RUNS, SEARCH = NKAT / "runs", NKAT / "search"
# Beside the profile's: what the targets of single runs take (accuracies of 45, 87 and 91 %).
LONG_RUNS: Mapping[str, Mapping[str, Any]] = {
    "cifar10-jpeg": {"epochs": 8},
    # Patches of four pixels alone stay near 77 % after three epochs, and five epochs with dropout end at 86 %; a crop
    # cuts garments, which fill the picture.
    "fashion-mnist": {
        "epochs": 6, "stem": "tiny", "patch": 2, "crop_padding": 0,
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "head_dropout": 0.0,
    },
    "mnist-5k": {"epochs": 60},
}  # fmt: skip


def profile() -> dict[str, Any]:
    return load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "nkat_cpu.yaml")


def centre() -> VisionSettings:
    known = parameter_fields(VisionSettings)
    settings = settings_of_type(VisionSettings, {name: value for name, value in profile().items() if name in known})
    return for_data_set(settings, settings.data)


def rescue_variants() -> list[Variant]:
    return [Variant("augmentation", name, AUGMENTATION_PACKS[name]) for name in ("baseline", "rescue")]


def long_settings() -> dict[str, VisionSettings]:
    """One run a data set, on all its training images."""
    base = centre()
    return {
        name: changed(for_data_set(base, dataclasses.replace(base.data, dataset=name)), changes)
        for name, changes in LONG_RUNS.items()
    }


def all_series() -> dict[str, VariantSeries]:
    values = profile()
    seeds = values["term_seeds"]
    single = {
        f"long {name}": VariantSeries(settings, [Variant(name, name)], seeds[:1], read_test=True, folder=RUNS)
        for name, settings in long_settings().items()
    }
    # Nine runs, each in a sixth of the time that one takes on all images.
    fewer = changed(centre(), {"num_train_images": values["few_images"]})
    return {
        "rescue": VariantSeries(centre(), rescue_variants(), seeds, read_test=True, folder=RUNS),
        "term": VariantSeries(fewer, term_variants(()), seeds, read_test=True, folder=RUNS),
        **single,
    }


def search_plan() -> SearchPlan:
    values, base = profile(), centre()
    images = values["search_images"]
    few = [dataclasses.replace(base.data, dataset=name, num_train_images=images) for name in values["data_sets"]]
    quick = search_profile("quick", num_trials=values["search_trials"], gate_threshold=values["gate_threshold"])
    fitted = changed(base, {"epochs": values["search_epochs"]})
    return SearchPlan(fitted, few[0], tuple(few[1:]), quick, SEARCH_SPACES[values["search_space"]])


def report(series: Mapping[str, VariantSeries]) -> None:
    """Tables and pictures of the parts whose runs are all there."""
    whole = {name: one for name, one in series.items() if all(is_complete(path) for path in one.run_dirs())}
    for name, one in whole.items():
        if not name.startswith("long"):
            _report_variants(name, one.run())
    _report_data_sets({name: whole[f"long {name}"].run_dirs()[0] for name in LONG_RUNS if f"long {name}" in whole})
    if (SEARCH / "search.json").is_file():
        write_json(NKAT / "search.json", read_json(SEARCH / "search.json"))
        for name, figure in plots_search.search_pictures(SEARCH).items():
            save_figure(figure, NKAT / f"search_{name}.png")


def _report_variants(name: str, records: Sequence[Record]) -> None:
    table = readable_table(accuracy_table(records, "test")).to_string()
    write_text(NKAT / f"{name}.txt", table + "\n")
    save_figure(plots_comparison.plot_variants(records, "test"), NKAT / f"{name}.png")
    print(table)


def _report_data_sets(run_dirs: Mapping[str, Path]) -> None:
    if not run_dirs:
        return
    records = {name: read_json(path / "run.json") for name, path in run_dirs.items()}
    table = readable_table(score_table.score_table(records, list(records))).T.to_string()
    write_text(NKAT / "data_sets.txt", table + "\n")
    save_figure(plots_vision.plot_scores(records, list(records)), NKAT / "scores.png")
    for name, record in records.items():
        save_figure(plots_vision.plot_training(record), NKAT / f"training_{name}.png")
    print(table)


def main() -> None:
    series = all_series()
    parts = [*series, "search"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--report", action="store_true", help="of what is there; trains nothing")
    arguments = parser.parse_args()
    for name in [] if arguments.report else arguments.only:
        if name != "search":
            print(f"{name}: {series[name].estimate()}", flush=True)
        if arguments.estimate:
            continue
        if name == "search":
            run_search(search_plan(), SEARCH, workers=profile()["search_workers"])
        else:
            series[name].run()
    if not arguments.estimate:
        report(series)


if __name__ == "__main__":
    main()
