"""Tokens of a long text, made shard by shard: what is done stays done, and several processes share the work.

A shard is some thousand consecutive conversations, a file of its own until all of them are there and joined into one.
Who finds a shard that nobody works on makes it: ranks of torchrun, runs of a sweep, other machines that see the folder.
The tokenizer itself uses all cores, so that on one machine a second process brings little.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from newllm_core.runs.files import checksum_path, has_valid_checksum, map_tensors, save_tensors
from newllm_core.runs.lock import owned
from newllm_core.runs.mapped import new_mapped, pieces
from newllm_core.runs.progress import progress_bar
from newllm_core.runs.tensor_pieces import LARGE_BYTES

SHARD_CONVERSATIONS = 4096
PROGRESS_FROM = 2000  # conversations; fewer take at most a few seconds
Part = tuple[Tensor, Tensor]  # int64 tokens [N] and boundaries [number of texts + 1]
Encode = Callable[[Sequence[str]], Part]


@dataclass(frozen=True)
class Shard:
    """``rows``: of the texts that are still to be encoded."""

    path: Path
    rows: slice

    @contextmanager
    def owned(self, *, wait: bool) -> Iterator[bool]:
        with owned(self.path.with_name(f".{self.path.name}.lock"), wait=wait) as mine:
            yield mine


def write_by_shards(path: Path, before: Part | None, texts: Sequence[str], encode: Encode) -> None:
    """Write a token file that goes on from ``before``: tokens `[N]` and boundaries, those of ``texts`` behind them.

    Killed and called again, or by several processes at once, it encodes each finished shard once. Where somebody else
    has written ``path`` meanwhile, it ends: the caller looks at what is there. Raises DiskError.
    """
    found, shards = _state(path), _shards(path, 0 if before is None else len(before[1]) - 1, len(texts))
    with progress_bar(
        total=len(texts), desc="tokenising", unit=" conversations", disable=len(texts) <= PROGRESS_FROM
    ) as bar:
        for wait in (False, True):  # first those that nobody works on, then those of others, who may have been killed
            for shard in shards if len(shards) > 1 else ():
                if _state(path) == found and _make(shard, texts, encode, wait=wait):
                    bar.update(shard.rows.stop - shard.rows.start)
        with owned(path.with_name(f".{path.name}.lock")):
            if _state(path) == found:
                _write(path, before, [encode(texts)] if len(shards) == 1 else shards)
        bar.update(bar.total - bar.n)
    _discard(shards)


def _shards(path: Path, first: int, count: int) -> list[Shard]:
    """Of ``count`` conversations, the first of which is number ``first`` of the whole text."""
    folder, starts = path.with_suffix(".shards"), range(0, count, SHARD_CONVERSATIONS)
    rows = [slice(start, min(start + SHARD_CONVERSATIONS, count)) for start in starts]
    return [Shard(folder / f"{first + one.start:08d}-{first + one.stop:08d}.safetensors", one) for one in rows]


def _make(shard: Shard, texts: Sequence[str], encode: Encode, *, wait: bool) -> bool:
    """Whether it was made now; it may be there, or somebody else's."""
    with shard.owned(wait=wait) as mine:
        if not mine or has_valid_checksum(shard.path):
            return False
        tokens, boundaries = encode(texts[shard.rows])
        save_tensors(shard.path, {"tokens": tokens, "boundaries": boundaries})
        return True


def _write(path: Path, before: Part | None, parts: "Sequence[Part | Shard]") -> None:
    """All of them as one file; where that is large, never all in memory."""
    everything = [*([before] if before else []), *parts]
    count = sum(len(_read(part)[0]) for part in everything)
    large = count * torch.int64.itemsize > LARGE_BYTES
    joined = new_mapped([count], path.parent, torch.int64) if large else torch.empty(count, dtype=torch.int64)
    boundaries, end = [torch.zeros(1, dtype=torch.int64)], 0
    for tokens, offsets in map(_read, everything):
        boundaries.append(offsets[1:] + end)
        for piece in pieces(tokens):
            joined[end : end + len(piece)] = piece
            end += len(piece)
    save_tensors(path, {"tokens": joined, "boundaries": torch.cat(boundaries)})


def _read(part: "Part | Shard") -> Part:
    if not isinstance(part, Shard):
        return part
    tensors = map_tensors(part.path)
    return tensors["tokens"], tensors["boundaries"]


def _discard(shards: Sequence[Shard]) -> None:
    for shard in shards:
        for path in (shard.path, checksum_path(shard.path)):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or another process has shards there
        shards[0].path.parent.rmdir()


def _state(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written anew; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
