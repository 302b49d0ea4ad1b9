"""What tasks of the tests do; imported by their workers, so it imports little."""

import os
import signal
import time
from pathlib import Path


def add(place: Path, number: int) -> int:
    """Work that says what it does, in Python and below it."""
    print("adding", flush=True)
    os.write(2, b"from below\n")
    with place.open("a") as stream:
        stream.write(f"{number}\n")
    return number + 1


def fail(place: Path) -> None:
    add(place, 0)
    raise ValueError("an impossible configuration")


def die_at_first(place: Path) -> str:
    """As a process that the kernel kills for its memory; the second try goes on from what the first has left."""
    if not place.exists():
        place.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    return place.read_text() + " and whole"


def die(place: Path) -> None:
    add(place, 0)
    os._exit(3)


def save_slowly(place: Path) -> None:
    """As a training that writes a large checkpoint when it is interrupted."""
    try:
        place.write_text("waiting")
        for _ in range(600):  # Ray interrupts between two steps of Python, never one that waits
            time.sleep(0.1)
    except KeyboardInterrupt:
        time.sleep(2)
        place.write_text("saved")
        raise


def wait_for_interruption(place: Path) -> None:
    try:
        place.write_text("waiting")
        time.sleep(60)
    except KeyboardInterrupt:
        place.write_text("saved")
        raise
