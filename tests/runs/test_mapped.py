"""Tensors in memory-mapped files: as good as others, and small in memory."""

import gc
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from newllm_core.runs import mapped, tensor_pieces
from newllm_core.runs.files import map_tensors, save_tensors, sha256_tensors
from newllm_core.runs.mapped import give_back_pages, is_mapped, new_mapped, pieces
from newllm_core.runs.tensor_pieces import read_in_place, write_in_pieces


@pytest.fixture
def few_bytes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_PIECE_BYTES", 64)
    monkeypatch.setattr(mapped, "MOST_RESIDENT_BYTES", -(2**62))  # pages are given back at every call
    monkeypatch.setattr(tensor_pieces, "LARGE_BYTES", 100)


def all_kinds(folder: Path) -> dict[str, Tensor]:
    return {
        "odd": torch.randn(7, 3).to(torch.bfloat16),
        "in_file": new_mapped((30, 2, 5), folder).copy_(torch.randn(30, 2, 5)),
        "strided": new_mapped((30, 2, 5), folder).copy_(torch.randn(30, 2, 5))[:, -1],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "double": torch.randn(3, dtype=torch.float64),
        "truth": torch.tensor([True, False]),
    }


def test_a_file_written_in_pieces_is_a_safetensors_file(tmp_path: Path, few_bytes_at_once: None) -> None:
    tensors = all_kinds(tmp_path)
    write_in_pieces(tmp_path / "x", tensors)
    for found in (load_file(tmp_path / "x"), read_in_place(tmp_path / "x")):
        assert found.keys() == tensors.keys()
        assert all(
            torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors
        )
    assert [name for name, tensor in read_in_place(tmp_path / "x").items() if is_mapped(tensor)] == [
        "in_file",
        "strided",
    ]


def test_what_is_written_survives_its_pages(tmp_path: Path, few_bytes_at_once: None) -> None:
    tensor, values = new_mapped((50, 1, 3), tmp_path), torch.randn(50, 1, 3)
    assert is_mapped(tensor) and is_mapped(tensor[10:, -1]) and not is_mapped(values) and not any(tmp_path.iterdir())
    for rows, value in zip(tensor.split(7), values.split(7), strict=True):
        rows.copy_(value)
        give_back_pages()
    assert torch.equal(tensor, values) and sha256_tensors(tensor) == sha256_tensors(values)
    assert torch.equal(torch.cat(list(pieces(tensor))), values.flatten())
    address = tensor.data_ptr()
    del tensor, rows
    gc.collect()
    assert address not in mapped._mappings


def test_saved_tensors_can_stay_in_their_file(tmp_path: Path, few_bytes_at_once: None) -> None:
    tensors = {"tokens": torch.arange(100), "boundaries": torch.tensor([0, 100])}
    save_tensors(tmp_path / "x", tensors)
    found = map_tensors(tmp_path / "x")
    assert is_mapped(found["tokens"]) and not is_mapped(found["boundaries"])
    assert torch.equal(found["tokens"], tensors["tokens"])


def test_a_process_stays_small_whatever_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "MOST_RESIDENT_BYTES", 8 * 2**20)
    tensor = new_mapped((64, 2**18), tmp_path)  # 64 MiB
    before, most = psutil.Process().memory_info().rss, 0
    for part in pieces(tensor):
        part.fill_(1.0)
        most = max(most, psutil.Process().memory_info().rss - before)
    assert 8 * 2**20 < most < 40 * 2**20
    assert all(bool((part == 1).all()) for part in pieces(tensor))
