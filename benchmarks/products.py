"""Which products are faster on this CPU, in float32 or rounded to bfloat16, with and without caps on its instructions.

    python -m benchmarks.products               # two minutes on two cores; --threads 1: of one

One CPU stands for several: ``ONEDNN_MAX_CPU_ISA`` keeps oneDNN from the later instruction sets. Each cap is measured in
a process of its own, both precisions in turn; medians. What is read off here is the table of
``newllm_core/runs/products.py``; the figures are kept in ``results/reference/products.json`` by CPU.
"""

import argparse
import os
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.machine import in_fresh_process, machine_facts
from benchmarks.timing import calls_that_last, interleaved
from newllm_core.data.vocabulary import VOCAB_SIZE
from newllm_core.head.cross_entropy import Head
from newllm_core.runs.files import REFERENCE_DIR, read_json, write_json
from newllm_core.runs.products import has_bf16_products, instruction_set
from newllm_core.runs.reproducibility import derived_generator

OUTPUT = REFERENCE_DIR / "products.json"
CAPS = ("", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2")  # "": none
# Rows, inner width, columns: logits and weighted rows of the head, a lock-step, a segment's gradient of its weights.
SHAPES = ((512, 384, 2048), (512, 2048, 384), (16, 576, 576), (576, 768, 576))
_HEAD_ROWS, _HEAD_WIDTH = 512, 384
_SECONDS = 0.1  # that a timing of one shape lasts
_SEED = 42


def measure(rounds: int) -> dict[str, Any]:
    """Of this process: seconds by shape and precision, of the head's loss and gradient too, and what is chosen."""
    products = {f"{rows}x{inner}x{columns}": _product(rows, inner, columns, rounds) for rows, inner, columns in SHAPES}
    head = _with_ratio(interleaved({"float32": _head("blocks"), "bfloat16": _head("blocks-bf16")}, rounds + 1))
    return {"instruction_set": instruction_set(), "bf16": has_bf16_products(), "products": products, "head": head}


def _product(rows: int, inner: int, columns: int, rounds: int) -> dict[str, float]:
    generator = derived_generator("products")
    left, right = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    ways = {}
    for name in ("float32", "bfloat16"):
        kind = getattr(torch, name)
        ways[name] = partial(torch.mm, left.to(kind), right.to(kind), out=torch.empty(rows, columns, dtype=kind))
    return _with_ratio(interleaved(ways, rounds, calls_that_last(ways["float32"], _SECONDS)))


def _head(method: str) -> Any:
    generator = derived_generator("head")
    weight = torch.randn(VOCAB_SIZE, _HEAD_WIDTH, generator=generator) * 0.144
    hidden = torch.randn(_HEAD_ROWS, _HEAD_WIDTH, generator=generator).requires_grad_()
    targets = torch.randint(VOCAB_SIZE, (_HEAD_ROWS,), generator=generator)
    head = Head(weight, method)
    return lambda: head.loss(hidden, targets).mean_nats.backward()  # type: ignore[no-untyped-call]


def _with_ratio(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians but for the first round, which loads code; ``ratio`` above 1: bfloat16 is faster."""
    medians = {name: statistics.median(values[1:] or values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["float32"] / medians["bfloat16"]}


def measured_under(cap: str, threads: int, rounds: int) -> dict[str, Any]:
    """``measure`` in a new process, which is where oneDNN reads its cap."""
    name = "ONEDNN_MAX_CPU_ISA"
    before = os.environ.pop(name, None)
    try:
        if cap:
            os.environ[name] = cap
        return in_fresh_process(measure, _SEED, threads, rounds)
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def line(cap: str, found: dict[str, Any]) -> str:
    """A row of the table: how many times as fast bfloat16 is, and what is chosen."""
    ratios = [found["head"]["ratio"], *(product["ratio"] for product in found["products"].values())]
    cells = [cap or "none", found["instruction_set"], *(f"{ratio:.2f}" for ratio in ratios)]
    return f"| {' | '.join(cells)} | {'bfloat16' if found['bf16'] else 'float32'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the medians count")
    arguments = parser.parse_args()
    names = [f"{rows}x{inner}x{columns}" for rows, inner, columns in SHAPES]
    print(f"| cap | instruction set | head | {' | '.join(names)} | chosen |\n|{'---|' * (len(names) + 4)}")
    caps = {}
    for cap in CAPS:
        caps[cap or "none"] = measured_under(cap, arguments.threads, arguments.rounds)
        print(line(cap, caps[cap or "none"]), flush=True)
    torch.set_num_threads(arguments.threads)
    machine = machine_facts()
    stored = read_json(OUTPUT)["cpus"] if OUTPUT.is_file() else {}
    stored[f"{machine['cpu']}, {arguments.threads} threads"] = {
        "machine": machine,
        "load_average": list(os.getloadavg()),
        "caps": caps,
    }
    write_json(OUTPUT, {"command": "python -m benchmarks.products", "cpus": stored})


if __name__ == "__main__":
    main()
