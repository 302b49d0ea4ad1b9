"""python -m newllm_core generate FOLDER "prompt": what a saved model writes, as it writes it."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence

from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.config.schema import ConfigError
from newllm_core.config.values import read_as


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with a message and status 2 where something cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m newllm_core", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("generate", help="text from a model that was saved with save_pretrained")
    command.add_argument("model", metavar="FOLDER", help="the model's folder, or its repository on the Hub")
    command.add_argument("prompts", metavar="PROMPT", nargs="+", help="each is continued by itself")
    command.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    kinds = typing.get_type_hints(GenerationConfig)
    for spec in dataclasses.fields(GenerationConfig):
        flag = f"--{spec.name.replace('_', '-')}"
        command.add_argument(flag, dest=spec.name, metavar="VALUE", help=f"default: {spec.default}")
    given = vars(parser.parse_args(arguments))
    from newllm_core.runs.files import RunError  # imported here, like the model: torch takes seconds, --help does not

    try:
        values = {name: read_as(kinds[name], given[name]) for name in kinds if given[name] is not None}
        config = GenerationConfig(**values)
        _generate(given["model"], given["prompts"], given["stop"], config)
    except (ConfigError, RunError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _generate(name: str, prompts: Sequence[str], stop: Sequence[str], config: GenerationConfig) -> None:
    from newllm_core.model.llm import NewLLM

    model = NewLLM.from_pretrained(name)
    if len(prompts) == 1:
        sys.stdout.write(prompts[0])
        for _, piece in model.stream(prompts, stop=stop, **dataclasses.asdict(config)):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    texts = model.generate(prompts, stop=stop, **dataclasses.asdict(config))
    sys.stdout.write("\n\n".join(prompt + text for prompt, text in zip(prompts, texts)) + "\n")


if __name__ == "__main__":
    main()
