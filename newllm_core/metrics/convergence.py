"""Which tokens' contexts stay put between two passes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Convergence:
    """Tokens whose context moved by less than the threshold between two iterations."""

    converged: int
    total: int

    @property
    def rate(self) -> float:
        return self.converged / self.total

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.converged}/{self.total})"

    def record(self) -> dict[str, float]:
        return {"rate": self.rate, "converged": self.converged, "total": self.total}


def count_converged(contexts: Tensor, previous: Tensor, threshold: float) -> Tensor:
    """Tokens with a mean squared change below ``threshold``; both `[n, C]`, a scalar int64 on their device."""
    return ((contexts - previous).square().mean(dim=1) < threshold).sum()
