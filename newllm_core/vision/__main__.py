"""One vision run, or a search, from the command line.

    python -m newllm_core.vision run cifar10-jpeg --model quick --augmentation rescue -p epochs 10 -p warmup_epochs 1
    python -m newllm_core.vision search cifar10-jpeg mnist-5k fashion-mnist --profile quick --model quick --workers 2

Both go on where they were interrupted. Parameters are the fields of VisionSettings, by their flat names.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from newllm_core.config.profiles import take_parameters
from newllm_core.config.schema import ConfigError, changed, parameter_fields, unknown_name_message
from newllm_core.data.errors import DataError
from newllm_core.runs.files import RunError
from newllm_core.vision.config import (
    AUGMENTATION_PACKS,
    DATASET_NAMES,
    PRESETS,
    VisionDataConfig,
    augmentation_pack,
    model_preset,
)
from newllm_core.vision.experiment import VISION_DIR, Record, run_vision
from newllm_core.vision.search.config import SEARCH_PROFILES, SEARCH_SPACES, search_profile
from newllm_core.vision.search.journal import SearchError
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.search.run import run_search
from newllm_core.vision.settings import VisionSettings, for_data_set, of_data_set, run_name


def command_settings(arguments: argparse.Namespace) -> VisionSettings:
    """The configuration that a command asks for, on its first data set. Raises ConfigError."""
    presets = [] if arguments.model == "full" else [arguments.model]
    base = VisionSettings(model=model_preset(*presets), augmentation=augmentation_pack(arguments.augmentation))
    given, known = arguments.parameters, parameter_fields(VisionSettings)
    for name in given:
        if name not in known:
            raise ConfigError(unknown_name_message("parameter", name, known))
    # The data's first: what the model must fit depends on them.
    of_data = {name for name, (section, _) in known.items() if section == "data"}
    start = VisionSettings(data=VisionDataConfig(dataset=arguments.data_sets[0]))
    data = changed(start, {name: value for name, value in given.items() if name in of_data}).data
    fitted = for_data_set(base, data)
    return changed(fitted, {name: value for name, value in given.items() if name not in of_data})


def run_lines(record: Record, run_dir: Path) -> list[str]:
    """What a run reached, with its counts and intervals."""
    lines = [f"{record['data']['title']}, {record['parameters']['total']:,} parameters, seed {record['seed']}"]
    for part in ("selection", "test"):
        figures = record[part]
        low, high = figures["accuracy_interval"]
        lines.append(
            f"{part:10} accuracy {figures['accuracy']:.4f} ({low:.4f} … {high:.4f}, 95 %), "
            f"{figures['correct']}/{figures['images']}"
        )
    lines += [
        f"{name:10} {scores['test']:.4f} of {scores['maximum']:.4f}" for name, scores in record["tpe_score"].items()
    ]
    return [*lines, f"{record['seconds']:.0f} seconds; record in {run_dir}"]


def _run(arguments: argparse.Namespace) -> None:
    settings = command_settings(arguments)
    run_dir = arguments.folder or VISION_DIR / run_name(settings)
    print("\n".join(run_lines(run_vision(settings, run_dir), run_dir)))


def _search(arguments: argparse.Namespace) -> None:
    base = command_settings(arguments)
    search = search_profile(arguments.profile)
    if arguments.trials is not None:
        search = dataclasses.replace(search, num_trials=arguments.trials)
    # The split is common to all; how many images there are, and of what size, is each data set's own.
    split = dataclasses.replace(base.data, num_train_images=None, image_size=None)
    others = tuple(of_data_set(split, name) for name in arguments.data_sets[1:])
    plan = SearchPlan(base, base.data, others, search, SEARCH_SPACES[arguments.space])
    folder = arguments.folder or VISION_DIR / f"search-{arguments.profile}"
    summary = run_search(plan, folder, workers=arguments.workers)
    print(f"{summary['counts']}; best: {summary['best'] or 'no trial passed the gate'}; record in {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m newllm_core.vision", description="NKAT vision runs and searches")
    commands = parser.add_subparsers(required=True)
    run, search = commands.add_parser("run", help="train one model"), commands.add_parser("search", help="search")
    run.add_argument("data_sets", nargs=1, choices=DATASET_NAMES, metavar="data_set")
    search.add_argument(
        "data_sets", nargs="+", choices=DATASET_NAMES, metavar="data_set", help="first: stage A, the gate"
    )
    search.add_argument("--profile", choices=SEARCH_PROFILES, default="full")
    search.add_argument("--space", choices=SEARCH_SPACES, default="full")
    search.add_argument("--trials", type=int, help="instead of the profile's number")
    search.add_argument("--workers", type=int, default=1)
    for command, action in ((run, _run), (search, _search)):
        command.add_argument("--model", choices=("full", *PRESETS), default="full")
        command.add_argument("--augmentation", choices=AUGMENTATION_PACKS, default="baseline")
        command.add_argument("--folder", type=Path, help="default: below results/vision")
        command.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter (may be given several times)")
        command.set_defaults(action=action)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 1, with one sentence, for what cannot be run as asked."""
    try:
        parameters, rest = take_parameters(sys.argv[1:] if words is None else words)
        arguments = _parser().parse_args(rest, argparse.Namespace(parameters=parameters))
        arguments.action(arguments)
    except (ConfigError, DataError, RunError, SearchError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
