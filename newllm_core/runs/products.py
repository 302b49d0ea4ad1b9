"""Which products a CPU is given: of float32, or of numbers rounded to bfloat16 where these are faster.

The choice is a table by instruction set, measured by ``python -m benchmarks.products``: at run time nothing is timed,
since a choice made anew at each run would make two runs differ.
"""

import os
import platform
import re
from functools import cache
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
# Whether rounded products are faster, and how many times, as measured.
_ROUNDED_IS_FASTER = {
    "amx": True,  # Intel Xeon, model 207: 5 to 9 times, the head 3.4 (16 rows: 1.0 to 1.6)
    "avx512-bf16, AMD": True,  # AMD EPYC: the head 1.6 to 2.3 times (benchmark_core.json, part c)
    "avx512-bf16, Intel": False,  # the same Xeon without AMX, as some hypervisors show it: 0.4 to 0.6 times
    "none": False,  # emulated: 0.01 to 0.3 times
}
# What oneDNN does not go beyond when its environment variable says so.
_CAPS_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_CAPS_WITHOUT_AMX = {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_2_512"}
_MAKERS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}


def has_bf16_products() -> bool:
    """Whether this CPU's products in bfloat16 are faster than those in float32 (the table above)."""
    return _ROUNDED_IS_FASTER[instruction_set()]


def rounded_products(asked: str, device: torch.device) -> bool:
    """Whether products are of bfloat16 numbers: "bfloat16", or "auto" on a CPU that is faster with them."""
    return asked == "bfloat16" or (asked == "auto" and device.type == "cpu" and has_bf16_products())


def instruction_set() -> str:
    """A key of the table: what this CPU and its kernel offer, within the cap that oneDNN is under.

    AVX512-BF16 of a maker that nobody has measured counts as "none".
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    flags = _flags()
    if cap in _CAPS_WITHOUT_BF16:
        return "none"
    if "amx_tile" in flags and cap not in _CAPS_WITHOUT_AMX:
        return "amx"
    maker = _maker()
    return f"avx512-bf16, {maker}" if maker and "avx512_bf16" in flags else "none"


def _flags() -> set[str]:
    """As the kernel names them: one that is too old for AMX, or forbids it, leaves that out."""
    if not _CPUINFO.is_file():
        torchs = {"amx_tile": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
        return {name for name, present in torchs.items() if present}
    return set(cpu_facts().get("flags", "").split())


def _maker() -> str | None:
    told = cpu_facts().get("vendor_id", platform.processor())
    return next((maker for sign, maker in _MAKERS.items() if sign in told), None)


@cache
def cpu_facts() -> dict[str, str]:
    """What Linux tells of the first processor, by the names of /proc/cpuinfo; nothing elsewhere."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text("utf-8").split("\n\n", 1)[0]
    return dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in first.splitlines() if ":" in line)
