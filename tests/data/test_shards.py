"""Tokens that are made shard by shard: killed, gone on with, shared, and the same file in the end."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from newllm_core.data import shards
from newllm_core.data.shards import write_by_shards
from newllm_core.runs.files import map_tensors, sha256_file
from newllm_core.runs.lock import owned

TEXTS = [f"{number:x}" * (1 + number % 3) for number in range(37)]


def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A token for each character."""
    lengths = torch.tensor([0, *map(len, texts)])
    return torch.tensor([ord(letter) for text in texts for letter in text]), lengths.cumsum(0)


def stopped_at_third(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    if TEXTS[16] in texts:
        raise KeyboardInterrupt
    return encode(texts)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CONVERSATIONS", 8)


def test_what_was_done_before_a_stop_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encoded = tmp_path / "tokens.safetensors", list[int]()
    with pytest.raises(KeyboardInterrupt):
        write_by_shards(path, None, TEXTS, stopped_at_third)
    assert len(list(path.with_suffix(".shards").glob("*.sha256"))) == 2
    (path.with_suffix(".shards") / ".00000016-00000024.safetensors.lock").write_text("of one that was killed")

    def counted(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded.append(len(texts))
        return encode(texts)

    monkeypatch.setattr(shards, "LARGE_BYTES", 64)  # so that it is joined in a file
    write_by_shards(path, None, TEXTS, counted)
    assert encoded == [8, 8, 5] and not path.with_suffix(".shards").exists()
    found = map_tensors(path)
    for name, expected in zip(("tokens", "boundaries"), encode(TEXTS)):
        assert torch.equal(found[name], expected)


def test_two_share_the_shards_and_a_longer_text_goes_on_from_a_shorter(tmp_path: Path) -> None:
    path, whole, first_done = tmp_path / "shared.safetensors", tmp_path / "whole.safetensors", threading.Event()
    encoded = list[str]()

    def counted(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded.append(texts[0])
        if len(encoded) == 2:
            first_done.set()
        return encode(texts)

    elsewhere = path.with_suffix(".shards") / ".00000000-00000008.safetensors.lock"
    with owned(elsewhere):  # as by another process, which then ends without having made it
        other = threading.Thread(target=write_by_shards, args=(path, None, TEXTS[:24], counted))
        other.start()
        assert first_done.wait(60)
    other.join(60)
    assert encoded == [TEXTS[8], TEXTS[16], TEXTS[0]]
    found = map_tensors(path)
    write_by_shards(path, (found["tokens"], found["boundaries"]), TEXTS[24:], counted)
    assert encoded[3:] == [TEXTS[24], TEXTS[32]]
    write_by_shards(whole, None, TEXTS, encode)
    assert sha256_file(path) == sha256_file(whole) and sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []
