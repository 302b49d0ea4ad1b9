"""A streamed epoch, killed at random and resumed with other numbers of workers and ranks: which positions were seen?

    python -m tests.reliability.epochs --kills 200

What reads is the project's own: the order of `data/order.py`, contexts in a file, the training loop, its checkpoints.
Ranks are processes that each read their part of every batch; workers are threads that fetch batches ahead.
"""

import argparse
import hashlib
import math
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from newllm_core.contexts.store import context_batches
from newllm_core.data.order import epoch_batches
from newllm_core.runs import checkpoint
from newllm_core.runs.checkpoint import CheckpointPlace
from newllm_core.runs.mapped import new_mapped
from newllm_core.training.fixed_point import InPlace
from newllm_core.training.loop import TrainingLoop

EPOCHS = 2


@dataclass(frozen=True)
class Text:
    """What is read: ``tokens`` positions, the last of which has no target."""

    tokens: int = 3001
    batch: int = 64
    segment: int = 7
    seed: int = 42

    def batches(self, epoch: int, first: int) -> Iterator[Tensor]:
        return epoch_batches(
            self.tokens - 1, self.batch, self.seed, epoch, shuffle=True, segment=self.segment, first=first
        )

    def digests(self) -> list[str]:
        """Of each epoch, read without an interruption by one process."""
        whole = (torch.cat(list(self.batches(epoch, 0))) for epoch in range(1, EPOCHS + 1))
        return [hashlib.sha256(order.numpy().tobytes()).hexdigest() for order in whole]


@dataclass(frozen=True)
class Seen:
    """Of an epoch: the hash of its positions in the order in which they were seen, those never seen, and those seen
    more than once."""

    digest: str
    lost: int
    repeated: int


class Reading(TrainingLoop[Seen]):
    """Reads epochs instead of training in them. What was seen is its weights, so a checkpoint rolls both back."""

    name, row_kind = "reading", Seen

    def __init__(self, text: Text, folder: Path, workers: int, ranks: list[Connection]) -> None:
        super().__init__(
            torch.device("cpu"), EPOCHS, CheckpointPlace(folder / "checkpoint", {"text": asdict(text)}),
            steps_per_pass=math.ceil((text.tokens - 1) / text.batch), show_progress=False,
        )  # fmt: skip
        self.text, self.workers, self.ranks = text, workers, ranks
        self.order = torch.zeros(text.tokens - 1, dtype=torch.int64)  # what was seen, in order
        self.contexts = new_mapped((text.tokens, 1, 2), folder).copy_(torch.arange(text.tokens).view(-1, 1, 1))
        self.parts = {"model": InPlace(self.order)}

    def steps(self, number: int) -> Iterator[None]:
        at = self.within.steps * self.text.batch
        for own in self._fetched(number):
            others = [rank.recv() for rank in self.ranks]
            seen = torch.cat([own, *map(torch.tensor, others)])
            self.order[at : at + len(seen)] = seen
            at += len(seen)
            yield

    def _fetched(self, epoch: int) -> Iterator[Tensor]:
        """What the contexts in the file say which positions were read."""
        for rank in self.ranks:
            rank.send((epoch, self.within.steps))
        tokens = torch.arange(self.text.tokens)
        parts = part_of_rank(self.text, epoch, self.within.steps, self.workers, 0, len(self.ranks) + 1)
        return (batch.contexts[:, 0, 0].long() for batch in context_batches(self.contexts, tokens, parts))

    def judged(self, number: int) -> tuple[Seen, float]:
        times = torch.bincount(self.order, minlength=len(self.order))
        digest = hashlib.sha256(self.order.numpy().tobytes()).hexdigest()
        return Seen(digest, int((times == 0).sum()), int((times > 1).sum())), float(number)

    def kept(self) -> Mapping[str, Tensor]:
        return {}

    def shown(self) -> dict[str, str]:
        return {}


def part_of_rank(text: Text, epoch: int, first: int, workers: int, rank: int, ranks: int) -> Iterator[Tensor]:
    """Of every batch from ``first`` on, fetched by threads: each works out its own."""
    count = math.ceil((text.tokens - 1) / text.batch)

    def part(number: int) -> Tensor:
        return next(text.batches(epoch, number)).tensor_split(ranks)[rank]

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(part, range(first, count))


def _other_rank(text: Text, pipe: Connection, workers: int, rank: int, ranks: int) -> None:
    while True:
        epoch, first = pipe.recv()
        for part in part_of_rank(text, epoch, first, workers, rank, ranks):
            pipe.send(part.tolist())


def _read(text: Text, folder: Path, workers: int, num_ranks: int, done: Path) -> None:
    """All ranks of one attempt, this process being the first."""
    checkpoint.CHECKPOINT_SHARE = math.inf  # one after every step
    os.setpgrp()
    pipes = []
    for rank in range(1, num_ranks):
        ours, theirs = multiprocessing.Pipe()
        if os.fork() == 0:
            ours.close()
            _other_rank(text, theirs, workers, rank, num_ranks)
        pipes.append(ours)
    reading = Reading(text, folder, workers, pipes)
    reading.run()
    done.write_text(repr([asdict(row) for row in reading.rows]))


@dataclass(frozen=True)
class Outcome:
    kills: int
    lost: int
    repeated: int
    same_order: bool


def killed_epochs(text: Text, chosen: random.Random, longest: float) -> Outcome:
    """Reads all epochs, each attempt killed within ``longest`` seconds unless it is done before."""
    kills = 0
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        while not done.exists():
            workers, ranks, seconds = chosen.randint(1, 4), chosen.randint(1, 3), chosen.uniform(0, longest)
            kills += _attempt(text, Path(folder), workers, ranks, seconds, done)
        rows = [Seen(**row) for row in eval(done.read_text(), {})]  # what `_read` wrote
    return Outcome(
        kills, sum(row.lost for row in rows), sum(row.repeated for row in rows),
        [row.digest for row in rows] == text.digests(),
    )  # fmt: skip


def _attempt(text: Text, folder: Path, workers: int, ranks: int, seconds: float, done: Path) -> bool:
    """True where it had to be killed."""
    process = os.fork()
    if process == 0:
        try:
            _read(text, folder, workers, ranks, done)
        finally:
            os.killpg(0, signal.SIGKILL)  # its other ranks, and itself
    stop = time.monotonic() + seconds
    while time.monotonic() < stop and not done.exists():
        time.sleep(0.002)
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
    parser.add_argument("--longest", type=float, default=0.6, help="seconds until an attempt is killed at the latest")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen, outcomes = random.Random(given.seed), list[Outcome]()
    while sum(outcome.kills for outcome in outcomes) < given.kills:
        text = Text(seed=len(outcomes), segment=chosen.choice([1, 7, 50, 5000]), batch=chosen.choice([64, 100, 200]))
        outcomes.append(killed_epochs(text, chosen, given.longest))
        print(text, outcomes[-1], flush=True)
    kills, lost, repeated = (sum(getattr(one, name) for one in outcomes) for name in ("kills", "lost", "repeated"))
    same = sum(one.same_order for one in outcomes)
    print(
        f"{kills} kills, {lost} positions lost, {repeated} repeated, {same} of {len(outcomes)} orders as uninterrupted"
    )
    raise SystemExit(bool(lost or repeated or same < len(outcomes)))


if __name__ == "__main__":
    main()
