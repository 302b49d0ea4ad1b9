"""The committed records of whole runs: `notes` and `cpu`, and their picture.

    python -m newllm_core.batch notebooks/03_phase2.ipynb -f notebooks/profiles/notes.yaml --out results/notebooks/notes
    python -m newllm_core.batch notebooks/03_phase2.ipynb -f notebooks/profiles/cpu.yaml --out results/notebooks/cpu
    python -m reproduce.reference_runs            # copies what these two left; nothing is trained here

Writes results/reference/runs/<profile>.json and results/reference/runs/phases.png.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.experiment.folder_names import run_folder_name
from newllm_core.report.style import PLAIN_COLOUR, VALIDATION_COLOUR, new_axes, save_figure
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json, write_json
from newllm_core.runs.folder import RECORD_NAME
from newllm_core.studies.runners import Folders

PROFILES = {
    "notes": (PLAIN_COLOUR, "notes: stale contexts, batches in order"),
    "cpu": (VALIDATION_COLOUR, "cpu profile: exact contexts, shuffled"),
}


def record_of(profile: str) -> dict[str, Any]:
    """The record of notebook 03 run with that profile. Raises FileNotFoundError when it has not been run."""
    settings = Settings.from_parameters(load_profile(PROJECT_ROOT / "notebooks" / "profiles" / f"{profile}.yaml"))
    record: dict[str, Any] = read_json(Folders().experiments / run_folder_name(settings) / RECORD_NAME)
    return record


def picture(records: dict[str, dict[str, Any]]) -> Figure:
    """Spectrum of the contexts before and after Phase 1, and perplexity per epoch of Phase 2."""
    figure, (spectrum, ppl) = new_axes(2, width=5, height=3.6)
    default = records["cpu"]
    phase1 = default["phase1"]
    width, rank = phase1["effective_rank"]["context_dim"], phase1["effective_rank"]
    for values, value, colour, name in (
        (phase1["spectrum"]["validation_before"], rank["validation_untrained"], PLAIN_COLOUR, "untrained"),
        (phase1["spectrum"]["validation"], rank["validation"], VALIDATION_COLOUR, "after Phase 1"),
    ):
        shares = [100 * one / sum(values) for one in values]
        spectrum.semilogy(range(1, width + 1), shares, color=colour, label=f"{name}: effective rank {value:.0f}")
    spectrum.set(
        xlabel="singular value, by size", ylabel="% of their sum", ylim=(1e-3, None),
        title=f"Phase 1: contexts spread over {width} dimensions",
    )  # fmt: skip
    for profile, record in records.items():
        colour, name = PROFILES[profile]
        epochs, best = record["phase2"]["epochs"], record["phase2"]["best"]
        numbers = [epoch["epoch"] for epoch in epochs]
        label = f"{name}: {best['validation_perplexity']:.0f}"
        ppl.semilogy(
            numbers, [epoch["validation_perplexity"] for epoch in epochs], "o-", ms=3, color=colour, label=label
        )
        ppl.plot(best["epoch"], best["validation_perplexity"], "o", ms=11, mfc="none", mec=colour)
    ppl.set(xlabel="epoch", ylabel="validation perplexity", title="Phase 2: next-token prediction (lower is better)")
    ppl.xaxis.set_major_locator(MaxNLocator(integer=True))
    ppl.yaxis.set_minor_formatter("{x:.0f}")
    ppl.yaxis.set_major_formatter("{x:.0f}")
    for axis in (spectrum, ppl):
        axis.legend(fontsize=8)
    figure.suptitle(
        f"{default['corpus']}, {default['embeddings']}, {default['tokens']['train']:,} training and "
        f"{default['tokens']['validation']:,} validation tokens, seed {default['seed']}", fontsize=9,
    )  # fmt: skip
    return figure


def main() -> None:
    records = {profile: record_of(profile) for profile in PROFILES}
    reference = REFERENCE_DIR
    for profile, record in records.items():
        write_json(reference / "runs" / f"{profile}.json", record)
    path: Path = save_figure(picture(records), reference / "runs" / "phases.png")
    print(f"{', '.join(records)}: {reference / 'runs'}; {path}")


if __name__ == "__main__":
    main()
