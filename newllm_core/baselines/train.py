"""Training of a baseline network: truncated back-propagation over streams of the training text, early stopping."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.judge import NetworkReader, output_bias_and_weight
from newllm_core.baselines.networks import joined_states, mapped_state, split_state
from newllm_core.baselines.registry import build_network
from newllm_core.baselines.rows_drawn import rows_drawn
from newllm_core.data.stream import ring_segments
from newllm_core.gpu_memory import DeviceBatch
from newllm_core.head.cross_entropy import Head, choose_head
from newllm_core.head.sampled_softmax import SampledHead, epochs_head
from newllm_core.losses import refuse_not_finite
from newllm_core.metrics.prediction import perplexity
from newllm_core.model import NewLLM
from newllm_core.model.dropout import RowsOf
from newllm_core.runs.checkpoint import CheckpointPlace, with_read_data
from newllm_core.runs.progress import Seconds
from newllm_core.runs.reproducibility import derived_generator, generator_states
from newllm_core.training.loop import TrainingLoop


@dataclass(frozen=True)
class BaselineEpoch:
    """One epoch: losses in nats a token, ``train_loss`` with dropout and while the weights moved, ``validation_…`` on
    the text that chooses."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_perplexity: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the weights of ``best_epoch``; ``seconds`` of training, before interruptions too."""

    network: nn.Module
    epochs: list[BaselineEpoch]
    best_epoch: int
    seconds: Seconds

    def record(self) -> dict[str, Any]:
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "trainable_parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "seconds": self.seconds.wall,
            "cpu_seconds": self.seconds.cpu,
        }


def train_network(
    model: NewLLM,
    train_tokens: Tensor,
    selection_tokens: Tensor,
    config: BaselineConfig,
    seed: int,
    checkpoints: CheckpointPlace | None = None,
) -> TrainedNetwork:
    """Train a network between the embeddings and the tied head of ``model``, whose own blocks are not used.

    Of several ranks each reads some of the streams, and the first one judges.

    Args:
        train_tokens: `[N]`, selection_tokens: `[S]`, what the epoch is chosen on; on the model's device.
        seed: of weights, streams and dropout.
        checkpoints: where they are written and gone on from, with the same result to the last bit; None: none. The
            caller deletes the last ones.

    Raises NotFiniteError when a loss is not finite, ValueError for too short a text, another width of the
    embeddings or more ranks than streams, RunError for a checkpoint that is not this run's.
    """
    trainer = _Trainer(model, train_tokens, selection_tokens, config, seed, checkpoints)
    trainer.run()
    trainer.network.load_state_dict(trainer.best.weights)
    return TrainedNetwork(trainer.network, trainer.rows, trainer.best.number, trainer.watch.total())


