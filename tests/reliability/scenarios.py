"""Every kind of run at its smallest: what it does in a folder, and what can be done with what it leaves there."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import nbformat
import optuna
import torch
from nbformat.v4 import new_code_cell, new_notebook
from optuna.distributions import CategoricalDistribution, FloatDistribution
from tqdm import tqdm

from newllm_core.batch.jobs import BatchError, Job
from newllm_core.batch.notebooks import run_batch
from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig, Settings
from newllm_core.config.schema import changed
from newllm_core.data import vocabulary as vocabulary_module
from newllm_core.experiment import measure as measure_module
from newllm_core.experiment.run import MODEL_FOLDER, load_model, run_experiment
from newllm_core.model import NewLLM
from newllm_core.runs import checkpoint as checkpoint_module
from newllm_core.runs.files import sha256_tensors
from newllm_core.runs.reproducibility import seed_everything
from newllm_core.studies import rows as rows_module
from newllm_core.studies.runners import ExperimentRunner, Folders, RowRunner
from newllm_core.studies.sweep import Sweep, grid
from newllm_core.studies.variants import LeaderboardVariant, variant
from newllm_core.vision.config import VisionDataConfig, VisionModelConfig, VisionTrainConfig, augmentation_pack
from newllm_core.vision.experiment import load_trained, run_vision
from newllm_core.vision.search.config import SearchConfig
from newllm_core.vision.search.plan import SearchPlan
from newllm_core.vision.search.run import run_search
from newllm_core.vision.settings import VisionSettings

RUN, DATA, TEXT = "run", "data", "my.jsonl"  # folders of results and of data, and the user's file, in a case's folder


@dataclass(frozen=True)
class Scenario:
    """
    Attributes:
        run: does it in a folder, with a seed, or goes on with it.
        load: the same, and then reads all that it left, as somebody who uses it; gives what was read.
    """

    name: str
    run: Callable[[Path, int], Any]
    load: Callable[[Path, int], Any]


def write_user_text(folder: Path) -> None:
    """Fourteen short conversations, the user's own file."""
    rows = [
        {"messages": [{"role": ("user", "assistant")[turn % 2], "content": _sentence(i, turn)} for turn in range(4)]}
        for i in range(14)
    ]
    (folder / TEXT).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _sentence(number: int, turn: int) -> str:
    return f"Why is number {number} {'so ' * (number % 4)}unlike {number * 7 + turn}?"


# --- the language line ------------------------------------------------------------------------------------------------

BASE = Settings(
    data=DataConfig(
        corpus="file", conversations_file=TEXT, num_samples=3, validation_range=(10, 12), selection_range=None,
        embeddings="random",
    ),
    model=ModelConfig(context_dim=12, embed_dim=8),
    phase1=Phase1Config(
        max_iterations=3, min_iterations=1, check_interval=1, batch_tokens=100, min_last_batch=20,
        effective_rank_tokens=100, validation_passes=2, context_source="previous_iteration",
    ),
    phase2=Phase2Config(max_epochs=2, patience=5, effective_batch_size=64, head="blocks"),
    run=RunConfig(num_threads=1, device="cpu"),
)  # fmt: skip
EXACT = changed(BASE, {"context_source": "exact", "context_noise": 0.1})
CONTRASTIVE = changed(
    BASE,
    {
        "objective": "contrastive", "prediction_streams": 2, "prediction_segment": 40, "readout": "sum",
        "unigram_bias": True, "dropout": 0.2, "schedule": "cosine", "unseen_sample": 50, "cache_weight": 0.2,
    },
)  # fmt: skip
REGRESSION = changed(BASE, {"objective": "regression", "prediction_streams": 2, "prediction_segment": 40})


def settings_in(base: Settings, folder: Path, seed: int) -> Settings:
    return changed(base, {"conversations_file": str(folder / TEXT), "seed": seed})


