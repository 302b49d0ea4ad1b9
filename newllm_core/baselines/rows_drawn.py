"""Dropout of some streams of a batch, drawn for all of them: the same whoever computes which, and how many at once.

Layers draw where no argument reaches: attention drops its weights inside PyTorch. So draws are taken where they happen,
below all layers, by a dispatch mode.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from newllm_core.model.dropout import RowsOf
from newllm_core.runs.reproducibility import restore_generators

_ATEN = torch.ops.aten


@contextmanager
def rows_drawn(rows: RowsOf, num_rows: int, generators: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Inside, a network reads ``num_rows`` of a batch, and drops of these what it would drop reading all of it.

    Where they are all of it, nothing is changed. What is drawn has the batch as its first dimension.

    Args:
        generators: ``generator_states`` before the batch, from where on every part of it draws.

    Raises ValueError for a draw of another shape, and for a layer whose draws cannot be taken.
    """
    if num_rows == rows.count:
        yield
        return
    restore_generators(generators, device)
    with sdpa_kernel(SDPBackend.MATH), _DrawnForAll(rows, num_rows):  # the other kinds draw inside a kernel
        yield


class _DrawnForAll(TorchDispatchMode):
    def __init__(self, rows: RowsOf, num_rows: int) -> None:
        super().__init__()
        self._rows, self._num_rows = rows, num_rows

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is _ATEN.bernoulli_.float:  # dropout on a CPU
            return args[0].copy_(self._cut(func(self._whole(args[0]), *args[1:], **given)))
        if func is _ATEN.native_dropout.default and args[1] and args[2]:  # on a GPU
            values, share = args[0], args[1]
            mask = self._cut(func(self._whole(values).fill_(1), share, True)[1])
            return values * mask / (1 - share), mask
        if _draws(func, args, given):
            raise ValueError(f"{func}: expected dropout of PyTorch's, whose draws several ranks can share, given this")
        return func(*args, **given)

    def _whole(self, values: Tensor) -> Tensor:
        """Empty, for all rows where ``values`` are some."""
        if not values.dim() or len(values) != self._num_rows:
            raise ValueError(
                f"dropout: expected values [{self._num_rows} streams, ...], so that ranks draw alike, "
                f"given {list(values.shape)}"
            )
        # Numbers are drawn in the order of memory: of recurrent layers and attention, step by step over all streams.
        order = sorted(range(values.dim()), key=lambda place: (-values.stride()[place], -values.shape[place]))
        shape = [self._rows.count if place == 0 else values.shape[place] for place in order]
        return values.new_empty(shape).permute([order.index(place) for place in range(values.dim())])

    def _cut(self, whole: Tensor) -> Tensor:
        return whole[self._rows.first : self._rows.first + self._num_rows]


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers; of those that can, such as attention, where it drops something."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = {one.name: one.default_value for one in func._schema.arguments}
    given = names | dict(zip(names, args)) | dict(kwargs)
    return bool(given.get("dropout_p", given.get("dropout", given.get("p", True))))
