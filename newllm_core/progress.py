"""Progress bars, all alike: one place for what runners without a reader need."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# A widget sends several messages per drawing; redrawn ten times a second, long cells swamp their reader.
SECONDS_BETWEEN_DRAWINGS = 1.0


def progress_bar(iterable: Iterable[Any] | None = None, *, disable: bool = False, **settings: Any) -> Any:
    """A ``tqdm`` bar for terminals and notebooks; none if ``disable`` or the environment has ``TQDM_DISABLE``.

    tqdm reads that variable itself in a terminal only: its notebook bar overrides it.
    """
    hidden = disable or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(iterable, disable=hidden, mininterval=SECONDS_BETWEEN_DRAWINGS, **settings)
