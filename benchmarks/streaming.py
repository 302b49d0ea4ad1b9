"""Text that does not fit into the memory budget: peak memory, perplexity and throughput of Phase 1 and Phase 2.

    python -m benchmarks.streaming            # the embedded corpus, 2.4 million tokens; about 12 minutes of one core
    python -m benchmarks.streaming --quick    # tiny, for tests

Each case is a process of its own, and is kept when it is done: the same command goes on after an interruption.
"""

import argparse
import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import forget_peak, in_fresh_process, machine_facts, peak_mb, resident_mb
from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig
from newllm_core.experiment.prepare import Prepared, prepare
from newllm_core.metrics.forgetting import FORGETTING_TOKENS, contraction_rate
from newllm_core.model import StreamEmbeddings
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.files import DATA_DIR, REFERENCE_DIR, RESULTS_DIR, read_json, write_json
from newllm_core.training.phase1 import train_phase1
from newllm_core.training.phase2 import train_phase2

# Narrow, since what is measured is memory that grows with the text: the model's own would hide it.
_MODEL = ModelConfig(context_dim=64, embed_dim=16)
_PHASE1 = Phase1Config(min_iterations=1, max_iterations=1, check_interval=1)
_PHASE2 = Phase2Config(max_epochs=1, effective_batch_size=2048, shuffle_segment=256, unigram_bias=True)
_RUN = RunConfig(num_threads=1)
_VALIDATION = 1000, 1020


@dataclass(frozen=True)
class Case:
    """``budget``: `memory_budget_gb`; a tenth of a GiB is less than the libraries take, so that all is in files.

    ``embed_dim``: at 16 the block hardly forgets, and carries every rounding through the text; at 64 it does.
    """

    name: str
    conversations: int
    budget: float | None
    embed_dim: int = _MODEL.embed_dim

    @property
    def model(self) -> ModelConfig:
        return dataclasses.replace(_MODEL, embed_dim=self.embed_dim)


CASES = (
    Case("300k in memory", 370, None),
    Case("300k, budget 1", 370, 1.0),
    Case("300k, all in files", 370, 0.1),
    Case("2.4M, budget 1", 3080, 1.0),
    Case("300k in memory, a block that forgets", 370, None, 64),
    Case("300k, all in files, a block that forgets", 370, 0.1, 64),
)


def measure_case(case: Case, data_dir: Path) -> dict[str, Any]:
    """In a fresh process: MB of 10⁶ bytes, seconds, CPU seconds, nats of the validation text."""
    run = dataclasses.replace(_RUN, memory_budget_gb=case.budget)
    data = DataConfig(num_samples=case.conversations, embeddings="random", validation_range=_VALIDATION)
    prepare(data, case.model, run, data_dir)  # the corpus is parsed once, and its tokens are kept
    return in_fresh_process(_trained, run.seed, run.num_threads, data, case.model, run, data_dir)


def _trained(data: DataConfig, model: ModelConfig, run: RunConfig, data_dir: Path) -> dict[str, Any]:
    prepared = prepare(data, model, run, data_dir)
    before, wall, cpu = resident_mb(), time.perf_counter(), time.process_time()
    forget_peak()
    figures = _both_phases(prepared)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    few = StreamEmbeddings(prepared.model, prepared.train_tokens)[0:FORGETTING_TOKENS]
    rate = contraction_rate(prepared.model.context_block, few)
    tokens = len(prepared.train_tokens)
    return {
        "memory_budget_gb": run.memory_budget_gb, "embed_dim": model.embed_dim, "tokens": tokens,
        "before_mb": before, **figures, "contraction_rate": rate,
        "peak_mb": max(figures["phase1_peak_mb"], figures["phase2_peak_mb"]), "seconds": seconds,
        "cpu_seconds": cpu_seconds, "tokens_per_cpu_second": tokens / cpu_seconds,
        "contexts_mb": tokens * _MODEL.context_dim * 4 / 1e6,
    }  # fmt: skip


def _both_phases(prepared: Prepared) -> dict[str, Any]:
    model, train, validation = prepared.model, prepared.train_tokens, prepared.validation_tokens
    with tempfile.TemporaryDirectory(dir=RESULTS_DIR) as folder:
        places = [CheckpointPlace(Path(folder) / name, {}) for name in ("phase1", "phase2")]
        phase1 = train_phase1(model, train, validation, _PHASE1, prepared.run.seed, places[0])
        phase1_peak = peak_mb()
        forget_peak()
        phase2 = train_phase2(model, phase1, train, validation, _PHASE2, prepared.run.seed, places[1])
        return {
            "phase1_peak_mb": phase1_peak, "phase2_peak_mb": peak_mb(),
            "validation_nats": phase2.validation.mean_nats,
            "validation_perplexity": phase2.best.validation_perplexity,
        }  # fmt: skip


def shows(cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the measured cases say together; those that are there."""
    found, (memory, budget, files, large, forgets, forgets_in_files) = {}, (cases.get(case.name) for case in CASES)
    if budget and large:
        found["peak_ratio_large_to_small"] = large["peak_mb"] / budget["peak_mb"]
    pairs = (("budget", memory, budget), ("files", memory, files), ("files_forgetting", forgets, forgets_in_files))
    for name, memory, other in pairs:
        if memory and other:
            found[f"perplexity_difference_{name}"] = other["validation_perplexity"] - memory["validation_perplexity"]
            found[f"throughput_{name}_to_memory"] = other["tokens_per_cpu_second"] / memory["tokens_per_cpu_second"]
    return found


def measure(path: Path, cases: tuple[Case, ...], data_dir: Path = DATA_DIR) -> dict[str, Any]:
    """All cases, those that ``path`` has not; it is written after each."""
    kept: dict[str, Any] = read_json(path)["cases"] if path.is_file() else {}
    for case in cases:
        if case.name not in kept:
            kept[case.name] = measure_case(case, data_dir)
            settings = {name: dataclasses.asdict(part) for name, part in _SETTINGS.items()}
            write_json(path, {"cases": kept, "shows": shows(kept), "machine": machine_facts(), "settings": settings})
            print(case.name, kept[case.name], flush=True)
    return read_json(path)


_SETTINGS: dict[str, Any] = {"model": _MODEL, "phase1": _PHASE1, "phase2": _PHASE2, "run": _RUN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    folder = RESULTS_DIR / "streaming_quick" if given.quick else REFERENCE_DIR
    small = tuple(dataclasses.replace(case, conversations=2 if "300k" in case.name else 4) for case in CASES)
    RESULTS_DIR.mkdir(parents=True, exist_ok=True)
    print(measure(given.output or folder / "streaming.json", small if given.quick else CASES)["shows"])


if __name__ == "__main__":
    main()
