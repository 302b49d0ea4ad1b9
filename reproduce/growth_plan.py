"""Which rows `reproduce.growth` is about: contenders, sizes and seeds, each configured by the rule of size."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from newllm_core.config.hyperparameters import DataConfig, Settings
from newllm_core.config.schema import ConfigError, changed
from newllm_core.data import load_token_streams
from newllm_core.runs.files import DATA_DIR, PROJECT_ROOT, REFERENCE_DIR, read_json
from newllm_core.studies.runners import RowRunner
from newllm_core.studies.size_rule import size_changes
from newllm_core.studies.sweep import Record, Sweep
from newllm_core.studies.variants import variant
from reproduce.controls import REFERENCE_NAME, of_file
from reproduce.controls import ROWS as LEADERBOARD
from reproduce.reference_experiments import centre

ROWS = REFERENCE_DIR / "growth"
NAMES = ("kneser-ney-5", REFERENCE_NAME, "gpt", "best", "notes", "untrained")
USUAL = NAMES[:-1]  # that run where none are named
# Doubled from 10. The corpus has 3,101 conversations, of which 3,061 are not held out: no larger double would fit.
SIZES = tuple(10 * 2**step for step in range(9))
SEEDS = (42, 43, 44)
# The notes' configuration takes an hour of a core at 320 conversations, and twice that at each next size.
LARGEST = {"notes": 320}


@cache
def _centre() -> Settings:
    return centre()


def base(samples: int, file: Path | None = None) -> Settings:
    """As `reproduce.controls`: one thread, a selection text of its own; the notes' variant keeps its own rule."""
    return changed(_centre(), {"num_samples": samples, "selection_range": DataConfig.selection_range, **of_file(file)})


def training_tokens(name: str, samples: int, file: Path | None = None) -> int:
    """Of ``samples`` conversations without those that this variant holds out. Raises DataError for too many."""
    return load_token_streams(variant(name).settings(base(samples, file)).data, DATA_DIR).train.num_tokens


def sizes_of(name: str, asked: Sequence[int] | None = None) -> list[int]:
    """Those asked for, else as far as the contender goes."""
    return list(asked or [size for size in SIZES if size <= LARGEST.get(name, SIZES[-1])])


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where rows and report are: ``folder`` None: where they are committed. ``file``: another corpus than the embedded
    one, whose rows are never committed: ConfigError without a folder."""

    folder: Path | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.folder is None:
            raise ConfigError(f"rows of another corpus ({self.file}): expected a folder of their own, given none")

    @property
    def analysis(self) -> Path:
        return (self.folder or REFERENCE_DIR) / "growth.json"

    @property
    def picture(self) -> Path:
        return self.analysis.with_suffix(".png")

    @property
    def page(self) -> Path:
        return PROJECT_ROOT / "docs" / "growth.md" if self.folder is None else self.folder / "growth.md"

    def rows_folder(self, samples: int) -> Path:
        """At the leaderboard's size a row is the leaderboard's: trained once, whoever needs it first."""
        if self.folder is not None:
            return self.folder / "rows"
        return LEADERBOARD if samples == _centre().data.num_samples else ROWS

    def sweep(self, name: str, samples: int, tokens: int, seeds: Sequence[int]) -> Sweep:
        """One contender at one size, as the rule of size configures it for ``tokens`` of training text."""
        one, changes = variant(name), size_changes(name, tokens)
        is_network = one.kind == "network"
        if not is_network:
            one = dataclasses.replace(one, changes={**one.changes, **changes})
        return Sweep(base(samples, self.file), [one], seeds, self._runner(samples, changes if is_network else {}))

    def _runner(self, samples: int, network_changes: dict[str, object]) -> RowRunner:
        return RowRunner(self.rows_folder(samples), network_changes)

    def rows(self) -> list[Record]:
        """Those that this plan would read again instead of running them: rows of another rule, or of what a variant
        was before, are none."""
        folders = dict.fromkeys(map(self.rows_folder, SIZES))
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        return [row for path in paths if self._is_planned(row := read_json(path), path)]

    def _is_planned(self, row: Record, path: Path) -> bool:
        name = row["variant"]["name"]
        if name not in NAMES:
            return False
        samples, seed = row["config"]["data"]["num_samples"], row["seed"]
        sweep = self.sweep(name, samples, row["tokens"]["train"], SEEDS[:1] if seed is None else [seed])
        return sweep.runner.key(sweep.points[0]) == path
