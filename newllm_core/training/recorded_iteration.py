"""An iteration of the fixed-point objective on a GPU, as one CUDA graph."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from newllm_core.contexts.shooting import exact_contexts
from newllm_core.losses import refuse_not_finite
from newllm_core.training.captured import CapturedStep, NotRecordedError
from newllm_core.training.fixed_point import CvfpPass, PassFigures


class RecordedIteration:
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
        whole = objective.device_batch.size >= max(rows.stop - rows.start for rows in objective.batches)
        if not (whole and objective.device_batch.records):
            return None
        if self.entering is not None:
            carried = objective.previous[-1]
            self.entering[0, -1] = carried
            exact_contexts(
                objective.block, objective.embeds, carried, objective.config.context_tolerance,
                out=self.entering[1:], segment_length=self.segment_length, near=objective.previous,
            )  # fmt: skip
        try:
            (figures,) = self.step(noise_seed(objective.seed, iteration, objective.zero.device))
        except NotRecordedError:
            objective.device_batch.records = False
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
