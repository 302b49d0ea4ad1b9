"""What a run takes on other machines and longer texts: docs/scale.md and its picture, from measured constants.

    python -m reproduce.scale        # seconds; nothing is measured

Constants are of `results/reference/benchmark_core.json` (two cores) and `gpu.json` (one GPU), those of engines of
`engines.json`. Other GPUs are not measured: their seconds lie between what their arithmetic and what their memory makes
of the measured GPU's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from matplotlib.figure import Figure

from newllm_core.config.hyperparameters import Phase2Config
from newllm_core.report.style import LINE_COLOURS, new_axes, save_figure
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json, write_text

PAGE, PICTURE = PROJECT_ROOT / "docs/scale.md", REFERENCE_DIR / "scale.png"
TEMPLATE = PROJECT_ROOT / "reproduce/scale_template.md"
TOKENS = (10**6, 10**7, 10**8, 25 * 10**7)
ITERATIONS, EPOCHS = 20, 6  # of a run: Phase 1 with exact contexts, Phase 2
BATCH = Phase2Config().effective_batch_size
CONTEXT_DIM, EMBED_DIM = 500, 768  # of the GPU's figures; the two cores' are of E = 384
FLOAT = 4  # bytes
# TFLOP/s in bfloat16 (dense) and float32, TB/s, by the maker's data sheets: of the measured card, and of others.
MEASURED_GPU = (989.0, 67.0, 4.8)
OTHER_GPUS = {"L4": (121.0, 30.3, 0.3), "H100": (989.0, 67.0, 3.35)}
# Of a sum over ranks: bytes/s of a rank, and seconds whatever its size. Assumed, not measured.
INSIDE_NODE, BETWEEN_NODES = (4.5e11, 2e-5), (5e10, 5e-5)
_HOUR = 3600.0


@dataclass(frozen=True)
class Costs:
    """Seconds of a device: contexts and an iteration a token, and a step of Phase 2."""

    contexts: float
    iteration: float
    step: float

    def run_seconds(self, tokens: float) -> float:
        """All iterations, the contexts that Phase 2 reads, and all epochs."""
        return tokens * (ITERATIONS * self.iteration + self.contexts) + EPOCHS * self.step * tokens / BATCH

    def times(self, factor: float) -> "Costs":
        return Costs(factor * self.contexts, factor * self.iteration, factor * self.step)


def two_cores(size: dict[str, Any]) -> Costs:
    """Of one measured length of part f."""
    seconds, tokens = size["seconds"], size["tokens"]
    return Costs(
        seconds["context_cache"] / tokens, seconds["phase1_iteration"] / tokens,
        BATCH * seconds["phase2_epoch"] / tokens,
    )  # fmt: skip


def one_gpu(speed: dict[str, Any]) -> Costs:
    contexts, iteration = speed["contexts"], speed["iteration"]
    return Costs(
        contexts["exact"]["median_ms"] / 1e3 / contexts["tokens"],
        iteration["ways"]["project, exact"]["median_ms"] / 1e3 / iteration["tokens"],
        speed["phase2_step"]["ms_per_step"]["project"] / 1e3,
    )


def factors(name: str) -> tuple[float, float]:
    """Between which a GPU's seconds are, over those of the measured one: bound by what it is best at, and worst."""
    ratios = [measured / other for measured, other in zip(MEASURED_GPU, OTHER_GPUS[name], strict=True)]
    return min(ratios), max(ratios)


def ranks_seconds(costs: Costs, tokens: float, ranks: int, *, whole_steps: bool) -> float:
    """Of ``ranks`` GPUs, where a part of a batch takes its share of a step, or (``whole_steps``) as long as all of it.

    Phase 1 sums its gradients once an iteration, Phase 2 once a step.
    """
    sums = [_sum_seconds(size, ranks) for size in (block_bytes(), readout_bytes())]
    share = 1.0 if whole_steps else 1 / ranks
    phase1 = ITERATIONS * (tokens * costs.iteration / ranks + sums[0]) + tokens * costs.contexts / ranks
    return phase1 + EPOCHS * tokens / BATCH * (costs.step * share + sums[1])


def _sum_seconds(size: int, ranks: int) -> float:
    rate, latency = INSIDE_NODE if ranks <= 8 else BETWEEN_NODES
    return 2 * (ranks - 1) / ranks * size / rate + latency * math.ceil(math.log2(ranks))


def block_bytes() -> int:
    """Gradients of the ContextBlock, about."""
    return FLOAT * CONTEXT_DIM * (CONTEXT_DIM + EMBED_DIM)


