"""The committed records of notebooks 04 and 05 at the `cpu` profile, with their tables and pictures.

    python -m reproduce.reference_experiments            # trains what is missing: see --estimate
    python -m reproduce.reference_experiments --estimate # runs, finished runs, hours; trains nothing
    python -m reproduce.reference_experiments --report   # tables and pictures of what is there; trains nothing
    python -m reproduce.reference_experiments --only scaling --seeds 42 43 44 45    # a further seed
    python -m reproduce.reference_experiments --only diversity --phase1-only        # effective ranks, no perplexity

A finished record is committed under results/reference/experiments, so a later run, with more seeds, sizes or losses,
computes only what is new. Tables and pictures go to results/reference/scaling and results/reference/diversity.
Figures of runs depend on their number of threads: one here, so that two sweeps can run side by side on two cores.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from newllm_core.comparison import paired as diversity
from newllm_core.comparison.tables import readable_table
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import changed
from newllm_core.experiment.loss_cost import loss_cost
from newllm_core.losses import DIVERSITY_ALGORITHMS
from newllm_core.report import comparison as plots_diversity
from newllm_core.report import scaling as plots_scaling
from newllm_core.report.reference import DIVERSITY_ITERATIONS
from newllm_core.report.style import save_figure
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json, write_json, write_text
from newllm_core.scaling import analysis as scaling_analysis
from newllm_core.scaling.law import sample_sizes
from newllm_core.studies.runners import ExperimentRunner
from newllm_core.studies.sweep import Axes, Record, Sweep, grid, one_axis_at_a_time

REFERENCE = REFERENCE_DIR
SEEDS = [42, 43, 44]
CONTEXT_DIMS, WEIGHTS = [200, 350, 768], [0.5, 0.99]
NUM_THREADS = 1


def centre() -> Settings:
    profile = load_profile(PROJECT_ROOT / "notebooks" / "profiles" / "cpu.yaml")
    # The committed runs are older than rounded products, which only some CPUs gain by.
    return changed(Settings.from_parameters(profile), {"num_threads": NUM_THREADS, "products": "float32"})


def scaling_sweep(seeds: Sequence[int], phase1_only: bool) -> Sweep:
    """Notebook 04's: every size of the profile with every seed."""
    base = centre()
    scaling = base.scaling
    sizes = sample_sizes(scaling.init_samples, scaling.multiplier, scaling.window_size, scaling.num_windows)
    return Sweep(base, grid({"num_samples": sizes}), seeds, ExperimentRunner(phase1_only=phase1_only))


def diversity_sweep(seeds: Sequence[int], phase1_only: bool) -> Sweep:
    """Notebook 05's: every algorithm with every seed."""
    variants = grid({"diversity_algorithm": list(DIVERSITY_ALGORITHMS)})
    base = changed(centre(), {"max_iterations": DIVERSITY_ITERATIONS})
    return Sweep(base, variants, seeds, ExperimentRunner(phase1_only=phase1_only))


def axes_sweep(seeds: Sequence[int], phase1_only: bool) -> Sweep:
    """Width and weight around the centre, one seed, always Phase 1 alone."""
    axes: Axes = {"context_dim": CONTEXT_DIMS, "dist_reg_weight": WEIGHTS}
    return Sweep(centre(), one_axis_at_a_time(axes), seeds[:1], ExperimentRunner(phase1_only=True))


SWEEPS = {"scaling": scaling_sweep, "diversity": diversity_sweep, "axes": axes_sweep}


def publish(sweep: Sweep) -> None:
    """Commit-ready copies of the records, as they lie in their folders."""
    runner = sweep.runner
    assert isinstance(runner, ExperimentRunner)
    for point in sweep.points:
        record = runner.finished(point)
        assert record is not None  # the sweep has run
        write_json(runner.folders.reference / f"{runner.key(point)}.json", record)


def report_scaling(records: Sequence[Record]) -> None:
    scaling, folder = centre().scaling, REFERENCE / "scaling"
    analysis = scaling_analysis.analyse(records, scaling.window_size, scaling.num_resamples)
    write_json(folder / "alpha_progression.json", scaling_analysis.analysis_record(analysis))
    text = scaling_analysis.analysis_text(analysis)
    write_text(folder / "progression.txt", text + "\n")
    write_text(folder / "sizes.csv", scaling_analysis.size_table(analysis).to_csv())
    print(scaling_analysis.size_table(analysis).to_string(), text, sep="\n\n", flush=True)
    for name, plot in (
        ("perplexity", plots_scaling.plot_perplexity),
        ("alpha", plots_scaling.plot_alpha),
        ("rank", plots_scaling.plot_rank),
    ):
        save_figure(plot(analysis), folder / f"{name}.png")


def report_diversity(records: Sequence[Record]) -> None:
    folder = REFERENCE / "diversity"
    table = diversity.comparison_table(records)
    lines = "\n".join(diversity.comparison_lines(records, table.index[0]))
    correlation = str(diversity.rank_perplexity_correlation(records))
    write_text(folder / "comparison.csv", table.to_csv())
    write_text(folder / "comparison.txt", f"{lines}\n{correlation}\n")
    print(readable_table(table).T.to_string(), lines, correlation, sep="\n\n", flush=True)
    for name, figure in (
        ("comparison", plots_diversity.plot_comparison(records)),
        ("progression", plots_diversity.plot_rank_progression(records)),
        ("spectra", plots_diversity.plot_spectra(records)),
        ("rank_and_perplexity", plots_diversity.plot_rank_against_perplexity(records)),
        ("cost", plot_costs(folder / "cost.json")),
    ):
        save_figure(figure, folder / f"{name}.png")


def plot_costs(path: Path) -> Figure:
    """Of the milliseconds in that file; they are measured where it is missing."""
    settings = centre()
    shape = settings.phase1.batch_tokens, settings.model.context_dim
    if not path.is_file():
        write_json(path, {"losses": loss_cost(list(DIVERSITY_ALGORITHMS), *shape, repetitions=15)})
    return plots_diversity.plot_loss_cost(read_json(path)["losses"], *shape)


def report_axes(records: Sequence[Record]) -> None:
    table = diversity.comparison_table(records)
    write_text(REFERENCE / "diversity" / "axes.csv", table.to_csv())
    print(readable_table(table).T.to_string(), flush=True)
    for axis in ("context_dim", "dist_reg_weight"):
        save_figure(plots_diversity.plot_axis(records, axis), REFERENCE / "diversity" / f"{axis}.png")


REPORTS = {"scaling": report_scaling, "diversity": report_diversity, "axes": report_axes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--estimate", action="store_true", help="runs and hours; nothing is trained")
    parser.add_argument("--phase1-only", action="store_true", help="stop each run after Phase 1; nothing is published")
    parser.add_argument("--report", action="store_true", help="of the runs that are there; trains nothing")
    arguments = parser.parse_args()
    if arguments.report and arguments.phase1_only:
        parser.error("--phase1-only publishes nothing, so there is no --report of it")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in arguments.only:
        sweep = SWEEPS[name](arguments.seeds, arguments.phase1_only)
        if arguments.report:
            found = [record for record in sweep.finished() if record is not None]
            print(f"{name}: {len(found)} of {len(sweep.points)} runs are there", flush=True)
            if found:
                REPORTS[name](found)
            continue
        print(f"{name}: {sweep.estimate()}", flush=True)
        if not arguments.estimate:
            records = sweep.run()
            if not arguments.phase1_only:
                publish(sweep)
                REPORTS[name](records)


if __name__ == "__main__":
    main()
