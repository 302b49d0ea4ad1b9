"""Objectives of Phase 1 that predict, without labels: the next token's frozen embedding from the context.

A linear map of context i is held against the embedding of token i + 1: by telling it from those of other tokens
(`contrastive`: InfoNCE, van den Oord et al. 2018), or by its squared distance (`regression`, as in LeJEPA, Balestriero
& LeCun 2025, whose SIGReg is among the diversity losses). The text is read in streams side by side, and gradients reach
back to the start of a segment (truncated back-propagation). The map is thrown away afterwards.

Negatives are drawn as often as tokens occur, so that the contrastive optimum is log p(next | context) - log p(next):
just what a readout with a unigram bias has to add.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.config.hyperparameters import Phase1Config
from newllm_core.contexts.shooting import exact_contexts
from newllm_core.contexts.store import context_file
from newllm_core.data.stream import ring_segments
from newllm_core.gpu_memory import DeviceBatch, accumulate_in_parts
from newllm_core.head.cross_entropy import choose_head, frozen_head_cross_entropy, with_output_bias, with_unit_columns
from newllm_core.losses import diversity_loss, diversity_over_ranks
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.dropout import RowsOf, dropout
from newllm_core.runs.reproducibility import derived_generator, runs_kernels
from newllm_core.runs.world import current_world
from newllm_core.training.captured import (
    RECORDABLE_LOSSES,
    CapturedStep,
    DeviceRate,
    NotRecordedError,
    device_options,
)
from newllm_core.training.context_noise import noise_table
from newllm_core.training.fixed_point import FIRST_TOLERANCE, InPlace, PassFigures
from newllm_core.training.loop import PassState
from newllm_core.training.rounded import linear
from newllm_core.training.segment import segment_contexts

_TYPES_AT_ONCE, _LOG_NO_COUNT = 128, -1e4  # whose exponential is zero beside any score's
_HELD_OUT_ROWS = 1024  # of the held-out loss, computed at once
# Of a step, in the order in which it gives them.
_FIGURES = ("prediction", "diversity", "total", "gradient_norm", "cvfp", "converged")


def contrastive_loss(
    predicted: Tensor, targets: Tensor, negatives: Tensor, embeds: Tensor, method: str = "direct",
    own: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """InfoNCE in nats: each prediction's own target among the other rows' targets and further ``negatives``.

    Args:
        predicted: `[n, E]`.
        targets: `[n]` token ids; those of other rows are negatives too. Negatives that are the target's own token stay
            in: without them the optimum would not be the mutual information.
        negatives: `[k]` token ids, k >= 0.
        embeds: `[V, E]`, what predictions are compared with.
        method: of `head.cross_entropy`. All but "direct" read each token type once, a third of the candidates here,
            and count it as often as it stands among them.
        own: which of ``targets`` are those of the predictions; None: all of them.
    """
    candidates = torch.cat([targets, negatives])
    own = torch.arange(len(targets), device=targets.device) if own is None else own
    if method == "direct":
        return functional.cross_entropy(predicted @ functional.embedding(candidates, embeds).T, own)
    types, places, counts = candidates.unique(return_inverse=True, return_counts=True)
    # c · exp(score) = exp(score + log c); a target's own score goes without. Few sizes, as products of a size that is
    # new are slow: rows of no weight fill up.
    unused, own_types = -len(types) % _TYPES_AT_ONCE, places[own]
    log_counts = functional.pad(counts.to(predicted.dtype).log(), (0, unused), value=_LOG_NO_COUNT)
    head = with_output_bias(functional.embedding(functional.pad(types, (0, unused)), embeds), log_counts)
    nats = frozen_head_cross_entropy(with_unit_columns(predicted), head, own_types, method=method)
    return nats + log_counts[own_types].mean()


def regression_loss(predicted: Tensor, targets: Tensor, embeds: Tensor) -> Tensor:
    """Mean squared error per component. `[n, E], [n], [V, E]` -> a scalar >= 0."""
    return functional.mse_loss(predicted, functional.embedding(targets, embeds))


def _rows(contexts: Tensor) -> Tensor:
    """`[B, T, C]` -> `[T · B, C]`, token by token, as they lie in memory."""
    return contexts.transpose(0, 1).flatten(0, 1)


class PredictivePass:
    """Trains ``model.context_block`` one pass over the text at a time, with a step per segment.

    ``previous`` `[N, C]` holds each token's context of the last pass, so that the fixed-point figures of the notes'
    objective can be reported for this one too. Raises ValueError for a text too short for the streams.
    """

    def __init__(self, model: NewLLM, train_tokens: Tensor, config: Phase1Config, seed: int) -> None:
        if len(train_tokens) < 2 * config.prediction_streams:
            raise ValueError(
                f"Phase 1: expected at least two tokens for each of prediction_streams={config.prediction_streams}, "
                f"given {len(train_tokens)} training tokens"
            )
        self.world = current_world()
        if config.prediction_streams < self.world.size:
            raise ValueError(
                f"Phase 1: expected at least one of prediction_streams={config.prediction_streams} for each of "
                f"{self.world.size} ranks"
            )
        self.part = self.world.part(slice(0, config.prediction_streams))
        self.model, self.block, self.tokens = model, model.context_block, train_tokens
        self.config, self.seed = config, seed
        self.diversity = diversity_loss(config.diversity_algorithm)
        self.embeds = StreamEmbeddings(model, train_tokens)
        device = train_tokens.device
        # On a GPU logits of a segment are few, and the direct way can be recorded.
        self.loss_method = choose_head("auto", device) if device.type == "cpu" else "direct"
        self.rounded = self.loss_method == "blocks-bf16"
        torch.manual_seed(derived_generator("predictive", seed).initial_seed())  # predictor, dropout, SIGReg's slices
        self.predictor = nn.Linear(self.block.context_dim, model.config.embed_dim).to(device)
        self.parameters = [*self.block.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, weight_decay=config.prediction_weight_decay,
            **device_options(device),
        )  # fmt: skip
        self.rate = DeviceRate(self.optimizer, device) if device.type == "cuda" else None
        recordable = self.rate is not None and self.world.is_alone and config.diversity_algorithm in RECORDABLE_LOSSES
        self.captured = CapturedStep(self._updated) if recordable else None
        self.num_steps = math.ceil((len(train_tokens) // config.prediction_streams - 1) / config.prediction_segment)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, self.num_steps * config.max_iterations
        )
        with torch.no_grad():
            every = torch.arange(len(model.embedding), device=device)
            scale = 1.0 if config.objective == "regression" else math.sqrt(model.config.embed_dim)
            self.targets = model.embed_for_contexts(every) / scale
        self.iteration = 0
        self.device_batch = DeviceBatch(device, self.part.stop - self.part.start)
        self.device_batch.retries = self.world.is_alone
        zero = torch.zeros(self.block.context_dim, device=device)
        buffer = context_file(len(train_tokens), self.block.num_layers, self.block.context_dim, device)
        self.previous = exact_contexts(self.block, self.embeds, zero, FIRST_TOLERANCE, out=buffer).contexts
        # What the next iteration depends on, beside the block's weights.
        self.parts = {
            "previous": InPlace(self.previous), "predictor": self.predictor, "optimizer": self.optimizer,
            "schedule": self.schedule,
        }  # fmt: skip

    def steps(self, iteration: int, within: PassState) -> Iterator[None]:
        """One pass over the text, but the steps that ``within`` has had."""
        context = self.previous.new_zeros(self.config.prediction_streams, self.block.context_dim)
        generator = derived_generator("prediction", self.seed, iteration)
        self.iteration = iteration
        segments = ring_segments(
            len(self.tokens), self.config.prediction_streams, self.config.prediction_segment, generator
        )
        for positions in islice(segments, within.steps, None):
            if within.carried is not None:
                context, drawn = within.carried
                generator.set_state(drawn.cpu())
            context = self._step(positions.to(self.tokens.device), context, generator, within)
            within.carried = context, generator.get_state()
            yield

    def figures(self, within: PassState) -> PassFigures:
        """Of the pass whose steps have been taken."""
        sums = {name: float(value) for name, value in within.sums.items()}
        converged = int(sums.pop("converged"))
        return PassFigures(converged=converged, **{name: value / self.num_steps for name, value in sums.items()})

    def _step(self, positions: Tensor, context: Tensor, generator: torch.Generator, within: PassState) -> Tensor:
        """One segment `[B, T]` entered by ``context`` `[B, C]`; returns what enters the next."""
        given = positions, context, self._negatives(generator)
        if self.rate is not None:
            self.rate.update()
        context, *figures = self._recorded(*given) or self._updated(*given)
        self.schedule.step()
        within.add(**dict(zip(_FIGURES, figures, strict=True)))
        return context

    def _recorded(self, positions: Tensor, context: Tensor, negatives: Tensor) -> tuple[Tensor, ...] | None:
        """``_updated`` as a CUDA graph, for whole segments that fit at once; None where it is not to be used."""
        whole = positions.shape[1] == self.config.prediction_segment and self.device_batch.size >= len(positions)
        if self.captured is None or not (whole and self.device_batch.records):
            return None
        try:
            return self.captured(positions, context, negatives)
        except NotRecordedError:
            self.captured, self.device_batch.records = None, False
            return None

    def _updated(self, positions: Tensor, context: Tensor, negatives: Tensor) -> tuple[Tensor, ...]:
        """The device's share of a step; what enters the next segment, and the step's figures."""
        attempt = partial(self._gradients, positions, context, negatives)
        contexts, figures = self.device_batch.fit(self.part.stop - self.part.start, attempt)
        if not self.world.is_alone:
            self.world.add_up_gradients(self.parameters)
            contexts, figures = self.world.gathered(contexts, len(positions)), self._figures_of_all(figures)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        if self.rate is None:
            self.optimizer.step()
        else:
            self.rate.step()
        flat, rows = _rows(contexts), positions.T.flatten()
        moved = (flat - self.previous.index_select(0, rows)).square().mean(dim=1)
        converged = (moved < self.config.convergence_threshold).sum()
        found = {**figures, "gradient_norm": norm, "cvfp": moved.mean(), "converged": converged}
        self.previous.index_copy_(0, rows, flat)
        return contexts[:, -1], *[found[name].detach() for name in _FIGURES]

    def _figures_of_all(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each rank has its share of the prediction's mean, and the diversity of all."""
        weight, prediction = self.config.dist_reg_weight, self.world.total(figures["prediction"].detach())
        diversity = figures["diversity"].detach()
        return {
            "prediction": prediction, "diversity": diversity, "total": (1 - weight) * prediction + weight * diversity
        }  # fmt: skip

    def _diversity(self, contexts: Tensor, num_tokens: int) -> Tensor:
        """Of all streams, of this rank's rows `[num_tokens · b, C]`."""
        if self.world.is_alone:
            return self.diversity(contexts)
        streams = self.config.prediction_streams

        def gather(rows: Tensor) -> Tensor:
            return _rows(self.world.gathered(rows.unflatten(0, (num_tokens, -1)).transpose(0, 1), streams))

        loss = diversity_over_ranks(
            self.config.diversity_algorithm, num_tokens * streams, self.world.total, gather
        )  # fmt: skip
        return loss(contexts)

    def _rows_of(self, rows: slice) -> RowsOf | None:
        """Which of all streams these of this rank are; None where it has all."""
        if self.world.is_alone:
            return None
        return RowsOf(self.part.start + rows.start, self.config.prediction_streams)

    def _gradients(
        self, positions: Tensor, context: Tensor, negatives: Tensor, size: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a segment's streams that this rank has, ``size`` at once; their contexts `[b, T, C]` and the terms of its
        loss."""
        targets = self.tokens[(positions.T.flatten() + 1) % len(self.tokens)]
        weight, figures = self.config.dist_reg_weight, dict[str, Tensor]()

        def loss(contexts: Tensor) -> Tensor:
            flat = _rows(contexts)
            prediction = self._prediction(flat, targets, negatives)
            # Without a weight, a figure alone.
            diversity = self._diversity(flat if weight else flat.detach(), positions.shape[1])
            total = (1 - weight) * prediction + weight * diversity
            figures.update(prediction=prediction, diversity=diversity, total=total)
            return total

        self.optimizer.zero_grad(set_to_none=True)
        own, entering = positions[self.part], context[self.part]
        contexts = accumulate_in_parts(
            lambda rows: self._contexts(own[rows], entering[rows], self._rows_of(rows)), len(own), size, loss,
            self.parameters, positions.device,
        )  # fmt: skip
        return contexts, figures

    def _contexts(self, positions: Tensor, context: Tensor, rows: RowsOf | None = None) -> Tensor:
        """The last layer's, with dropout of the token input and noise on what enters. `[b, T]` -> `[b, T, C]`."""
        earlier = range(self.model.config.num_input_tokens - 1, -1, -1)
        ids = [self.tokens[(positions.T - lag) % len(self.tokens)] for lag in earlier]
        embeds = torch.cat([self.model.embed_for_contexts(lagged) for lagged in ids], dim=-1)
        parts = self._token_parts(dropout(embeds, self.config.prediction_dropout, rows))
        noise = self._noise(positions.shape[1], context, rows)
        if runs_kernels(context.device) and self.block.num_layers == 1:
            return self._contexts_by_kernels(context, parts[0].transpose(0, 1), noise)
        return segment_contexts(self.block.context_layers(), context, parts, noise, self.rounded).transpose(0, 1)

    def _token_parts(self, embeds: Tensor) -> list[Tensor]:
        """`ContextBlock.token_parts`, products rounded where those are. `[..., E·T]` -> L × `[..., C]`."""
        if not self.rounded:
            return self.block.token_parts(embeds)
        return [
            layer.token_part(embeds)
            if layer.from_token is None
            else linear(embeds, layer.from_token.weight, layer.from_context.bias, rounded=True)
            for layer in self.block.context_layers()
        ]

    def _noise(self, num_tokens: int, context: Tensor, rows: RowsOf | None) -> Tensor | None:
        """`[num_tokens, b, C]` for what enters, from the generator that dropout draws from; None for none.

        On a CPU rows of the pass's table with a sign each: so many normal numbers would take a twentieth of the step.
        """
        std = self.config.context_noise
        if not std:
            return None
        count, first = (len(context), 0) if rows is None else (rows.count, rows.first)
        if context.is_cuda:
            noise = std * torch.randn(num_tokens, count, context.shape[1], device=context.device)
            return noise.narrow(1, first, len(context))
        table = noise_table(self.block.context_dim, self.seed, self.iteration)  # kept, drawn once a pass
        drawn = torch.randint(2 * len(table), (num_tokens, count)).narrow(1, first, len(context))
        return table[drawn // 2].mul_((std * (1 - 2 * (drawn % 2))).unsqueeze(2))

    def _contexts_by_kernels(self, context: Tensor, part: Tensor, noise: Tensor | None) -> Tensor:
        """The same on a GPU, for a block of one layer."""
        from newllm_core.training.triton_segment import segment_contexts

        return segment_contexts(self.block.context_layers()[0], context, part, noise)

    def _prediction(self, contexts: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Of this rank's rows, as their share of the mean over all."""
        read, own = self._read(contexts), None
        predicted = linear(read, self.predictor.weight, self.predictor.bias, self.rounded)
        if not self.world.is_alone:
            every = torch.arange(len(targets), device=targets.device).view(-1, self.config.prediction_streams)
            own = every[:, self.part].flatten()
        if self.config.objective == "regression":
            loss = regression_loss(predicted, targets if own is None else targets[own], self.targets)
        else:
            loss = contrastive_loss(predicted, targets, negatives, self.targets, self.loss_method, own)
        return loss if own is None else loss * (len(own) / len(targets))

    def _read(self, contexts: Tensor) -> Tensor:
        """With dropout, `[T · b, C]`."""
        share, rows = self.config.prediction_dropout, self._rows_of(slice(0, 0))
        if rows is None:
            return dropout(contexts, share)
        streams = contexts.unflatten(0, (-1, self.part.stop - self.part.start))
        return dropout(streams, share, rows).flatten(0, 1)

    def _negatives(self, generator: torch.Generator) -> Tensor:
        if self.config.objective == "regression":
            return self.tokens[:0]
        drawn = torch.randint(len(self.tokens), (self.config.prediction_negatives,), generator=generator)
        return self.tokens[drawn.to(self.tokens.device)]

    def complete_on_first(self, num_tokens: int) -> None:
        """Every rank has all of ``previous``."""

    @torch.no_grad()
    def held_out_prediction(self, contexts: Tensor, tokens: Tensor) -> float:
        """The objective on exact contexts `[n, C]` of other text, always with the same negatives. Context i predicts
        ``tokens[i + 1]``, so the last context is not used."""
        predicted, targets = self.predictor(contexts[:-1]), tokens[1 : len(contexts)]
        if self.config.objective == "regression":
            return float(regression_loss(predicted, targets, self.targets))
        negatives = self._negatives(derived_generator("held-out negatives"))
        method = "direct" if predicted.is_cuda else "blocks"  # a figure, so with exact products
        parts = [
            contrastive_loss(some, ids, negatives, self.targets, method) * len(some)
            for some, ids in zip(predicted.split(_HELD_OUT_ROWS), targets.split(_HELD_OUT_ROWS), strict=True)
        ]
        return float(torch.stack(parts).sum()) / len(predicted)
