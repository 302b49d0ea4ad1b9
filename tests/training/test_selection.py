"""Whoever chooses does not judge: each training keeps what is best on the selection text, and is judged on another.

The model is planted: what is learnt of the training text makes text of its kind better with every pass, and text that
goes another way worse, so the two texts choose differently.
"""

from collections.abc import Callable

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, phase1_config, phase2_config
from network_helpers import trained_and_judged
from test_predictive import PREDICTIVE
from torch import Tensor

from newllm_core.baselines.registry import baseline_config
from newllm_core.training.phase1 import all_contexts, finish_phase1, train_phase1
from newllm_core.training.phase2 import train_phase2

TRAIN, ALIKE = make_tokens(400, seed=1), make_tokens(150, seed=2)
# Every successor that training text has is followed by another one here.
AGAINST = (ALIKE * 7 + 11) % VOCAB_SIZE
SEED = 5

Chosen = tuple[int, Tensor]  # the pass whose weights were kept, and what was found on the judged text


def phase1(validation: Tensor, selection: Tensor | None) -> Chosen:
    model, config = make_model(), phase1_config(**{**PREDICTIVE, "max_iterations": 6, "learning_rate": 0.03})
    result = train_phase1(model, TRAIN, validation, config, SEED, None, selection)
    assert result.history is not None
    torch.testing.assert_close(result.validation_contexts, all_contexts(model, validation))
    return result.history.best_iteration, result.validation_contexts


def phase2(validation: Tensor, selection: Tensor | None) -> Chosen:
    model = make_model()
    contexts, config = (
        finish_phase1(model, TRAIN, validation, None, selection),
        phase2_config(max_epochs=6, learning_rate=0.03),
    )
    result = train_phase2(model, contexts, TRAIN, validation, config, SEED, None, selection)
    return result.best_epoch, result.validation.nats


def network(validation: Tensor, selection: Tensor | None) -> Chosen:
    config = baseline_config(
        "gru", embed_dim=8, width=8, num_streams=2, segment_tokens=8, max_epochs=6, learning_rate=0.02, cache_weight=0.1
    )
    result = trained_and_judged(make_model(), TRAIN, validation, config, SEED, None, selection)
    return result.trained.best_epoch, result.nats


@pytest.mark.parametrize("train", [phase1, phase2, network])
def test_the_selection_text_chooses_and_the_validation_text_judges(
    train: Callable[[Tensor, Tensor | None], Chosen],
) -> None:
    flattered, judged = train(AGAINST, None)
    honest, found = train(AGAINST, ALIKE)
    by_alike, _ = train(ALIKE, None)
    assert honest == by_alike != flattered
    assert found.shape == judged.shape and not torch.equal(found, judged)
    # The same text in both places is the old way.
    again, same = train(AGAINST, AGAINST)
    assert again == flattered and torch.equal(same, judged)
