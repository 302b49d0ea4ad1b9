"""Optimizer steps as CUDA graphs, since a GPU is done with small kernels sooner than the host has launched them.

A step is run as it is a few times, then recorded, and from then on replayed with new inputs. Whatever it touches beside
its inputs (weights, optimizer state, streams of contexts) has to stay in place, and nothing in it may be drawn or read
on the host. Dropout and device noise go on as they would: PyTorch counts what a replay draws.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from newllm_core.gpu_memory import is_out_of_memory


class NotRecordedError(RuntimeError):
    """A graph's own memory, which it keeps, does not fit; the step itself has not been taken."""


# Before the recording: libraries choose their kernels, the optimizer makes its state, Triton compiles.
_STEPS_BEFORE = 3


class CapturedStep:
    """``step(*inputs)``, inputs of one shape, to a tuple of tensors that are valid until the next call."""

    def __init__(self, step: Callable[..., tuple[Tensor, ...]]) -> None:
        self._step = step
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Raises what the step raises, and NotRecordedError; then this object is of no further use."""
        self._take(inputs)
        self._calls += 1
        if self._calls <= _STEPS_BEFORE:
            return self._beside()
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()
        return self._outputs

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._step(*self._inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise NotRecordedError("no memory for a recorded step") from error
        return graph

    def _take(self, inputs: tuple[Tensor, ...]) -> None:
        if not self._inputs:
            self._inputs = tuple(value.clone() for value in inputs)
            return
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)

    def _beside(self) -> tuple[Tensor, ...]:
        """One call on a stream of its own, where nodes of the gradient's graph must not be tied to the usual one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._step(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs


# The losses of `losses.py` that neither draw on the host nor decompose a matrix, which a recorded step may not.
RECORDABLE_LOSSES = ("MCDL", "ODCM", "PR")


def device_options(device: torch.device) -> dict[str, Any]:
    """Of Adam and AdamW: one kernel, whose state stays on a GPU, so that a step can be recorded there."""
    return {"fused": True, "capturable": device.type == "cuda"}


class DeviceRate:
    """An optimizer's learning rate, which a schedule changes on the host, as a number on the GPU that a recorded step
    reads: `update()` before each step, `step()` inside it. All groups have one rate."""

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._rate = torch.zeros((), device=device)

    def update(self) -> None:
        self._rate.fill_(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        groups = self._optimizer.param_groups
        on_host = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = self._rate
        self._optimizer.step()
        for group, rate in zip(groups, on_host, strict=True):
            group["lr"] = rate
