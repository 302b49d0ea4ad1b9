"""Which products are chosen: by instruction set, maker and oneDNN's cap, and never the slower ones."""

import pytest
import torch

from newllm_core.runs import products
from newllm_core.runs.products import has_bf16_products, instruction_set

AMX, BF16 = "avx2 avx512f avx512_bf16 amx_tile amx_bf16", "avx2 avx512f avx512_bf16"
INTEL, AMD, OTHER = "GenuineIntel", "AuthenticAMD", "HygonGenuine"


@pytest.fixture(autouse=True)
def no_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("maker", "flags", "cap", "expected", "rounded"),
    [
        (INTEL, AMX, None, "amx", True),
        (INTEL, AMX, "avx512_core_amx", "amx", True),
        (INTEL, AMX, "DEFAULT", "amx", True),
        (INTEL, AMX, "AVX512_CORE_BF16", "avx512-bf16, Intel", False),
        (INTEL, AMX, "AVX512_CORE", "none", False),
        (INTEL, AMX, "avx2", "none", False),
        (INTEL, BF16, None, "avx512-bf16, Intel", False),
        (AMD, BF16, None, "avx512-bf16, AMD", True),
        (AMD, BF16, "AVX512_CORE_VNNI", "none", False),
        (OTHER, BF16, None, "none", False),
        (AMD, "avx2", None, "none", False),
    ],
)
def test_the_choice_is_of_the_instruction_set(
    maker: str, flags: str, cap: str | None, expected: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_flags", lambda: set(flags.split()))
    monkeypatch.setattr(products, "cpu_facts", lambda: {"vendor_id": maker})
    if cap is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert (instruction_set(), has_bf16_products()) == (expected, rounded)


def test_the_older_name_of_the_cap_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert instruction_set() == "none"


def test_where_no_file_tells_of_the_processor_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CPUINFO", products.Path("/there/is/none"))
    monkeypatch.setattr(products, "cpu_facts", products.cpu_facts.__wrapped__)
    monkeypatch.setattr(products.torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(products.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(products.platform, "processor", lambda: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert products.cpu_facts() == {}
    assert (instruction_set(), has_bf16_products()) == ("avx512-bf16, AMD", True)


@pytest.mark.parametrize(("asked", "device", "fast", "expected"), [
    ("float32", "cpu", True, False), ("auto", "cpu", True, True), ("auto", "cpu", False, False),
    ("auto", "cuda", True, False), ("bfloat16", "cuda", False, True),
])  # fmt: skip
def test_products_are_rounded_where_that_is_faster_or_asked_for(
    asked: str, device: str, fast: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "has_bf16_products", lambda: fast)
    assert products.rounded_products(asked, torch.device(device)) == expected
