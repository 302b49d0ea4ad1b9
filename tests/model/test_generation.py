"""Generation: decided by seed and prompt alone, as the model's own full passes say, in memory that stays the same."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from core_helpers import VOCAB_SIZE, make_model, make_tokens, rng
from torch import Tensor

from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import load_tokenizer
from newllm_core.head.continuous_cache import ContinuousCache, cached_nats
from newllm_core.head.kneser_ney import CountedNGrams, count_ngrams, fit_kneser_ney
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.model.generation import stream_tokens
from newllm_core.runs.files import PROJECT_ROOT, RunError

KINDS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "num_input_tokens": 3},
    {"readout": "sum", "adapter_rank": 2, "logit_scale": 2.0, "time_scales": True},
]


def continued(model: NewLLM, prompts: Sequence[Tensor], seed: int = 0, **values: Any) -> list[list[int]]:
    """The tokens after each prompt."""
    config = GenerationConfig(**{"num_tokens": 8, "temperature": 1.0, "top_k": 5, **values})
    generators = [rng(seed + number) for number in range(len(prompts))]
    texts: list[list[int]] = [[] for _ in prompts]
    for number, token in stream_tokens(model, prompts, config, generators):
        texts[number].append(token)
    return texts


@torch.no_grad()
def full_pass(model: NewLLM, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits `[N, V]` and hidden states of a whole text, from its first token on."""
    stream = torch.tensor(tokens)
    embeds, context, layers = StreamEmbeddings(model, stream)[:], torch.zeros(1, model.config.context_dim), []
    for position in range(len(stream)):
        contexts = model.context_block.forward_with_intermediates(context, embeds[position : position + 1])
        context = contexts[-1]
        layers.append(torch.stack(contexts, dim=1))
    hidden = model.hidden(torch.cat(layers), stream)
    return model.logits(hidden), hidden


def biased(model: NewLLM) -> NewLLM:
    model.output_bias = torch.randn(VOCAB_SIZE, generator=rng(5))
    return model


def test_generation_is_decided_by_the_generator() -> None:
    model, prompt = make_model(), make_tokens(4)
    assert continued(model, [prompt]) == continued(model, [prompt])
    assert len({tuple(continued(model, [prompt], seed)[0]) for seed in range(5)}) > 1


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("prompt_length", [1, 4])
@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_greedy_generation_is_the_repeated_arg_max_of_full_passes(
    values: dict[str, Any], prompt_length: int, penalty: float
) -> None:
    # Wide weights: contexts, and with them the older tokens, must count.
    model = biased(make_model(weight_std=1.0, **values))
    tokens = make_tokens(prompt_length).tolist()
    (found,) = continued(model, [torch.tensor(tokens)], temperature=0, num_tokens=30, repetition_penalty=penalty)
    for token in found:
        logits, _ = full_pass(model, tokens)
        scores = [
            score if number not in tokens else score / penalty if score > 0 else score * penalty
            for number, score in enumerate(logits[-1].tolist())
        ]
        assert token == max(range(VOCAB_SIZE), key=scores.__getitem__)
        tokens.append(token)
    # Greedy texts of untrained models soon repeat; with a penalty they go on.
    assert penalty == 1 or len(set(found)) > 5


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize(
    "counts", [None, CountedNGrams(0.7, fit_kneser_ney(torch.arange(VOCAB_SIZE).flip(0).repeat(5), VOCAB_SIZE, 3))]
)
def test_greedy_generation_is_the_arg_max_of_what_evaluation_measures(
    values: dict[str, Any], counts: CountedNGrams | None
) -> None:
    model = biased(make_model(weight_std=1.0, **values))
    model.continuous_cache = cache = ContinuousCache(weight=0.6, scale=20.0, num_cached=7, horizon=9.0)
    model.ngrams = counts
    tokens = make_tokens(9).tolist()
    (found,) = continued(model, [torch.tensor(tokens)], temperature=0, num_tokens=20)
    for token in found:
        logits, hidden = full_pass(model, tokens)
        log_probabilities = logits.double().log_softmax(dim=1)
        nats = []  # of every token that may follow, as the evaluation of the text with that token says
        for candidate in range(VOCAB_SIZE):
            text = torch.tensor([*tokens, candidate])
            plain = -log_probabilities.gather(1, text[1:, None])[:, 0]
            states = hidden[:, : model.config.embed_dim]
            mixed = cached_nats(plain, states, text, cache)
            nats.append((mixed if counts is None else counts.mixed_nats(mixed, text))[-1])
        assert token == int(torch.stack(nats).argmin())
        tokens.append(token)
    part = "ngrams" if counts else "continuous_cache"
    setattr(model, part, None)
    assert continued(model, [make_tokens(9)], temperature=0, num_tokens=20) != [found], f"{part} must count"