class _Trainer(TrainingLoop[BaselineEpoch]):
    row_kind = BaselineEpoch

    def __init__(
        self, model: NewLLM, train_tokens: Tensor, selection_tokens: Tensor, config: BaselineConfig, seed: int,
        checkpoints: CheckpointPlace | None,
    ) -> None:  # fmt: skip
        least = config.num_streams * config.segment_tokens
        if len(train_tokens) <= least:
            raise ValueError(
                f"train_network: expected more than num_streams · segment_tokens = {least} tokens, "
                f"given {len(train_tokens)}"
            )
        if config.embed_dim != model.config.embed_dim:
            raise ValueError(
                f"train_network: expected the embeddings' embed_dim={model.config.embed_dim}, given {config.embed_dim}"
            )
        self.model, self.config, self.seed, self.name = model, config, seed, config.network
        device = train_tokens.device
        read: dict[str, list[Tensor]] = {"tokens": [train_tokens, selection_tokens], "embedding": [model.embedding]}
        self.method = choose_head("auto", device)
        super().__init__(
            device, config.max_epochs, checkpoints and with_read_data(checkpoints, device, read, head=self.method),
            patience=config.patience, device_batch=DeviceBatch(device, config.num_streams),
            steps_per_pass=math.ceil((len(train_tokens) // config.num_streams - 1) / config.segment_tokens),
        )  # fmt: skip
        if self.world.size > config.num_streams:
            raise ValueError(
                f"train_network: expected at most num_streams = {config.num_streams} ranks, given {self.world.size}"
            )
        self.streams = self.world.part(slice(0, config.num_streams))  # of the streams, those that this rank reads
        self.train_tokens, self.chooses = train_tokens, selection_tokens
        torch.manual_seed(derived_generator("baseline", config.network, seed).initial_seed())
        self.network = build_network(config).to(device)
        self.bias, self.weight = output_bias_and_weight(model, train_tokens, config)
        self.head = Head(self.weight, self.method)
        self.reader = NetworkReader(self.network, model, config)
        parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, self.steps_per_pass * config.max_epochs
        )
        self.parts = {"model": self.network, "optimizer": self.optimizer, "schedule": self.schedule}

    def steps(self, number: int) -> Iterator[None]:
        """Over the streams side by side, each segment entered by the state that the one before left."""
        self.network.train()
        head = self._training_head(number)
        for tokens, targets in islice(self._segments(number), self.within.steps, None):
            own, own_targets = tokens[self.streams], targets[self.streams]
            nats, state = self.device_batch.fit(len(own), partial(self._gradients, head, own, own_targets))
            self.within.carried = mapped_state(state, self._of_all_streams)
            self.world.add_up_gradients(self.network.parameters())
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
            self.optimizer.step()
            self.schedule.step()
            self.within.add(training_loss=self.world.total(nats))
            yield

    def _of_all_streams(self, state: Tensor) -> Tensor:
        """From those of this rank's: a checkpoint is gone on from by any number of ranks."""
        return self.world.gathered(state, self.config.num_streams)

    def _gradients(self, head: Head | SampledHead, tokens: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Any]:
        """Of this rank's part of a segment `[B, T]`, ``size`` streams at once: the sum of its nats, and the state it
        leaves."""
        self.optimizer.zero_grad(set_to_none=True)
        nats, states, count, drawn = [], [], self.config.num_streams, generator_states(self.device)
        entering = split_state(mapped_state(self.within.carried, lambda state: state[self.streams]), size)
        places = range(self.streams.start, self.streams.stop, size)
        for part, part_targets, state, first in zip(tokens.split(size), targets.split(size), entering, places):
            with rows_drawn(RowsOf(first, count), len(part), drawn, self.device):
                hidden, left = self.network(self.model.embed(part), state)
            loss = head.loss(self.reader.for_head(hidden), part_targets.reshape(-1)).mean_nats
            (loss * (len(part) / count)).backward()  # type: ignore[no-untyped-call]
            nats.append(loss.detach().double() * part.numel())
            states.append(left)
        return torch.stack(nats).sum(), joined_states(states)

    def judged(self, number: int) -> tuple[BaselineEpoch, float]:
        return self.world.from_first(lambda: self._row(number))

    def _row(self, number: int) -> tuple[BaselineEpoch, float]:
        streams = self.config.num_streams
        train_loss = float(self.within.sums["training_loss"]) / (streams * (len(self.train_tokens) // streams - 1))
        validation_loss = float(self.reader.nats(self.chooses, self.head).mean())
        refuse_not_finite({"validation loss": validation_loss})
        rate = float(self.schedule.get_last_lr()[0])
        row = BaselineEpoch(number, train_loss, validation_loss, perplexity(validation_loss), rate, self.pass_seconds())
        return row, -validation_loss

    def shown(self) -> dict[str, str]:
        last, best = self.rows[-1], self.rows[self.best.number - 1]
        return {"PPL val": f"{last.validation_perplexity:.1f}", "best": f"{best.validation_perplexity:.1f}"}

    def _segments(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`[B, T]` tokens and the targets that follow them."""
        generator = derived_generator("shift", self.seed, epoch)
        segments = ring_segments(len(self.train_tokens), self.config.num_streams, self.config.segment_tokens, generator)
        for positions in segments:
            yield self.train_tokens[positions], self.train_tokens[(positions + 1) % len(self.train_tokens)]

    def _training_head(self, epoch: int) -> Head | SampledHead:
        if self.config.unseen_sample is None:
            return self.head
        return epochs_head(
            self.model.head_weight.detach(), self.bias, self.method, self.train_tokens,
            self.config.unseen_sample, self.seed, epoch,
        )  # fmt: skip
