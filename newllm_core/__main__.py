"""What the project does from the command line.

python -m newllm_core generate FOLDER "prompt"                     what a saved model writes, as it writes it
python -m newllm_core run PROFILE -p NAME VALUE                    one run; under torchrun, on several devices
python -m newllm_core sweep FILE --engine local --workers 2        many runs: on this machine, Ray or SLURM
"""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from newllm_core.batch.engines import ENGINES, RETRIES
from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.config.profiles import take_parameters
from newllm_core.config.schema import ConfigError
from newllm_core.config.values import read_as

if typing.TYPE_CHECKING:
    from newllm_core.config.hyperparameters import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with a message and status 2 where something cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m newllm_core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    _add_generate(commands.add_parser("generate", help="text from a model that was saved with save_pretrained"))
    _add_sweep(commands.add_parser("sweep", help="the runs that a YAML file describes (docs/usage.md)"))
    run = commands.add_parser("run", help="one run of a profile, with parameters changed by -p NAME VALUE")
    run.add_argument("profile", type=Path, metavar="PROFILE", help="YAML: notebooks/profiles/; paths start there too")
    what = run.add_mutually_exclusive_group()
    what.add_argument("--phase1-only", action="store_true", help="end after Phase 1")
    what.add_argument("--variant", metavar="NAME", help="a row of the leaderboard, such as gru (studies/variants.py)")
    try:
        parameters, rest = take_parameters(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    given = parser.parse_args(rest)
    if parameters and given.command != "run":
        parser.error("-p: only of run")
    given.parameters = parameters
    from newllm_core.runs.files import RunError  # imported here, like the model: torch takes seconds, --help does not

    try:
        {"generate": _generate, "sweep": _sweep, "run": _run}[given.command](given)
    except (ConfigError, RunError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _add_generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="FOLDER", help="the model's folder, or its repository on the Hub")
    command.add_argument("prompts", metavar="PROMPT", nargs="+", help="each is continued by itself")
    command.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    for spec in dataclasses.fields(GenerationConfig):
        flag = f"--{spec.name.replace('_', '-')}"
        command.add_argument(flag, dest=spec.name, metavar="VALUE", help=f"default: {spec.default}")


def _generate(given: argparse.Namespace) -> None:
    from newllm_core.model.llm import NewLLM

    kinds, words = typing.get_type_hints(GenerationConfig), vars(given)
    values = {name: read_as(kinds[name], words[name]) for name in kinds if words[name] is not None}
    settings = dataclasses.asdict(GenerationConfig(**values))
    model, prompts = NewLLM.from_pretrained(given.model), given.prompts
    if len(prompts) == 1:
        sys.stdout.write(prompts[0])
        for _, piece in model.stream(prompts, stop=given.stop, **settings):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    texts = model.generate(prompts, stop=given.stop, **settings)
    sys.stdout.write("\n\n".join(prompt + text for prompt, text in zip(prompts, texts)) + "\n")


def _run(given: argparse.Namespace) -> None:
    from newllm_core.api import run
    from newllm_core.batch.sweep_file import profile_settings
    from newllm_core.config.hyperparameters import Settings
    from newllm_core.runs.world import joined_ranks

    settings = profile_settings(given.profile, Settings, given.parameters)
    with joined_ranks(settings.run.device) as world:
        if given.variant is None:
            report = run(settings, phase1_only=given.phase1_only).report()
        else:
            report = _row_report(settings, given.variant)
        if world.is_first:
            sys.stdout.write(report + "\n")


def _row_report(settings: "Settings", name: str) -> str:
    from newllm_core.studies.runners import RowRunner
    from newllm_core.studies.sweep import Point
    from newllm_core.studies.variants import variant

    chosen, runner = variant(name), RowRunner()
    point = Point(chosen, chosen.settings(settings))
    row = runner.run(point)
    return f"{point}: validation PPL {row['validation_perplexity']:.2f}, kept in {runner.key(point)}"


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="YAML: profile, axes, seeds")
    command.add_argument("--engine", choices=ENGINES, default="local", help="default: processes of this machine")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time; default: 1")
    command.add_argument("--retries", type=int, default=RETRIES, metavar="N", help="of a run whose process died")
    command.add_argument("--address", help="of a Ray cluster that is there; default: one is started here")
    command.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="of SLURM; local: without it")
    command.add_argument("--partition", help="of SLURM")
    command.add_argument("--minutes", type=int, default=60, help="of SLURM: that a run may take at once; default: 60")
    command.add_argument("--hours", type=float, default=float("inf"), help="refuse a sweep that may take longer")
    command.add_argument("--estimate", action="store_true", help="say what it would cost; run nothing")
    command.add_argument("--out", type=Path, help="of logs and summary; default: results/sweeps/ and the file's name")


def _sweep(given: argparse.Namespace) -> None:
    from newllm_core.batch.command import run

    sys.exit(run(given))


if __name__ == "__main__":
    main()
