"""Streamed epochs of Phase 2, killed at random and resumed with other numbers of ranks and threads: what was read?

    python -m tests.reliability.epochs --kills 200

All of it is the project's own: Phase 2's training under ranks as torchrun starts them, the order of `data/order.py`,
contexts in a mapped file, checkpoints. Each context says its position, and every rank notes which ones it was given.
"""

import argparse
import hashlib
import math
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig, Phase2Config
from newllm_core.contexts.store import Batch
from newllm_core.data.order import epoch_batches
from newllm_core.model import NewLLM
from newllm_core.runs import checkpoint
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.mapped import new_mapped
from newllm_core.runs.world import joined_ranks
from newllm_core.training.fixed_point import InPlace
from newllm_core.training.phase1 import Phase1Result
from newllm_core.training.phase2 import EpochRecord, _Trainer

EPOCHS = 2
MODEL = ModelConfig(context_dim=2, embed_dim=4)
_VOCABULARY, _DIGEST_BYTES = 11, 32
_LONGEST_START = 60.0  # seconds


@dataclass(frozen=True)
class Text:
    """What is read: ``tokens`` positions, the last of which has no target."""

    tokens: int = 3001
    batch: int = 64
    segment: int = 7
    seed: int = 42

    def batches(self, epoch: int) -> Iterator[Tensor]:
        return epoch_batches(self.tokens - 1, self.batch, self.seed, epoch, shuffle=True, segment=self.segment)

    def digests(self) -> list[str]:
        """Of each epoch, read without an interruption by one process."""
        return [digest(torch.cat(list(self.batches(epoch)))).hex() for epoch in range(1, EPOCHS + 1)]


def digest(order: Tensor) -> bytes:
    return hashlib.sha256(order.numpy().tobytes()).digest()


class Reading(_Trainer):
    """Phase 2. What was seen is a part of its checkpoints, so that one rolls back both."""

    def __init__(self, text: Text, folder: Path) -> None:
        self.text = text
        tokens = torch.arange(text.tokens) % _VOCABULARY
        positions = torch.arange(text.tokens).view(-1, 1, 1)
        contexts = new_mapped((text.tokens, 1, MODEL.context_dim), folder).copy_(positions)
        model = NewLLM(MODEL, torch.randn(_VOCABULARY, MODEL.embed_dim, generator=torch.Generator().manual_seed(1)), 1)
        config = Phase2Config(
            max_epochs=EPOCHS, patience=EPOCHS, effective_batch_size=text.batch, shuffle_segment=text.segment,
            dropout=0.2, head="blocks",
        )  # fmt: skip
        place = CheckpointPlace(folder / "checkpoint", {"text": asdict(text)})
        super().__init__(
            model, Phase1Result(contexts, contexts[:9], None), tokens, tokens[:9], config, text.seed, place
        )
        self.order = torch.full((text.tokens - 1,), -1)  # as it was seen in the epoch that is running
        self.digests = torch.zeros(EPOCHS, _DIGEST_BYTES, dtype=torch.uint8)
        self.lost = torch.zeros(EPOCHS, dtype=torch.int64)
        self.parts |= {name: InPlace(getattr(self, name)) for name in ("order", "digests", "lost")}

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        first = self.within.steps * self.text.batch
        stop = min(first + self.text.batch, len(self.order))
        self.order[first:stop] = self.world.gathered(batch.contexts[:, 0, 0].long(), stop - first)
        return super()._step(batch)

    def judged(self, number: int) -> tuple[EpochRecord, float]:
        self.digests[number - 1] = torch.frombuffer(bytearray(digest(self.order)), dtype=torch.uint8)
        times = torch.bincount(self.order, minlength=len(self.order))
        self.lost[number - 1] = (times == 0).sum()
        self.order.fill_(-1)
        return super().judged(number)


def _read(text: Text, folder: Path, threads: int, num_ranks: int, done: Path) -> None:
    """All ranks of one attempt, this process being the first."""
    checkpoint.CHECKPOINT_SHARE = math.inf  # one after every step
    os.setpgrp()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = next((rank for rank in range(1, num_ranks) if os.fork() == 0), 0)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "reliability"}
    os.environ |= {**address, "WORLD_SIZE": str(num_ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(threads)
    with joined_ranks() as world:
        reading = Reading(text, folder)
        if world.is_first:
            (folder / "began").touch()
        reading.run()
        if world.is_first:
            found = [bytes(row.tolist()).hex() for row in reading.digests]
            whole = done.with_suffix(".whole")  # whoever sees the name sees all of it
            whole.write_text(" ".join([str(int(reading.lost.sum())), *found]))
            whole.replace(done)


@dataclass(frozen=True)
class Outcome:
    """``lost``: positions of all epochs that were never seen; as many others were seen more than once."""

    kills: int
    lost: int
    same_order: bool


def killed_epochs(text: Text, chosen: random.Random, longest: float) -> Outcome:
    """Reads all epochs, each attempt killed within ``longest`` seconds of its training unless it is done before."""
    kills = 0
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        while not done.exists():
            threads, ranks, seconds = chosen.randint(1, 2), chosen.randint(1, 3), chosen.uniform(0, longest)
            kills += _attempt(text, Path(folder), threads, ranks, seconds, done)
        lost, *digests = done.read_text().split()
    return Outcome(kills, int(lost), digests == text.digests())


def _attempt(text: Text, folder: Path, threads: int, ranks: int, seconds: float, done: Path) -> bool:
    """True where it had to be killed, one time in ten before its training begins."""
    began = folder / "began"
    began.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        try:
            _read(text, folder, threads, ranks, done)
        finally:
            os.killpg(0, signal.SIGKILL)  # its other ranks, and itself
    early, counts, stop = seconds * 10 % 1 < 0.1, False, time.monotonic() + _LONGEST_START
    while time.monotonic() < stop and not done.exists():
        time.sleep(0.002)
        if not counts and (early or began.exists()):
            counts, stop = True, time.monotonic() + seconds
    killed = not done.exists()
    for kill in (os.killpg, os.kill):  # before it had a group of its own
        try:
            kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(process, 0)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.6, help="seconds of training until an attempt is killed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen, outcomes = random.Random(given.seed), list[Outcome]()
    while sum(outcome.kills for outcome in outcomes) < given.kills:
        text = Text(seed=len(outcomes), segment=chosen.choice([1, 7, 50, 5000]), batch=chosen.choice([64, 100, 200]))
        outcomes.append(killed_epochs(text, chosen, given.longest))
        print(text, outcomes[-1], flush=True)
    kills, lost = (sum(getattr(one, name) for one in outcomes) for name in ("kills", "lost"))
    same = sum(one.same_order for one in outcomes)
    print(f"{kills} kills, {lost} positions lost or repeated, {same} of {len(outcomes)} orders as uninterrupted")
    raise SystemExit(bool(lost or same < len(outcomes)))


if __name__ == "__main__":
    main()
