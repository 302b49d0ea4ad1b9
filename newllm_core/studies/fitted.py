"""What training leaves for a row of the leaderboard."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Fitted:
    """``nats`` `[M - 1]` of the validation targets; ``trainable_parameters`` of all phases; ``details`` of the record.

    ``earlier_cpu_seconds``: of a Phase 1 or a network that an earlier row had trained, and of all before an
    interruption.
    """

    nats: Tensor
    trainable_parameters: int
    details: dict[str, Any]
    earlier_cpu_seconds: float = 0.0
