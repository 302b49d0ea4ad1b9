"""Reshaped scores are those of transformers' processors, in its order; one token is drawn from what is left."""

from typing import Any

import pytest
import torch
from core_helpers import rng
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.config.schema import ConfigError
from newllm_core.model.sampling import choose, likeliest, penalise_repetition

VOCAB = 50
CASES: list[dict[str, Any]] = [
    {"top_k": None},
    {"top_k": 7, "temperature": 0.3},
    {"top_k": None, "top_p": 0.6},
    {"top_k": None, "min_p": 0.2, "temperature": 2.0},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.7, "temperature": 1.3},
    {"top_k": 20, "top_p": 1e-6},
    {"top_k": 500, "min_p": 1.0, "repetition_penalty": 0.5},
]


def reference(scores: Tensor, seen_ids: Tensor, config: GenerationConfig) -> Tensor:
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(MinPLogitsWarper(config.min_p))
    return LogitsProcessorList(steps)(seen_ids, scores).softmax(dim=1)  # type: ignore[no-any-return, arg-type]


@pytest.mark.parametrize("values", CASES)
def test_what_may_be_drawn_is_what_transformers_draws_from(values: dict[str, Any]) -> None:
    config, scores = GenerationConfig(**values), 3 * torch.randn(6, VOCAB, generator=rng(1))
    seen_ids = torch.randint(VOCAB, (6, 9), generator=rng(2))
    seen = torch.zeros(6, VOCAB, dtype=torch.bool).scatter_(1, seen_ids, True)
    penalised = penalise_repetition(scores, seen, config.repetition_penalty)
    probabilities, ids = likeliest(penalised, config)
    found = torch.zeros(6, VOCAB).scatter_(1, ids, probabilities / probabilities.sum(dim=1, keepdim=True))
    torch.testing.assert_close(found, reference(scores, seen_ids, config))


def test_each_row_is_drawn_with_its_own_generator() -> None:
    config, scores = GenerationConfig(top_k=None), torch.randn(3, VOCAB, generator=rng(1))
    together = choose(scores, config, [rng(seed) for seed in (5, 6, 7)])
    alone = [int(choose(scores[row : row + 1], config, [rng(5 + row)])) for row in range(3)]
    assert together.tolist() == alone


def test_tokens_are_drawn_as_often_as_their_probabilities_say() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    config, generator = GenerationConfig(temperature=1.0, top_p=0.9), rng(3)
    drawn = [int(choose(scores, config, [generator])) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert shares[3] == 0, "the first three reach 0.9"
    assert (shares[:3] - torch.tensor([0.5, 0.3, 0.15]) / 0.95).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_temperature_zero_is_the_arg_max_whatever_else_is_asked() -> None:
    scores = torch.randn(4, VOCAB, generator=rng(1))
    config = GenerationConfig(temperature=0, top_k=3, top_p=0.1)
    assert torch.equal(choose(scores, config, []), scores.argmax(dim=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.0}, "top_p: expected more than 0"),
        ({"top_p": 1.5}, "top_p: expected at most 1"),
        ({"temperature": -1.0}, "temperature: expected at least 0"),
        ({"top_k": 0}, "top_k: expected at least 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected more than 0"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**values)
