"""The notes' objective of Phase 1: contexts that stay put and spread out (docs/method.md, section 4).

One iteration sees every token once and takes one optimizer step. Token i is computed from the context that token
i - 1 had before: in the previous iteration (`context_source = previous_iteration`), or exactly, with the weights of
now (`exact`). That makes an iteration one large batch instead of a loop.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import allocate_contexts, context_file
from newllm_core.gpu_memory import DeviceBatch, accumulate_in_parts
from newllm_core.losses import cvfp_loss, refuse_not_finite
from newllm_core.metrics.convergence import count_converged
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.stream import PartsByType
from newllm_core.runs.mapped import give_back_pages
from newllm_core.runs.products import rounded_products
from newllm_core.runs.reproducibility import runs_kernels
from newllm_core.runs.world import current_world
from newllm_core.training.batch_gradient import BatchGradient
from newllm_core.training.captured import RECORDABLE_LOSSES, device_options
from newllm_core.training.context_noise import noise_blocks
from newllm_core.training.loop import PassState
from newllm_core.training.stream_parts import StreamParts

if TYPE_CHECKING:
    from newllm_core.training.recorded_iteration import RecordedIteration

# Of the contexts that training starts from: as exact as everything that is reported.
FIRST_TOLERANCE = 1e-5
_ROWS_AT_ONCE = 8192  # copied
# Whose exact contexts are computed in one call: the more, the fewer lock-steps, and the more to hold. A text of at most
# so many goes at once (131 MB, C = 500); a longer one, whose contexts take gigabytes, in smaller parts.
_EXACT_TOKENS, _EXACT_TOKENS_OF_LONGER = 2**16, 2**14
# Of an iteration that is recorded as a CUDA graph, some hundred kernels a batch; the host keeps up with larger ones.
_MOST_RECORDED_BATCHES = 256


@dataclass(frozen=True)
class PassFigures:
    """One iteration's figures: means over its batches, unweighted.

    ``cvfp`` and ``converged`` compare with the iteration before; ``prediction``, in the objective's own unit, is None
    where nothing is predicted.
    """

    cvfp: float
    diversity: float
    prediction: float | None
    total: float
    gradient_norm: float
    converged: int


@dataclass(frozen=True)
class InPlace:
    """A tensor `[N, …]` that is rewritten in place, as a part of a checkpoint. It may be larger than memory."""

    tensor: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        return {"0": self.tensor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state["0"].shape != self.tensor.shape:
            raise ValueError(f"expected {list(self.tensor.shape)}, given {list(state['0'].shape)}")
        for kept, stored in zip(self.tensor.split(_ROWS_AT_ONCE), state["0"].split(_ROWS_AT_ONCE), strict=True):
            kept.copy_(stored)
            give_back_pages()


def batch_slices(num_tokens: int, batch_tokens: int, min_last_batch: int) -> list[slice]:
    """Consecutive batches; a last one of fewer than ``min_last_batch`` tokens joins the one before."""
    firsts = list(range(0, num_tokens, batch_tokens))
    if len(firsts) > 1 and num_tokens - firsts[-1] < min_last_batch:
        firsts.pop()
    return [slice(first, last) for first, last in zip(firsts, [*firsts[1:], num_tokens], strict=True)]


def training_products(asked: str, device: torch.device) -> bool:
    """Whether products of training are of bfloat16 numbers. Raises ValueError where that is asked for on a GPU, whose
    recorded steps and kernels are float32."""
    if device.type != "cpu" and asked == "bfloat16":
        raise ValueError("products='bfloat16' is for a CPU; on a GPU Phase 1 multiplies float32: expected 'auto'")
    return rounded_products(asked, device)


class CvfpPass:
    """Trains ``model.context_block`` one iteration at a time. ``previous`` `[N, C]`: contexts of the last iteration."""

    def __init__(self, model: NewLLM, train_tokens: Tensor, config: Phase1Config, seed: int) -> None:
        self.model, self.block = model, model.context_block
        self.embeds = StreamEmbeddings(model, train_tokens)
        self.config, self.seed = config, seed
        device = train_tokens.device
        self.optimizer = torch.optim.Adam(self.block.parameters(), lr=config.learning_rate, **device_options(device))
        self.zero = torch.zeros(self.block.context_dim, device=device)
        self.world = current_world()
        batches = batch_slices(len(train_tokens), config.batch_tokens, config.min_last_batch)
        self.stream = StreamParts(self.world, batches, config.diversity_algorithm)
        self.batches = self.stream.batches
        self.num_steps, self.device_batch = 1, DeviceBatch(self.zero.device, len(train_tokens))
        self.device_batch.retries = self.world.is_alone
        self.bf16 = training_products(config.products, device)
        largest = max(rows.stop - rows.start for rows in self.batches)
        # A GPU goes through autograd's graph, which it can record.
        without_graph = device.type == "cpu" and not runs_kernels(device)
        self.arithmetic = BatchGradient(self.block, self.embeds, self.bf16, largest) if without_graph else None
        self.token_parts: PartsByType | None = None
        self.entering: Tensor | None = None
        # Iteration 0: contexts without training. Rewritten in place, batch by batch, by every iteration.
        buffer = context_file(len(train_tokens), self.block.num_layers, self.block.context_dim, device)
        self.recorded: RecordedIteration | None = None
        if self.world.is_alone:
            first = exact_contexts(self.block, self.embeds, self.zero, FIRST_TOLERANCE, out=buffer)
            self.previous = first.contexts
            self.recorded = self._recording(first.segment_length) if runs_kernels(device) else None
        else:
            buffer = self._entering_rows(len(train_tokens)) if buffer is None else buffer
            self.stream.exact(self.block, self._window, self.zero, FIRST_TOLERANCE, buffer, near=None)
            # Rows that other ranks have stay untouched, and take no memory.
            self.previous = self.zero.new_empty(len(train_tokens), self.block.context_dim)
            for stretch in self.stream.stretches:
                self.previous[stretch] = buffer[stretch, -1]
            self.stream.exchange_ends(self.previous)
        # What the next iteration depends on, beside the block's weights.
        self.parts = {"previous": InPlace(self.previous), "optimizer": self.optimizer}

    def _recording(self, segment_length: int) -> "RecordedIteration | None":
        few = len(self.batches) <= _MOST_RECORDED_BATCHES
        if not few or self.config.diversity_algorithm not in RECORDABLE_LOSSES:
            return None
        from newllm_core.training.recorded_iteration import RecordedIteration

        return RecordedIteration(self, segment_length)

    def iterate(self, iteration: int) -> PassFigures:
        """One pass over all batches and one step. Raises NotFiniteError."""
        figures = None if self.recorded is None else self.recorded.iterate(iteration)
        if figures is not None:
            return figures
        self.recorded = None
        self.optimizer.zero_grad(set_to_none=True)
        self.token_parts = None if self.arithmetic is None else self.arithmetic.begin()
        means, converged = self.accumulate(self._inputs(), partial(self._with_noise, iteration))
        if self.arithmetic is not None:
            self.arithmetic.finish()
        self.world.add_up_gradients(self.block.parameters())
        self.stream.exchange_ends(self.previous)
        cvfp, diversity, total_loss = means.tolist()
        refuse_not_finite({"cvfp": cvfp, self.config.diversity_algorithm: diversity})
        norm = float(nn.utils.clip_grad_norm_(self.block.parameters(), self.config.gradient_clip))
        refuse_not_finite({"gradient norm": norm})
        self.optimizer.step()
        refuse_not_finite({"largest weight": float(self.largest_weight())})
        return PassFigures(cvfp, diversity, None, total_loss, norm, int(converged))

    def largest_weight(self) -> Tensor:
        """Its absolute value, on the device."""
        return torch.stack([parameter.detach().abs().max() for parameter in self.block.parameters()]).max()

    def accumulate(
        self, batches: Iterator[tuple[slice, Tensor, Tensor]], add_noise: Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Gradients of all batches, as ``_inputs`` gives them; means of cvfp, diversity and total `[3]` in float64, and
        how many tokens converged."""
        # Sums stay on the device: reading one per batch would make a GPU wait.
        sums = self.zero.new_zeros(3, dtype=torch.float64)
        converged = torch.zeros((), dtype=torch.int64, device=self.zero.device)
        for rows, inputs, previous in batches:
            given = add_noise(inputs, rows), rows, previous
            contexts, figures, moved = self.device_batch.fit(len(inputs), partial(self._accumulate, *given))
            sums += figures
            converged += moved
            if self.config.context_source == "previous_iteration":
                previous.copy_(contexts)
            give_back_pages()
        return self.world.total(sums) / self.stream.num_batches, self.world.total(converged)

    def _accumulate(self, inputs: Tensor, rows: slice, previous: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Adds a batch's gradients, ``size`` rows at once; contexts `[n, C]`, cvfp, diversity and total `[3]`, and how
        many tokens converged."""
        if self.arithmetic is not None and size >= len(inputs):
            return self._accumulate_arithmetic(self.arithmetic, inputs, rows, previous)
        weight, figures, embeds = self.config.dist_reg_weight, list[Tensor](), self.embeds[rows]
        part, counted, diversity = self.stream.share(rows), self.stream.counted(rows), self.stream.diversity(rows)

        def loss(contexts: Tensor) -> Tensor:
            terms = cvfp_loss(contexts, previous) * part, diversity(contexts)
            figures.append(self._figures(terms[0].detach(), terms[1].detach() * counted))
            return ((1 - weight) * terms[0] + weight * terms[1]) / self.stream.num_batches

        contexts = accumulate_in_parts(
            lambda part: self.block(inputs[part], embeds[part]), len(inputs), size, loss, self.block.parameters(),
            inputs.device,
        )  # fmt: skip
        return contexts, figures[0], count_converged(contexts, previous, self.config.convergence_threshold)

    def _accumulate_arithmetic(
        self, arithmetic: BatchGradient, inputs: Tensor, rows: slice, previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same without a graph: only the diversity loss, whatever it is, has its gradient from autograd."""
        contexts = arithmetic.forward(inputs, rows)
        seen = contexts.detach().requires_grad_()
        diversity = self.stream.diversity(rows)(seen)
        led = torch.autograd.grad(diversity, [seen])[0] if diversity.requires_grad else torch.zeros_like(seen)
        weight, share, squares = self.config.dist_reg_weight, self.stream.num_batches, contexts.new_empty(len(contexts))
        count = contexts.numel() / self.stream.share(rows)  # of the whole batch

        def total_gradient(part: slice) -> Tensor:
            change = contexts[part] - previous[part]
            torch.linalg.vector_norm(change, dim=1, out=squares[part])
            return (led[part] * (weight / share)).add_(change, alpha=2 * (1 - weight) / (share * count))

        arithmetic.backward(inputs, total_gradient)
        squares = squares.square() / contexts.shape[1]
        figures = self._figures(
            squares.mean() * self.stream.share(rows), diversity.detach() * self.stream.counted(rows)
        )
        return contexts, figures, (squares < self.config.convergence_threshold).sum()

    def _figures(self, cvfp: Tensor, diversity: Tensor) -> Tensor:
        """With their total, `[3]`."""
        weight = self.config.dist_reg_weight
        return torch.stack([cvfp, diversity, (1 - weight) * cvfp + weight * diversity])

    def steps(self, iteration: int, within: PassState) -> Iterator[None]:
        """A single one, the whole iteration, which is therefore never interrupted."""
        self.latest = self.iterate(iteration)
        return iter(())

    def figures(self, within: PassState) -> PassFigures:
        return self.latest

    def complete_on_first(self, num_tokens: int) -> None:
        """So many rows of ``previous`` on the first rank, which judges and saves."""
        self.stream.complete_on_first(self.previous, num_tokens)

    def held_out_prediction(self, contexts: Tensor, tokens: Tensor) -> None:
        """Nothing is predicted: the effective rank says which iteration to keep."""

    def _inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Per batch: its rows, the contexts entering them, and a view of the previous iteration's contexts there.

        Token 0 is entered by the last context of the previous iteration, the carry-over. The stored contexts of a
        batch change before the next batch is drawn, so the row between two batches is kept aside.
        """
        if self.config.context_source != "exact":
            return self.stale_inputs()
        return self._exact_inputs() if self.world.is_alone else self._exact_inputs_of_part()

    def stale_inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The same with the contexts that the previous iteration left."""
        starts = {stretch.start for stretch in self.stream.stretches}
        for rows in self.batches:
            if rows.start in starts:
                entering = self.previous[rows.start - 1].clone().unsqueeze(0)
            inputs = torch.cat([entering, self.previous[rows.start : rows.stop - 1]])
            entering = self.previous[rows.stop - 1 : rows.stop].clone()
            yield rows, inputs, self.previous[rows]

    def _exact_inputs_of_part(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """As ``_exact_inputs`` for one rank of several: all of its stretches first, which it holds meanwhile."""
        carried = self.previous[-1].clone()
        current = self._entering_rows(len(self.previous))
        starts = self.stream.exact(
            self.block, self._window, carried, self.config.context_tolerance, current, near=self.previous
        )  # fmt: skip
        entering = dict(zip([stretch.start for stretch in self.stream.stretches], starts, strict=True))
        for rows in self.batches:
            start = entering[rows.start] if rows.start in entering else current[rows.start - 1, -1]
            yield rows, torch.cat([start.unsqueeze(0), current[rows.start : rows.stop - 1, -1]]), self.previous[rows]
            self.previous[rows] = current[rows, -1]

    def _window(self, rows: slice) -> "_Rows | PartsByType":
        """Some tokens of the stream, for their exact contexts."""
        return _Rows(self.embeds, rows) if self.token_parts is None else self.token_parts.at([rows])

    def _exact_inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The same with exact contexts of the current weights; CVFP still compares with the iteration before."""
        entering, segment_length = self.previous[-1].clone(), None
        whole = self.batches[-1].stop <= _EXACT_TOKENS
        for group in _grouped(self.batches, _EXACT_TOKENS if whole else _EXACT_TOKENS_OF_LONGER):
            offset = group[0].start
            # Written behind the entering context: what enters token i lies in row i.
            inputs = self._entering_rows(group[-1].stop - offset + 1)
            inputs[0, -1] = entering
            stream = slice(offset, group[-1].stop)
            window = self._window(stream)
            current = exact_contexts(
                self.block, window, entering, self.config.context_tolerance, out=inputs[1:],
                near=self.previous[stream], segment_length=segment_length,
            )  # fmt: skip
            # Measured once an iteration, where that is not the length of the group.
            segment_length = current.segment_length if current.segment_length < len(window) else None
            inputs, entering = inputs[:, -1], current.end
            for rows in group:
                yield rows, inputs[rows.start - offset : rows.stop - offset], self.previous[rows]
            self.previous[offset : group[-1].stop] = current.contexts

    def _entering_rows(self, count: int) -> Tensor:
        """`[count, L, C]` to write to. Kept: fresh memory of that size costs a tenth of what is computed into it."""
        if self.entering is None or len(self.entering) < count:
            shape = count, self.block.num_layers, self.block.context_dim
            on_cpu = self.zero.device.type == "cpu"
            self.entering = allocate_contexts(*shape, self.zero.device) if on_cpu else self.zero.new_empty(shape)
        return self.entering[:count]

    def _with_noise(self, iteration: int, inputs: Tensor, rows: slice) -> Tensor:
        if self.config.context_noise == 0:
            return inputs
        if runs_kernels(inputs.device):
            from newllm_core.training.device_noise import noise_seed, with_noise

            drawn = noise_seed(self.seed, iteration, inputs.device)
            return with_noise(inputs, rows.start, self.config.context_noise, drawn)
        noisy = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        for part, table, chosen, signs in noise_blocks(rows, inputs.shape[1], self.seed, iteration):
            noise, scale = table[chosen].to(inputs.device), (signs * self.config.context_noise).to(inputs.device)
            torch.addcmul(inputs[part], noise, scale, out=noisy[part])
        return noisy


def _grouped(batches: Sequence[slice], most: int) -> Iterator[list[slice]]:
    """Consecutive batches of together at most so many tokens; at least one."""
    group: list[slice] = []
    for rows in batches:
        if group and rows.stop - group[0].start > most:
            yield group
            group = []
        group.append(rows)
    yield group


@dataclass(frozen=True)
class _Rows:
    """A window of a stream's embeddings, sliced from its own start."""

    embeds: StreamEmbeddings
    rows: slice

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        return self.embeds[self.rows.start + start : self.rows.start + stop]