@pytest.mark.parametrize("cache", [None, ContinuousCache(0.5, 10.0, 4, 6.0)], ids=["plain", "mixed"])
@pytest.mark.parametrize("values", [{}, {"temperature": 0}, {"repetition_penalty": 1.5, "top_k": None}])
def test_a_text_does_not_depend_on_those_beside_it(cache: ContinuousCache | None, values: dict[str, Any]) -> None:
    model = make_model(num_layers=2, num_input_tokens=2)
    model.continuous_cache = cache
    model.ngrams = count_ngrams(make_tokens(80, seed=3), VOCAB_SIZE, 0.4, 3) if cache else None
    prompts = [make_tokens(length, seed=length) for length in (3, 1, 12, 7)]
    together = continued(model, prompts, num_tokens=10, **values)
    alone = [continued(model, [prompt], seed, num_tokens=10, **values)[0] for seed, prompt in enumerate(prompts)]
    assert together == alone and [len(text) for text in together] == [10] * 4


def test_a_penalty_keeps_tokens_of_prompt_and_text_from_coming_again() -> None:
    model = biased(make_model())
    prompt = torch.arange(10)
    (found,) = continued(model, [prompt], temperature=0, repetition_penalty=1e6, num_tokens=12)
    assert len(set(found)) == 12 and not set(found) & set(range(10))


def test_no_tokens_asked_for_is_no_text() -> None:
    assert continued(make_model(), [torch.tensor([3, 4])], num_tokens=0) == [[]]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token, given none in prompt 1"):
        continued(make_model(), [torch.tensor([3]), torch.tensor([], dtype=torch.int64)])


# --- Text


@pytest.fixture(scope="module")
def model() -> NewLLM:
    """Small, with GPT-2's vocabulary; what it writes is noise."""
    tokenizer = load_tokenizer()
    model = NewLLM(ModelConfig(context_dim=6, embed_dim=8), torch.randn(50257, 8, generator=rng(3)))
    model.tokenizer = tokenizer
    return model


def test_texts_are_those_of_their_prompts_and_a_prompt_given_twice_has_two(model: NewLLM) -> None:
    one, other, again = model.generate(["Hello", "What do you", "Hello"], num_tokens=5)
    assert [one] == model.generate("Hello", num_tokens=5) and [other] == model.generate(["What do you"], num_tokens=5)
    assert again not in (one, other)
    assert [one] != model.generate("Hello", num_tokens=5, seed=43)


def test_what_is_streamed_is_what_is_generated(model: NewLLM) -> None:
    prompts, texts, steps = ["Hello", "It is", "Hello"], ["", "", ""], []
    for number, piece in model.stream(prompts, num_tokens=30, top_k=None):
        texts[number] += piece
        steps.append((number, piece))
    assert texts == model.generate(prompts, num_tokens=30, top_k=None)
    assert all(piece for _, piece in steps) and {number for number, _ in steps[:6]} == {0, 1, 2}, "side by side"


def test_each_text_ends_before_its_stop_text_and_the_others_go_on(model: NewLLM) -> None:
    prompts = ["Hello", "It is"]
    whole = model.generate(prompts, num_tokens=20)
    stop = whole[0][5:9]
    assert stop not in whole[1]
    assert model.generate(prompts, num_tokens=20, stop=[stop]) == [whole[0][: whole[0].find(stop)], whole[1]]


def test_what_cannot_be_generated_is_refused(model: NewLLM) -> None:
    with pytest.raises(ConfigError, match="unknown key of GenerationConfig 'temprature'. Did you mean 'temperature'"):
        model.generate("Hello", temprature=0.5)
    with pytest.raises(ValueError, match="given none in prompt 1"):
        model.generate(["Hello", ""])
    with pytest.raises(RunError, match="no tokenizer"):
        make_model().generate("Hello")


GROWTH = """
import json, sys, torch
from benchmarks.machine import forget_peak, peak_mb
from core_helpers import make_model, rng
from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.model.generation import stream_tokens

torch.set_num_threads(1)
model = make_model(num_input_tokens=2)
model.continuous_cache = ContinuousCache(0.5, 10.0, 50)
peaks = []
for num_tokens in (200, 200, 2_000):
    forget_peak()
    config = GenerationConfig(num_tokens=num_tokens, repetition_penalty=1.1)
    assert sum(1 for _ in stream_tokens(model, [torch.tensor([1])], config, [rng(0)])) == num_tokens
    peaks.append(peak_mb())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's count of resident memory")
def test_memory_does_not_grow_with_the_text() -> None:
    environment = {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests'}", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    _, short, long = json.loads(done.stdout)
    assert long < 1.01 * short