def _experiment(base: Settings, save_model: bool, folder: Path, seed: int) -> Any:
    settings = settings_in(base, folder, seed)
    return run_experiment(
        settings.data, settings.model, settings.phase1, settings.phase2, folder / RUN, run=settings.run,
        data_dir=folder / DATA, save_model=save_model,
    )  # fmt: skip


def _load_experiment(base: Settings, save_model: bool, folder: Path, seed: int) -> Any:
    record = _experiment(base, save_model, folder, seed)
    model = load_model(record, folder / RUN, folder / RUN / "phase1", folder / DATA).model
    saved = NewLLM.from_pretrained(folder / RUN / MODEL_FOLDER) if save_model else model
    return record, _weights(model), _weights(saved)


def _weights(model: torch.nn.Module) -> str:
    return sha256_tensors(*model.state_dict().values())


def _list(folder: Path, seed: int) -> Sweep:
    """Two that share Phase 1."""
    run = folder / RUN
    folders = Folders(run / "experiments", run / "phase1", run / "reference", folder / DATA)
    base = settings_in(BASE, folder, seed)
    return Sweep(base, grid({"max_epochs": [1, 2]}), [seed], ExperimentRunner(folders))


def _experiments(folder: Path, seed: int) -> Any:
    return _list(folder, seed).run()


def _load_experiments(folder: Path, seed: int) -> Any:
    sweep = _list(folder, seed)
    found = []
    for point, record in zip(sweep.points, sweep.run(), strict=True):
        place = sweep.runner._place(point)  # type: ignore[attr-defined]
        model = load_model(record, place.record_path.parent, place.files[1].parent, folder / DATA).model
        found.append((record, _weights(model)))
    return found


AT_MOST = {"context_dim": 12, "max_iterations": 2, "check_interval": 1, "max_epochs": 2, "adapter_rank": 2}
NETWORK = {"width": 8, "num_layers": 1, "num_heads": 2, "max_epochs": 2, "num_streams": 2, "segment_tokens": 32}


def _small(name: str) -> LeaderboardVariant:
    one = variant(name)
    changes = {key: min(value, AT_MOST[key]) if key in AT_MOST else value for key, value in one.changes.items()}
    return dataclasses.replace(one, changes=changes)


def _rows(names: tuple[str, ...], folder: Path, seed: int) -> Any:
    runner = RowRunner(folder / RUN, NETWORK, folder / DATA)
    base = settings_in(changed(BASE, {"max_iterations": 2}), folder, seed)
    return Sweep(base, [_small(name) for name in names], [seed], runner).run()


# --- the vision line --------------------------------------------------------------------------------------------------

COLOUR = VisionDataConfig(dataset="colour", image_size=16, num_train_images=48)
VISION = VisionSettings(
    data=COLOUR,
    model=VisionModelConfig(
        image_size=16, num_classes=3, width=8, depth=1, heads=2, patch=4, stem="off", colour_norm="off",
        attention_dropout=0.0,
    ),
    augmentation=augmentation_pack("off"),
    train=VisionTrainConfig(epochs=2, warmup_epochs=0, batch_size=16),
    run=RunConfig(num_threads=1),
)  # fmt: skip
SPACE = {
    "learning_rate": CategoricalDistribution((0.02, 1e-7)),
    "temperature": FloatDistribution(0.6, 1.0),
}


def _nkat(folder: Path, seed: int) -> Any:
    return run_vision(changed(VISION, {"seed": seed}), folder / RUN, images=_images(), show_progress=False)


@functools.cache
def _images() -> Any:
    from newllm_core.vision.data import load_image_data

    return load_image_data(COLOUR)


def _load_nkat(folder: Path, seed: int) -> Any:
    _nkat(folder, seed)
    model, record = load_trained(folder / RUN)
    return record, _weights(model)


def _search(folder: Path, seed: int) -> Any:
    base = dataclasses.replace(VISION, train=dataclasses.replace(VISION.train, epochs=1))
    search = SearchConfig(num_trials=3, gate_threshold=0.2, startup_trials=2, pruner="off", seed=seed)
    plan = SearchPlan(base, COLOUR, (), search, SPACE)
    return trials_of(run_search(plan, folder / RUN, show_progress=False))


