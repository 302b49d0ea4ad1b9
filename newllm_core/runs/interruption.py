"""SIGINT and SIGTERM, held back until what was done is safe: Ctrl-C, a notebook's stop button, a machine taken away.

What is saved, and how a run goes on from it, is in checkpoint.py; ``training/loop.py`` says when.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger("newllm")


class StopRequest:
    """``number`` of the signal that asked to stop, None before; a second one ends the program at once."""

    number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        logger.warning("asked to stop: saving after this step; ask again to stop at once, without saving")

    def obey(self, message: str) -> None:
        """Say ``message`` and end: KeyboardInterrupt, or SystemExit as of a program that SIGTERM ended."""
        logger.warning(message)
        raise KeyboardInterrupt(message) if self.number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)


@contextmanager
def held_signals(active: bool) -> Iterator[StopRequest]:
    """Inside, both signals are noted, not obeyed; only where ``active``, and in the main thread, which gets them."""
    request, before = StopRequest(), dict[int, Any]()
    if active and threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # Who ignores a signal (nohup) goes on ignoring it; what C code handles could not be put back.
        before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
