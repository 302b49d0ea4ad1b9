"""Table and picture of what `benchmarks/gpu.py` measured.

    python -m benchmarks.gpu_report results/reference/gpu.json

writes `gpu.md` and `gpu.png` beside the file.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from newllm_core.report.style import new_axes, save_figure
from newllm_core.runs.files import read_json, write_text

_OWN, _OTHER, _TARGET = "#3b6ea5", "#b9b9b9", "#b5524a"
# Milliseconds, tokens a second and MB that the project asks for on such a card.
CONTEXTS_MS, HEAD_TOKENS_PER_SECOND, HEAD_MB, ITERATION_MS = 500.0, 1.5e6, 300.0, 20.0


def contexts_bars(speed: Mapping[str, Any]) -> dict[str, float]:
    """Seconds for all tokens; those of a loop are those of its first tokens times their number."""
    found = speed["contexts"]
    loops, share = found["loops"], found["tokens"] / found["loops"]["tokens"]
    return {
        "one kernel a sweep": found["exact"]["median_ms"] / 1e3,
        "plain reading's loop": loops["plain loop"]["median_ms"] * share / 1e3,
        "eager loop": loops["eager loop"]["median_ms"] * share / 1e3,
    }


def head_bars(speed: Mapping[str, Any], width: str) -> dict[str, float]:
    """Million tokens a second, fastest first."""
    ways = speed["head"][width]["ways"]
    rates = {name: way["tokens_per_second"] / 1e6 for name, way in ways.items()}
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


def step_bars(speed: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of an iteration of Phase 1, and of a step of Phase 2 and of the predictive Phase 1."""
    ways = speed["iteration"]["ways"]
    names = {
        "project, exact": "iteration, exact", "project, previous_iteration": "iteration, stale",
        "project, previous_iteration, not recorded": "  the same, not recorded", "plain (stale contexts)": "  plain",
    }  # fmt: skip
    bars = {names[name]: way["median_ms"] for name, way in ways.items()}
    for part, label in (("phase2_step", "Phase 2 step"), ("predictive_step", "predictive step")):
        for name, ms in speed[part]["ms_per_step"].items():
            bars[{"project": label, "plain": f"  plain ({label})"}.get(name, f"  not recorded ({label})")] = ms
    return bars


def draw(record: Mapping[str, Any]) -> Figure:
    """Three panels: contexts, head, steps."""
    speed = record["speed"]
    figure, panels = new_axes(3, width=5.4, height=4.0)
    tokens = speed["contexts"]["tokens"]
    _bars(panels[0], contexts_bars(speed), f"contexts of {tokens:,} tokens, C = 500", "seconds", CONTEXTS_MS / 1e3)
    panels[0].set_xscale("log")
    panels[0].set_xlim(right=panels[0].get_xlim()[1] * 4)
    target = HEAD_TOKENS_PER_SECOND / 1e6
    _bars(panels[1], head_bars(speed, "E = 768"), "head, E = 768: loss and gradient", "million tokens a second", target)
    _bars(panels[2], step_bars(speed), "steps at the colab profile's size", "milliseconds", ITERATION_MS)
    machine = record["machine"]
    figure.suptitle(
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}; blue: what runs there; "
        "red: the target (steps: of an iteration)", fontsize=9,
    )  # fmt: skip
    return figure


def _bars(axes: Axes, bars: Mapping[str, float], title: str, unit: str, target: float) -> None:
    names = list(bars)
    own = {"one kernel a sweep", "fused", "iteration, exact", "iteration, stale", "Phase 2 step", "predictive step"}
    drawn = axes.barh(names, list(bars.values()), color=[_OWN if name in own else _OTHER for name in names])
    axes.bar_label(drawn, labels=[f"{value:.3g}" for value in bars.values()], padding=3, fontsize=8)
    axes.axvline(target, color=_TARGET, linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.tick_params(axis="y", labelsize=8)


def table(record: Mapping[str, Any]) -> str:
    """Everything that was asked for, and what was found."""
    machine, speed = record["machine"], record["speed"]
    failed = [check["name"] for check in record["checks"] if not check["passed"]]
    limits = machine["ceilings"]
    lines = [
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}, {machine['start'][:10]}. "
        f"At best {limits['bf16_tflops']:.0f} TFLOP/s in bfloat16, {limits['fp32_tflops']:.0f} in float32, "
        f"{limits['copy_tb_per_s']:.1f} TB/s.",
        "",
        f"Checks: {len(record['checks']) - len(failed)} of {len(record['checks'])} passed"
        + (f"; failed: {', '.join(failed)}." if failed else "."),
        "",
        "| part | median (range) | beside it | target |",
        "|---|---|---|---|",
        *_context_rows(speed["contexts"]),
        *[row for width, case in speed["head"].items() for row in _head_rows(width, case)],
        *_other_run(speed.get("head_1536_rows")),
        *_step_rows(speed),
    ]
    return "\n".join(lines) + "\n"


def _range(found: Mapping[str, float]) -> str:
    return f"{found['median_ms']:.3g} ms ({found['min_ms']:.3g}–{found['max_ms']:.3g})"


def _context_rows(found: Mapping[str, Any]) -> list[str]:
    return [
        f"| contexts of {found['tokens']:,} tokens | {_range(found['exact'])} | {found['passes']} passes, residual "
        f"{found['residual']:.2e}, {found['deviation_from_float64']:.1e} from a float64 loop, "
        f"{found['times_as_fast_as_the_eager_loop']:,.0f} times as fast as the eager loop | ≤ {CONTEXTS_MS:.0f} ms, "
        "residual ≤ 1e-5, ≥ 100 times |"
    ]


def _head_rows(width: str, case: Mapping[str, Any]) -> list[str]:
    wanted = f"≥ {HEAD_TOKENS_PER_SECOND / 1e6} M tokens/s, ≤ {HEAD_MB:.0f} MB" if width == "E = 768" else ""
    return [
        f"| head, {width}, {name} | {_range(way)} | {way['tokens_per_second'] / 1e6:.2f} M tokens/s, "
        f"{way['extra_memory_mb']:.0f} MB | {wanted if name == 'fused' else ''} |"
        for name, way in case["ways"].items()
    ]


def _other_run(found: Mapping[str, Any] | None) -> list[str]:
    """The head with fewer rows at once, where a record has that beside its own."""
    cases = {} if found is None else {width: case for width, case in found.items() if width != "note"}
    return [
        row.replace("fused", "fused, 1,536 rows at once (another run)")
        for w, c in cases.items()
        for row in _head_rows(w, c)
    ]


def _step_rows(speed: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| Phase 1 iteration, {name} | {_range(way)} | | "
        f"{f'≤ {ITERATION_MS:.0f} ms' if name.startswith('project') and 'not' not in name else ''} |"
        for name, way in speed["iteration"]["ways"].items()
    ]
    for part, label in (("phase2_step", "Phase 2"), ("predictive_step", "predictive Phase 1")):
        rows += [f"| step of {label}, {name} | {ms:.3g} ms | | |" for name, ms in speed[part]["ms_per_step"].items()]
    found = speed["generation"]
    return [*rows, f"| generation | {_range(found)} | {found['tokens_per_second']:.0f} tokens/s, one text | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    path: Path = parser.parse_args().record
    record = read_json(path)
    write_text(path.with_suffix(".md"), table(record))
    save_figure(draw(record), path.with_suffix(".png"))
    print(table(record))


if __name__ == "__main__":
    main()