def trials_of(summary: Mapping[str, Any]) -> Any:
    """What was tried and what came of it, in order, without the attempts that were interrupted."""
    finished = [trial for trial in summary["trials"] if trial["state"] in ("complete", "pruned")]
    kept = [{name: value for name, value in one.items() if name != "number"} for one in finished]
    return {"config": summary["config"], "trials": kept}


# --- notebooks --------------------------------------------------------------------------------------------------------


_NOTEBOOKS = "one.ipynb", "two.ipynb"


def write_user_notebooks(folder: Path) -> None:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name in _NOTEBOOKS:
        cells = [
            new_code_cell("note: int = 0\n", metadata={"tags": ["parameters"]}, id="a"),
            new_code_cell("import time\nfor part in range(3):\n    print(note * 7, part)\n    time.sleep(0.1)", id="b"),
            new_code_cell("note ** 2", id="c"),
        ]
        nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / name)


def _batch(folder: Path, seed: int) -> Any:
    jobs = [Job(folder / name, folder / RUN / name, {"note": seed}) for name in _NOTEBOOKS]
    outcomes = run_batch(jobs)
    failed = [outcome.error for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise BatchError("; ".join(str(one) for one in failed))
    return [cells_of(outcome.job.output) for outcome in outcomes]


def cells_of(path: Path) -> Any:
    """Sources and outputs, however what was printed reached the notebook in pieces."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        printed = "".join(line for output in cell.get("outputs", []) for line in output.get("text", []))
        others = [output for output in cell.get("outputs", []) if "text" not in output]
        cell["outputs"] = [printed, *others]
    return [{name: value for name, value in cell.items() if name not in ("metadata", "id")} for cell in cells]


def _scenarios() -> Iterator[Scenario]:
    bases = {"cvfp": BASE, "exact": EXACT, "contrastive": CONTRASTIVE, "regression": REGRESSION}
    for name, base in bases.items():
        saved = name == "exact"
        run, load = (functools.partial(work, base, saved) for work in (_experiment, _load_experiment))
        yield Scenario(name, run, load)
    yield Scenario("list", _experiments, _load_experiments)
    for name in ("best", "gru", "kneser-ney-5"):
        work = functools.partial(_rows, (name,))
        yield Scenario(f"row-{name}", work, work)
    yield Scenario("nkat", _nkat, _load_nkat)
    yield Scenario("search", _search, _search)
    yield Scenario("batch", _batch, _batch)


SCENARIOS: Mapping[str, Scenario] = {one.name: one for one in _scenarios()}


def prepare_process() -> None:
    """What every child starts from: one thread, checkpoints after every step, and what is read once for all."""
    os.environ["TQDM_DISABLE"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"
    # Its own lock is shared with every process that is forked: one that is killed while it holds it stops all others.
    tqdm.set_lock(RLock())
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    checkpoint_module.CHECKPOINT_SHARE = math.inf
    vocabulary_module.load_tokenizer = functools.cache(vocabulary_module.load_tokenizer)
    lengths = vocabulary_module.token_byte_lengths()
    for module in (measure_module, rows_module):
        module.token_byte_lengths = lambda vocabulary: lengths  # type: ignore[attr-defined]
    measure_module.SAMPLE_PROMPTS = ()  # type: ignore[assignment]
    seed_everything(0, 1)
    _images()
    _warm_up()


def _warm_up() -> None:
    """What the first run of a process imports, compiles and reads (half of its time at this size) is there for all."""
    for name in ("exact", "contrastive", "row-gru", "row-kneser-ney-5", "search"):
        with TemporaryDirectory() as folder:
            (Path(folder) / RUN).mkdir()
            (Path(folder) / DATA).mkdir()
            write_user_text(Path(folder))
            SCENARIOS[name].load(Path(folder), 0)
