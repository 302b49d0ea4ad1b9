"""The processes that work on one run together: `torchrun` starts them, PyTorch's collectives carry what they share.

Without torchrun there is one rank, and everything here gives back what it was given. A rank that ends takes the others
with it: their next collective raises LostRankError.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from newllm_core.runs.disk import RunError

Made = TypeVar("Made")
# A rank that ended is noticed at once, by its closed connection; one that hangs, or whose machine is gone, after this.
# The first rank may be measuring, or waiting for another run's lock, for as long.
_TIMEOUT = timedelta(minutes=30)
_CPU = torch.device("cpu")


class LostRankError(RunError):
    """Another rank has ended, or does not answer."""


@dataclass(frozen=True)
class World:
    """One of ``size`` processes. All of them make the same calls in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and judges."""
        return self.rank == 0

    def parts(self, rows: slice) -> list[slice]:
        """Consecutive rows, cut into one part for each rank; lengths differ by one at most."""
        count = rows.stop - rows.start
        cuts = [rows.start + count * rank // self.size for rank in range(self.size + 1)]
        return [slice(first, last) for first, last in zip(cuts, cuts[1:])]

    def part(self, rows: slice) -> slice:
        """This rank's."""
        return self.parts(rows)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """Their sum over all ranks. The gradient is that of this rank's own values, where all ranks compute the same
        from the sum: nothing is sent on the way back."""
        return values if self.is_alone else _Total.apply(values)  # type: ignore[no-untyped-call]

    def gathered(self, rows: Tensor, count: int) -> Tensor:
        """All ranks' ``part`` of ``count`` rows, one behind the other; gradients as in ``total``."""
        if self.is_alone:
            return rows
        lengths = [part.stop - part.start for part in self.parts(slice(0, count))]
        return _Gathered.apply(rows, lengths, self.rank)  # type: ignore[no-untyped-call]

    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Each parameter's gradient becomes the sum over all ranks; a rank without one adds nothing."""
        if self.is_alone:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        summed = _added_up(torch.cat([gradient.flatten() for gradient in found]))
        for parameter, part in zip(trained, summed.split([one.numel() for one in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Of each number the largest of all ranks."""
        if self.is_alone:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        with _lost_ranks_named():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What ``make`` gives on the first rank, or the exception that it raises there, on all of them."""
        if self.is_alone:
            return make()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = error
        with _lost_ranks_named():
            dist.broadcast_object_list(told, src=0, device=_CPU)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def send_to_first(self, rows: Tensor, owner: int) -> None:
        """The first rank's ``rows`` become those of ``owner``; a contiguous part of a tensor that all ranks have."""
        if self.is_alone or owner == 0 or not len(rows):
            return
        with _lost_ranks_named():
            if self.is_first:
                found = torch.empty_like(rows, memory_format=torch.contiguous_format)
                dist.recv(found, owner)
                rows.copy_(found)
            elif self.rank == owner:
                dist.send(rows.contiguous(), 0)


_joined = World()


def current_world() -> World:
    return _joined


@contextmanager
def joined_ranks(device: str = "cpu") -> Iterator[World]:
    """Inside, this process is one of those that torchrun has started; without torchrun, the only one.

    Args:
        device: of the run: `cpu`, `cuda` or `auto`. With GPUs each rank has one of its own.

    Raises RunError for more ranks on a machine than it has GPUs.
    """
    global _joined
    started = "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun
    if not started or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        yield _joined
        return
    if device != "cpu" and torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    with _lost_ranks_named():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    _joined = World(dist.get_rank(), dist.get_world_size())
    if not _joined.is_first:
        logging.getLogger("newllm").setLevel(logging.ERROR)  # the first rank says it
    try:
        yield _joined
    finally:
        _joined = World()
        dist.destroy_process_group()


def refuse_ranks(what: str) -> None:
    """Raises RunError where torchrun has started several processes for what one process does."""
    count = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if count > 1:
        raise RunError(
            f"{what}: expected one process, given {count} of torchrun; run the same without it, and several runs side "
            "by side as a sweep"
        )


def _take_gpu(number: int) -> None:
    present = torch.cuda.device_count()
    if number >= present:
        raise RunError(f"torchrun: expected at most one rank for each of {present} GPUs; lower --nproc-per-node")
    torch.cuda.set_device(number)


@contextmanager
def _lost_ranks_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's is nothing more special than that
        if isinstance(error, RunError):
            raise
        place = f"rank {_joined.rank} of {_joined.size}"
        raise LostRankError(
            f"{place}: another rank has ended, or does not answer ({str(error).splitlines()[0]:.200}). This one stops "
            "too; run the same again, with any number of ranks, to go on from the last checkpoint"
        ) from error


def _added_up(values: Tensor) -> Tensor:
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    with _lost_ranks_named():
        dist.all_reduce(summed)
    return summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _added_up(values)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, led: Tensor) -> Tensor:
        return led


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int], rank: int) -> Tensor:
        ctx.first, ctx.count = sum(lengths[:rank]), lengths[rank]
        # Collectives want equal shapes: the shorter parts are filled up.
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in lengths]
        with _lost_ranks_named():
            dist.all_gather(found, padded)
        return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, led: Tensor) -> tuple[Tensor, None, None]:
        return led[ctx.first : ctx.first + ctx.count], None, None
