"""Generation: decided by the generator, among the most probable tokens, as the model's own arg-max says."""

from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, rng
from torch import Tensor

from newllm_core.model import NewLLM, StreamEmbeddings, generate


def generated(model: NewLLM, prompt: Tensor, seed: int = 0, **values: Any) -> list[int]:
    asked = {"num_tokens": 8, "temperature": 1.0, "top_k": 5, **values}
    return generate(model, prompt, **asked, generator=rng(seed)).tolist()


def test_generation_is_decided_by_the_generator() -> None:
    model, prompt = make_model(), make_tokens(4)
    assert generated(model, prompt) == generated(model, prompt)
    assert len({tuple(generated(model, prompt, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("prompt_length", [1, 4])
def test_greedy_generation_is_the_repeated_arg_max(history: int, prompt_length: int) -> None:
    # Wide weights: contexts, and with them the older tokens, must count.
    model = make_model(num_layers=2, num_input_tokens=history, weight_std=1.0)
    tokens = make_tokens(prompt_length).tolist()
    found = generated(model, torch.tensor(tokens), top_k=1, num_tokens=12)
    for _ in range(12):
        stream = torch.tensor(tokens)
        embeds, context = StreamEmbeddings(model, stream)[:], torch.zeros(1, 6)
        for position in range(len(tokens)):
            contexts = model.context_block.forward_with_intermediates(context, embeds[position : position + 1])
            context = contexts[-1]
        logits = model.logits(model.hidden(torch.stack(contexts, dim=1), stream[-1:]))
        tokens.append(int(logits.argmax()))
    assert found == tokens


def test_generation_samples_among_the_most_probable_only() -> None:
    model, prompt = make_model(), make_tokens(1)
    embedded = StreamEmbeddings(model, prompt)[:]
    contexts = model.context_block.forward_with_intermediates(torch.zeros(1, 6), embedded)
    best = model.logits(model.hidden(torch.stack(contexts, dim=1), prompt))[0].topk(3).indices.tolist()
    drawn = {generated(model, prompt, seed, num_tokens=1, top_k=3, temperature=50.0)[-1] for seed in range(40)}
    assert drawn == set(best)


def test_a_low_temperature_is_greedy() -> None:
    model, prompt = make_model(), make_tokens(3)
    assert generated(model, prompt, temperature=1e-4, top_k=20) == generated(model, prompt, top_k=1)


def test_no_tokens_asked_for_is_the_prompt() -> None:
    assert generated(make_model(), torch.tensor([3, 4]), num_tokens=0) == [3, 4]
