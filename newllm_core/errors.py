"""What stops a training run."""

import math
from collections.abc import Mapping


class NotFiniteError(RuntimeError):
    """A loss became infinite or not a number; the message names the term, and the training loop says where."""


def refuse_not_finite(terms: Mapping[str, float]) -> None:
    """Raises NotFiniteError for the first of the named figures that is not finite."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} is {value}")