def readout_bytes() -> int:
    """Gradients of the TokenBlock, about."""
    return FLOAT * EMBED_DIM * (CONTEXT_DIM + EMBED_DIM)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def size_text(num_bytes: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 72 * _HOUR else f"{seconds / _HOUR / 24:.0f} days"


def between(low: float, high: float) -> str:
    return f"{hours(low)} – {hours(high)}"


def seconds_by_device(cores: Costs, gpu: Costs) -> dict[str, list[tuple[float, float]]]:
    """Per device and length: between which seconds a run is."""
    found = {"two cores": [(cores.run_seconds(n),) * 2 for n in TOKENS]}
    for name in OTHER_GPUS:
        best, worst = (gpu.times(factor) for factor in factors(name))
        found[f"one {name}"] = [(best.run_seconds(n), worst.run_seconds(n)) for n in TOKENS]
        for ranks in (8, 64) if name == "H100" else ():
            found[f"{ranks} {name}"] = [
                (
                    ranks_seconds(best, n, ranks, whole_steps=False),
                    ranks_seconds(worst, n, ranks, whole_steps=True),
                )
                for n in TOKENS
            ]
    found["one H200 (measured constants)"] = [(gpu.run_seconds(n),) * 2 for n in TOKENS]
    return found


def plot(seconds: dict[str, list[tuple[float, float]]], sizes: Sequence[dict[str, Any]]) -> Figure:
    figure, (axis,) = new_axes(1, width=8.5, height=4.2)
    for (name, spans), colour in zip(seconds.items(), LINE_COLOURS, strict=False):
        low, high = ([span[end] / _HOUR for span in spans] for end in (0, 1))
        axis.plot(TOKENS, low, color=colour, label=name)
        if low != high:
            axis.plot(TOKENS, high, color=colour)
            axis.fill_between(TOKENS, low, high, color=colour, alpha=0.15)
    axis.plot(
        [size["tokens"] for size in sizes],
        [two_cores(size).run_seconds(size["tokens"]) / _HOUR for size in sizes],
        "o", color=LINE_COLOURS[0], label="two cores, measured at that length",
    )  # fmt: skip
    axis.set(
        xscale="log", yscale="log", xlabel="training tokens, N", ylabel="hours of a run",
        title=f"{ITERATIONS} iterations with exact contexts, {EPOCHS} epochs of {BATCH}-token steps",
    )  # fmt: skip
    for value, label in ((1, "an hour"), (24, "a day"), (24 * 30, "a month")):
        axis.axhline(value, color="grey", lw=0.8, ls=":")
        axis.annotate(label, (sizes[0]["tokens"], value), ha="left", va="bottom", fontsize=8, color="dimgrey")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def checked(sizes: Sequence[dict[str, Any]]) -> str:
    """Each longer text as predicted from the constants of 100,000 tokens."""
    basis = two_cores(next(size for size in sizes if size["tokens"] == 100_000))
    rows = []
    for size in sizes:
        measured, predicted = two_cores(size).run_seconds(size["tokens"]), basis.run_seconds(size["tokens"])
        part = " (a tenth of the epoch timed)" if size["epoch_is_extrapolated"] else ""
        rows.append([f"{size['tokens']:,}{part}", hours(measured), hours(predicted), f"{measured / predicted:.2f}"])
    return table(["tokens", "measured", "predicted", "measured over predicted"], rows)


def storage(bytes_per_token: float) -> str:
    rows = []
    for n in TOKENS:
        contexts = n * CONTEXT_DIM * FLOAT
        rows.append([
            f"{n:,}", size_text(n * bytes_per_token), size_text(8 * n), size_text(contexts), size_text(contexts / 64),
        ])  # fmt: skip
    header = ["tokens", "text", "tokens in memory", "contexts, C = 500", "contexts of one of 64 ranks"]
    return table(header, rows)


def predicted_study(study: dict[str, Any], speed: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the GPU study's predictive Phase 1: by its passes' steps alone, and measured."""
    row = study["best"]["study"]["best, 2560 conversations"]
    passes = speed["predictive_step"]
    steps = row["iterations_kept"] * row["train_tokens"] * passes["steps"] / passes["tokens"]
    return steps * passes["ms_per_step"]["project"] / 1e3, row["phase1_seconds"]


def engines(parts: dict[str, Any]) -> str:
    """A sweep of the same short runs on each engine, against one process that does them one after the other."""
    local, ray, slurm = parts["local"], parts["ray"], parts["slurm"]
    ways = {
        "local, one worker": (local["workers_1"], local["overhead_seconds_per_run"]),
        "local, two workers": (local["workers_2"], None),
        "Ray, one worker": (ray["workers_1"], ray["overhead_seconds_per_run"]),
        "Ray, two nodes, one killed": (ray["one_of_two_nodes_killed"], None),
        "submitit's local executor": (slurm["local_executor"], slurm["overhead_seconds_per_run"]),
        "SLURM of one node": (slurm.get("slurm"), slurm.get("overhead_seconds_per_run_of_slurm")),
        "SLURM, preempted once": (slurm.get("slurm_preempted"), None),
    }
    rows = [
        [
            name, f"{found['seconds']:.0f} s", "—" if more is None else f"{more:.1f} s", f"{found['finished']}",
            f"{found['lost']}", f"{found['run_twice']}", f"{found['tries']}", "yes" if found["identical"] else "no",
        ]
        for name, (found, more) in ways.items()
        if found is not None
    ]  # fmt: skip
    header = ["engine", "sweep", "a run more", "finished", "lost", "done twice", "begun", "identical records"]
    return table(header, rows)


def page() -> str:
    core, gpu_record = read_json(REFERENCE_DIR / "benchmark_core.json"), read_json(REFERENCE_DIR / "gpu.json")
    study = read_json(REFERENCE_DIR / "gpu_study.json")
    sweeps = read_json(REFERENCE_DIR / "engines.json")
    batch = sweeps["parts"]["notebooks"]
    part, speed = core["parts"]["f"], gpu_record["speed"]
    sizes = part["figures"]["sizes"]
    cores, gpu = two_cores(sizes[-1]), one_gpu(speed)
    seconds = seconds_by_device(cores, gpu)
    rows = [
        [name, *(hours(low) if low == high else between(low, high) for low, high in spans)]
        for name, spans in seconds.items()
    ]
    by_steps, measured = predicted_study(study, speed)
    row = study["best"]["study"]["best, 2560 conversations"]
    bytes_per_token = math.log2(row["validation_perplexity"]) / row["bits_per_byte"]
    machine = part["machine"]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        iterations=ITERATIONS, epochs=EPOCHS, batch=BATCH, context_dim=CONTEXT_DIM,
        hours=table(["machine", *(f"{n:,} tokens" for n in TOKENS)], rows),
        cpu=machine["cpu"], cpu_commit=machine["commit"][:7], gpu=gpu_record["machine"]["gpu"],
        gpu_commit=gpu_record["commit"], cpu_contexts=f"{1e6 * cores.contexts:.1f}",
        cpu_iteration=f"{1e6 * cores.iteration:.1f}", cpu_step=f"{1e3 * cores.step:.0f}",
        gpu_contexts=f"{1e9 * gpu.contexts:.0f}", gpu_iteration=f"{1e9 * gpu.iteration:.0f}",
        gpu_step=f"{1e3 * gpu.step:.2f}", checked=checked(sizes),
        inside=f"{INSIDE_NODE[0] / 1e9:.0f}", inside_latency=f"{1e6 * INSIDE_NODE[1]:.0f}",
        between=f"{BETWEEN_NODES[0] / 1e9:.0f}", between_latency=f"{1e6 * BETWEEN_NODES[1]:.0f}",
        study_tokens=f"{row['train_tokens']:,}", passes=row["iterations_kept"], by_steps=f"{by_steps:.0f}",
        measured=f"{measured:.0f}", ratio=f"{measured / by_steps:.1f}", storage=storage(bytes_per_token),
        context_bytes=f"{CONTEXT_DIM * FLOAT:,}", bytes_per_token=f"{bytes_per_token:.1f}",
        block_bytes=size_text(block_bytes()), readout_bytes=size_text(readout_bytes()),
        bytes_a_token=size_text(readout_bytes() / BATCH), sum_8=f"{1e3 * _sum_seconds(readout_bytes(), 8):.2f}",
        sum_64=f"{1e3 * _sum_seconds(readout_bytes(), 64):.2f}",
        engines=engines(sweeps["parts"]), engine_runs=sweeps["parts"]["plain"]["runs"],
        plain_seconds=f"{sweeps['parts']['plain']['seconds']:.0f}", engine_cpu=sweeps["machine"]["cpu"],
        engine_commit=sweeps["machine"]["commit"][:7],
        two_workers=f"{sweeps['parts']['local']['speedup_of_two_workers']:.2f}",
        notebooks=batch["runs"], at_a_time=batch["at_a_time"], before_the_kill=batch["finished_before_the_kill"],
        collisions=batch["collisions"], lost_notebooks=batch["lost"],
    )  # fmt: skip


def main() -> None:
    core, gpu_record = read_json(REFERENCE_DIR / "benchmark_core.json"), read_json(REFERENCE_DIR / "gpu.json")
    sizes = core["parts"]["f"]["figures"]["sizes"]
    save_figure(plot(seconds_by_device(two_cores(sizes[-1]), one_gpu(gpu_record["speed"])), sizes), PICTURE)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
