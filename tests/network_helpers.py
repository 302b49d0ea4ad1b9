"""Baseline networks in tests: trained and judged as a row does it, without a folder."""

from typing import NamedTuple

from torch import Tensor

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.judge import Judgement, judge_network
from newllm_core.baselines.train import TrainedNetwork, train_network
from newllm_core.model import NewLLM
from newllm_core.runs.checkpoint import CheckpointPlace


class JudgedNetwork(NamedTuple):
    trained: TrainedNetwork
    judged: Judgement

    @property
    def nats(self) -> Tensor:
        return self.judged.nats


def trained_and_judged(
    model: NewLLM, train: Tensor, validation: Tensor, config: BaselineConfig, seed: int,
    checkpoints: CheckpointPlace | None = None, selection: Tensor | None = None,
) -> JudgedNetwork:  # fmt: skip
    chooses = validation if selection is None else selection
    trained = train_network(model, train, chooses, config, seed, checkpoints)
    return JudgedNetwork(trained, judge_network(trained.network, model, train, validation, config))
