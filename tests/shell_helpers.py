"""A running IPython for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@contextmanager
def running_shell() -> Iterator[InteractiveShell]:
    """Without a history on disk: what tests run is nobody's, and IPython 7 writes it as Python 3.13 deprecates."""
    InteractiveShell.clear_instance()
    try:
        yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    finally:
        InteractiveShell.clear_instance()
