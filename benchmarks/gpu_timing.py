"""Timings on a CUDA device: interleaved, medians with their range, peak memory, and the time of each kernel."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

MB = 10**6
Work = Callable[[], object]


def milliseconds(work: Work) -> float:
    """Of one call, by the device's own clock; all that was asked for before is done first."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))


def interleaved(works: Mapping[str, Work], rounds: int, warm_up: int = 2) -> dict[str, dict[str, float]]:
    """Median, smallest and largest milliseconds of one call; every round runs each of the works once."""
    for work in works.values():
        for _ in range(warm_up):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(milliseconds(work))
    return {name: summary(values) for name, values in times.items()}


def summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "rounds": len(times)}


def peak_mb(work: Work) -> float:
    """Growth of the device's allocated memory during one call, at its highest."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MB


def kernels(work: Work, most: int = 12) -> list[dict[str, Any]]:
    """The kernels of one call that take most of the device's time: name, calls, milliseconds in all."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda entry: -entry.self_device_time_total)
    return [
        {"name": entry.key[:90], "calls": entry.count, "ms": entry.self_device_time_total / 1000}
        for entry in found[:most]
        if entry.self_device_time_total
    ]


def ceilings() -> dict[str, float]:
    """What the card does at best: bf16 products of random 8,192 x 8,192 matrices, float32 ones, and a large copy."""
    half = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    single = torch.randn(8192, 8192, device="cuda")
    source, target = (torch.empty(2**30, device="cuda", dtype=torch.uint8) for _ in range(2))
    times = interleaved(
        {"bf16": lambda: half @ half, "fp32": lambda: single @ single, "copy": lambda: target.copy_(source)}, 5
    )
    operations = 2 * 8192**3
    return {
        "bf16_tflops": operations / times["bf16"]["median_ms"] / 1e9,
        "fp32_tflops": operations / times["fp32"]["median_ms"] / 1e9,
        "copy_tb_per_s": 2 * 2**30 / times["copy"]["median_ms"] / 1e9,
    }
