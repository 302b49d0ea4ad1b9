"""How many tokens does an effective rank need? Plain, calibrated, and without bias, with intervals, on a trained block.

    python -m reproduce.rank_of_few_tokens       # about two minutes; trains a block first if none is there

Contexts of the training stream of the `cpu` profile (C = 500, seed 42): the rank of the first n tokens against that of
30,000. Writes results/reference/rank_of_few_tokens.json and .png.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from newllm_core.experiment.folder_names import phase1_folder_name
from newllm_core.experiment.prepare import prepare
from newllm_core.experiment.run import run_phase1
from newllm_core.metrics.few_tokens import few_token_rank
from newllm_core.metrics.spectrum import spectrum_figures
from newllm_core.report.style import MARK_COLOUR, TRAIN_COLOUR, VALIDATION_COLOUR, new_axes, save_figure, source_line
from newllm_core.runs.files import RESULTS_DIR, write_json
from reproduce.reference_experiments import REFERENCE, centre

TOKENS = (500, 1000, 2000, 5000, 10_000, 30_000)
REFERENCE_TOKENS = 30_000
PLACES = 5  # other stretches of 2,000 tokens, spread over the 30,000
FEW = 2000


def trained_contexts() -> tuple[torch.Tensor, dict[str, Any]]:
    """Contexts `[N, C]` of the training stream by the block of the `cpu` profile, and what describes it."""
    settings = centre()
    prepared = prepare(settings.data, settings.model, settings.run)
    name = phase1_folder_name(settings.data, settings.model, settings.phase1, settings.run)
    result, record = run_phase1(prepared, settings.phase1, RESULTS_DIR / "phase1" / name)
    described = {
        "corpus": settings.data.corpus, "embeddings": settings.data.embeddings, "seed": settings.run.seed,
        "tokens": {"train": len(prepared.train_tokens)}, "config": record["config"],
    }  # fmt: skip
    return result.train_contexts[:, -1], described


def measure(contexts: torch.Tensor, num_tokens: int, first: int = 0) -> dict[str, Any]:
    """Uncentred effective ranks of ``num_tokens`` tokens from ``first``, % of C, with intervals and seconds."""
    part, width = contexts[first : first + num_tokens], contexts.shape[1]
    few_token_rank(part, num_resamples=0)  # the noise's own ranks are computed once per shape, and kept
    began = time.perf_counter()
    few_token_rank(part, num_resamples=0)
    seconds = time.perf_counter() - began
    row: dict[str, Any] = {"tokens": num_tokens, "first": first, "point_estimate_seconds": seconds}
    found = few_token_rank(part)
    row["few_token_rank"] = 100 * found.value / width
    row["few_token_rank_interval"] = found.interval and [100 * end / width for end in found.interval]
    for figure in spectrum_figures(part):
        if figure.name in ("effective_rank", "calibrated_effective_rank") and not figure.centred:
            assert figure.value is not None
            row[figure.name] = 100 * figure.value / width
            row[f"{figure.name}_interval"] = figure.interval and [100 * end / width for end in figure.interval]
    return row


def plot(rows: Sequence[dict[str, Any]], places: Sequence[dict[str, Any]], source: str) -> Figure:
    figure, (axis,) = new_axes(1, width=7, height=4)
    for name, colour, label in (
        ("effective_rank", TRAIN_COLOUR, "effective rank of the first n tokens"),
        ("calibrated_effective_rank", MARK_COLOUR, "calibrated: over white noise of the same shape"),
        ("few_token_rank", VALIDATION_COLOUR, "calibrated, and without its bias by halves"),
    ):
        for row in rows:
            low, high = row[f"{name}_interval"]
            axis.vlines(row["tokens"], low, high, color=colour, lw=2)
        axis.plot([row["tokens"] for row in rows], [row[name] for row in rows], "o-", color=colour, label=label)
    final = rows[-1]["effective_rank"]
    axis.axhspan(
        final - 1,
        final + 1,
        color="grey",
        alpha=0.2,
        label=f"effective rank of {REFERENCE_TOKENS:,}: {final:.1f} ± 1 point",
    )
    axis.plot(
        [FEW] * len(places), [row["few_token_rank"] for row in places], ".", color="black", ms=6, zorder=4,
        label=f"the same, {len(places)} other stretches of {FEW:,}",
    )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([row["tokens"] for row in rows], [f"{row['tokens']:,}" for row in rows])
    axis.minorticks_off()
    axis.set(xlabel="tokens measured", ylabel="% of C", title="Effective rank against the tokens it is measured on")
    axis.legend(fontsize=8)
    figure.suptitle(source, fontsize=9)
    return figure


def main() -> None:
    contexts, described = trained_contexts()
    rows = [measure(contexts, tokens) for tokens in TOKENS]
    step = (REFERENCE_TOKENS - FEW) // PLACES
    places = [measure(contexts, FEW, first=(number + 1) * step) for number in range(PLACES)]
    write_json(REFERENCE / "rank_of_few_tokens.json", {**described, "first_tokens": rows, "other_stretches": places})
    path = save_figure(plot(rows, places, source_line(described)), REFERENCE / "rank_of_few_tokens.png")
    for row in [*rows, *places]:
        low, high = row["few_token_rank_interval"]
        print(
            f"{row['tokens']:>7,} tokens from {row['first']:>6,}: ER {row['effective_rank']:.2f} %, calibrated "
            f"{row['calibrated_effective_rank']:.2f} %, without bias {row['few_token_rank']:.2f} % "
            f"[{low:.2f}, {high:.2f}], {row['point_estimate_seconds']:.3f} s"
        )
    print(path)


if __name__ == "__main__":
    main()
