"""The notes' objective of Phase 1: contexts that stay put and spread out (docs/method.md, section 4).

One iteration sees every token once and takes one optimizer step. Token i is computed from the context that token
i - 1 had before: in the previous iteration (`context_source = previous_iteration`), or exactly, with the weights of
now (`exact`). That makes an iteration one large batch instead of a loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import context_file
from newllm_core.gpu_memory import DeviceBatch, accumulate_in_parts
from newllm_core.losses import cvfp_loss, diversity_loss, refuse_not_finite
from newllm_core.metrics.convergence import count_converged
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.runs.reproducibility import derived_generator, runs_kernels
from newllm_core.training.captured import RECORDABLE_LOSSES, CapturedStep, NotRecordedError, device_options
from newllm_core.training.loop import PassState

# Noise is drawn in blocks of this many token positions, so that it does not depend on the batches.
_NOISE_BLOCK = 1000
# Batches whose exact contexts are computed in one call: enough tokens to run in parallel, few enough to hold.
_EXACT_GROUP = 8
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


def in_place(tensor: Tensor) -> nn.Module:
    """The same memory as a module, for a checkpoint."""
    return nn.ParameterList([nn.Parameter(tensor, requires_grad=False)])


def batch_slices(num_tokens: int, batch_tokens: int, min_last_batch: int) -> list[slice]:
    """Consecutive batches; a last one of fewer than ``min_last_batch`` tokens joins the one before."""
    firsts = list(range(0, num_tokens, batch_tokens))
    if len(firsts) > 1 and num_tokens - firsts[-1] < min_last_batch:
        firsts.pop()
    return [slice(first, last) for first, last in zip(firsts, [*firsts[1:], num_tokens], strict=True)]


def context_noise(rows: slice, context_dim: int, std: float, seed: int, iteration: int) -> Tensor:
    """Noise `[rows, C]` that depends on seed, iteration and token position, not on how tokens are batched."""
    first_block, last_block = rows.start // _NOISE_BLOCK, (rows.stop - 1) // _NOISE_BLOCK
    blocks = [
        torch.randn(_NOISE_BLOCK, context_dim, generator=derived_generator("noise", seed, iteration, block))
        for block in range(first_block, last_block + 1)
    ]
    offset = rows.start - first_block * _NOISE_BLOCK
    return torch.cat(blocks)[offset : offset + rows.stop - rows.start].mul_(std)


class CvfpPass:
    """Trains ``model.context_block`` one iteration at a time. ``previous`` `[N, C]`: contexts of the last iteration."""

    def __init__(self, model: NewLLM, train_tokens: Tensor, config: Phase1Config, seed: int) -> None:
        self.model, self.block = model, model.context_block
        self.embeds = StreamEmbeddings(model, train_tokens)
        self.config, self.seed = config, seed
        self.diversity = diversity_loss(config.diversity_algorithm)
        device = train_tokens.device
        self.optimizer = torch.optim.Adam(self.block.parameters(), lr=config.learning_rate, **device_options(device))
        self.zero = torch.zeros(self.block.context_dim, device=device)
        self.batches = batch_slices(len(train_tokens), config.batch_tokens, config.min_last_batch)
        self.num_steps, self.device_batch = 1, DeviceBatch(self.zero.device, len(train_tokens))
        # Iteration 0: contexts without training. Rewritten in place, batch by batch, by every iteration.
        buffer = context_file(len(train_tokens), self.block.num_layers, self.block.context_dim, device)
        first = exact_contexts(self.block, self.embeds, self.zero, out=buffer)
        self.previous = first.contexts
        self.recorded = self._recording(first.segment_length) if runs_kernels(device) else None
        # What the next iteration depends on, beside the block's weights.
        self.parts = {"previous": in_place(self.previous), "optimizer": self.optimizer}

    def _recording(self, segment_length: int) -> "_RecordedIteration | None":
        few = len(self.batches) <= _MOST_RECORDED_BATCHES
        if not few or self.config.diversity_algorithm not in RECORDABLE_LOSSES:
            return None
        return _RecordedIteration(self, segment_length)

    def iterate(self, iteration: int) -> PassFigures:
        """One pass over all batches and one step. Raises NotFiniteError."""
        figures = None if self.recorded is None else self.recorded.iterate(iteration)
        if figures is not None:
            return figures
        self.recorded = None
        self.optimizer.zero_grad(set_to_none=True)
        means, converged = self.accumulate(self._inputs(), partial(self._with_noise, iteration))
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
            given = add_noise(inputs, rows), self.embeds[rows], previous
            contexts, figures = self.device_batch.fit(len(inputs), partial(self._accumulate, *given))
            sums += figures
            converged += count_converged(contexts, previous, self.config.convergence_threshold)
            if self.config.context_source == "previous_iteration":
                previous.copy_(contexts)
        return sums / len(self.batches), converged

    def _accumulate(self, inputs: Tensor, embeds: Tensor, previous: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Adds a batch's gradients, ``size`` rows at once; contexts `[n, C]`, and cvfp, diversity and total `[3]`."""
        weight, figures = self.config.dist_reg_weight, list[Tensor]()

        def loss(contexts: Tensor) -> Tensor:
            terms = cvfp_loss(contexts, previous), self.diversity(contexts)
            total = (1 - weight) * terms[0] + weight * terms[1]
            figures.append(torch.stack([*terms, total]).detach())
            return total / len(self.batches)

        contexts = accumulate_in_parts(
            lambda rows: self.block(inputs[rows], embeds[rows]), len(inputs), size, loss, self.block.parameters(),
            inputs.device,
        )  # fmt: skip
        return contexts, figures[0]

    def steps(self, iteration: int, within: PassState) -> Iterator[None]:
        """A single one, the whole iteration, which is therefore never interrupted."""
        self.latest = self.iterate(iteration)
        return iter(())

    def figures(self, within: PassState) -> PassFigures:
        return self.latest

    def held_out_prediction(self, contexts: Tensor, tokens: Tensor) -> None:
        """Nothing is predicted: the effective rank says which iteration to keep."""

    def _inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Per batch: its rows, the contexts entering them, and a view of the previous iteration's contexts there.

        Token 0 is entered by the last context of the previous iteration, the carry-over. The stored contexts of a
        batch change before the next batch is drawn, so the row between two batches is kept aside.
        """
        return self._exact_inputs() if self.config.context_source == "exact" else self.stale_inputs()

    def stale_inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The same with the contexts that the previous iteration left."""
        entering = self.previous[-1:].clone()
        for rows in self.batches:
            inputs = torch.cat([entering, self.previous[rows.start : rows.stop - 1]])
            entering = self.previous[rows.stop - 1 : rows.stop].clone()
            yield rows, inputs, self.previous[rows]

    def _exact_inputs(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The same with exact contexts of the current weights; CVFP still compares with the iteration before."""
        entering = self.previous[-1].clone()
        for first in range(0, len(self.batches), _EXACT_GROUP):
            group = self.batches[first : first + _EXACT_GROUP]
            offset = group[0].start
            # Written behind the entering context: what enters token i lies in row i.
            inputs = self.zero.new_empty(group[-1].stop - offset + 1, self.block.num_layers, self.block.context_dim)
            inputs[0, -1] = entering
            window = _Rows(self.embeds, slice(offset, group[-1].stop))
            current = exact_contexts(self.block, window, entering, out=inputs[1:])
            inputs, entering = inputs[:, -1], current.end
            for rows in group:
                yield rows, inputs[rows.start - offset : rows.stop - offset], self.previous[rows]
            self.previous[offset : group[-1].stop] = current.contexts

    def _with_noise(self, iteration: int, inputs: Tensor, rows: slice) -> Tensor:
        if self.config.context_noise == 0:
            return inputs
        if runs_kernels(inputs.device):
            from newllm_core.training.device_noise import noise_seed, with_noise

            drawn = noise_seed(self.seed, iteration, inputs.device)
            return with_noise(inputs, rows.start, self.config.context_noise, drawn)
        noise = context_noise(rows, inputs.shape[1], self.config.context_noise, self.seed, iteration)
        return inputs + noise.to(inputs.device, non_blocking=True)


class _RecordedIteration:
    """An iteration on a GPU: exact contexts of the whole stream first, all else as one CUDA graph.

    The host reads the figures once, after the step that they may forbid; such a step's weights are never used.
    """

    def __init__(self, objective: CvfpPass, segment_length: int) -> None:
        self.objective = objective
        # A probe before every iteration would cost as much as the sweeps. Contexts are exact whatever this is.
        self.segment_length = segment_length
        previous = objective.previous
        shape = len(previous) + 1, objective.block.num_layers, previous.shape[1]
        exact = objective.config.context_source == "exact"
        # What enters token i lies in row i, behind the carry-over.
        self.entering = previous.new_empty(shape) if exact else None
        self.step = CapturedStep(self._step)

    def iterate(self, iteration: int) -> PassFigures | None:
        """None where a whole batch does not fit at once, or the graph does not: then nothing has been done."""
        from newllm_core.training.device_noise import noise_seed

        objective = self.objective
        if objective.device_batch.size < max(rows.stop - rows.start for rows in objective.batches):
            return None
        if self.entering is not None:
            carried = objective.previous[-1]
            self.entering[0, -1] = carried
            exact_contexts(
                objective.block, objective.embeds, carried, out=self.entering[1:], segment_length=self.segment_length
            )
        try:
            (figures,) = self.step(noise_seed(objective.seed, iteration, objective.zero.device))
        except NotRecordedError:
            return None
        cvfp, diversity, total, norm, largest, converged = figures.tolist()
        named = {
            "cvfp": cvfp, objective.config.diversity_algorithm: diversity, "gradient norm": norm,
            "largest weight": largest,
        }  # fmt: skip
        refuse_not_finite(named)
        return PassFigures(cvfp, diversity, None, total, norm, int(converged))

    def _step(self, drawn: Tensor) -> tuple[Tensor]:
        """All after the exact contexts; cvfp, diversity, total, gradient norm, largest weight, converged, `[6]`."""
        objective = self.objective
        objective.optimizer.zero_grad(set_to_none=True)
        batches = objective.stale_inputs() if self.entering is None else self._exact_inputs(self.entering)
        means, converged = objective.accumulate(batches, partial(self._with_noise, drawn))
        norm = nn.utils.clip_grad_norm_(objective.block.parameters(), objective.config.gradient_clip)
        objective.optimizer.step()
        others = torch.stack([norm.double(), objective.largest_weight().double(), converged.double()])
        return (torch.cat([means, others]),)

    def _exact_inputs(self, entering: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for rows in self.objective.batches:
            yield rows, entering[rows, -1], self.objective.previous[rows]
        self.objective.previous.copy_(entering[1:, -1])

    def _with_noise(self, drawn: Tensor, inputs: Tensor, rows: slice) -> Tensor:
        from newllm_core.training.device_noise import with_noise

        std = self.objective.config.context_noise
        return with_noise(inputs, rows.start, std, drawn) if std else inputs


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
