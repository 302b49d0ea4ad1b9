"""Several processes that work on one run, as torchrun would start them."""

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from newllm_core.runs.world import joined_ranks

# A server that has imported everything once forks a rank in milliseconds; pytest's own process has threads already.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rank_helpers", "core_helpers", "newllm_core.experiment.run", "torch._dynamo"])
_SECONDS = 120


def on_ranks(size: int, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What ``work(*given)``, a function of a module, returns on each of ``size`` ranks, or its exception as text."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(size)}
    pipes = []
    for rank in range(size):
        here, there = _CONTEXT.Pipe(duplex=False)
        own = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "tests"}
        process = _CONTEXT.Process(target=_rank, args=(own, there, work, given), daemon=True)
        process.start()
        there.close()
        pipes.append((process, here))
    try:
        return [_answer(here) for _, here in pipes]
    finally:
        for process, _ in pipes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _answer(pipe: Any) -> Any:
    try:
        return pipe.recv() if pipe.poll(_SECONDS) else "no answer"
    except EOFError:
        return "ended without an answer"


def _rank(environment: dict[str, str], answer: Any, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with joined_ranks():
            answer.send(work(*given))
    except Exception:
        answer.send(traceback.format_exc())
    answer.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@contextmanager
def doubles() -> Iterator[None]:
    """Inside, everything is computed in float64, so that only a mistake can be larger than 1e-8."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
