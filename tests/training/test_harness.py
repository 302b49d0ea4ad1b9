"""The adapter for lm-evaluation-harness: exact scores, the project's own perplexity, the harness's documented traps.

Skipped where the harness is not installed: `pip install -e '.[harness]'`.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import rng
from torch import Tensor

pytest.importorskip("lm_eval", reason="pip install -e '.[harness]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402

from newllm_core.config.hyperparameters import DataConfig, GenerationConfig, ModelConfig, Phase2Config  # noqa: E402
from newllm_core.config.schema import ConfigError  # noqa: E402
from newllm_core.data.errors import DataError  # noqa: E402
from newllm_core.data.tokens import TokenStream, load_token_streams  # noqa: E402
from newllm_core.data.vocabulary import load_tokenizer  # noqa: E402
from newllm_core.head.continuous_cache import ContinuousCache  # noqa: E402
from newllm_core.head.kneser_ney import count_ngrams  # noqa: E402
from newllm_core.metrics.prediction import bits_per_byte, perplexity  # noqa: E402
from newllm_core.model import NewLLM  # noqa: E402
from newllm_core.model.generation import stream_tokens  # noqa: E402
from newllm_core.model.reading import Reader  # noqa: E402
from newllm_core.runs.files import RunError  # noqa: E402
from newllm_core.training.evaluation import evaluate as evaluate_stream  # noqa: E402
from newllm_core.training.evaluation import evaluation_head  # noqa: E402
from newllm_core.training.harness import HarnessModel, evaluate, minimal_pairs, validation_text  # noqa: E402
from newllm_core.training.phase1 import all_contexts  # noqa: E402
from newllm_core.training.token_scores import score_texts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # of the harness and what it imports
CACHE = ContinuousCache(0.3, 8.0, 20, 12.0)
NGRAM_WEIGHT, COUNTED = 0.2, "Who are you? I am who I am, and you are who you are."


@pytest.fixture(scope="module", params=[None, CACHE], ids=["plain", "cache"])
def model(request: pytest.FixtureRequest) -> NewLLM:
    """Small, with GPT-2's vocabulary and an output bias."""
    config = ModelConfig(context_dim=6, embed_dim=8, num_layers=2, num_input_tokens=2, weight_std=0.5)
    model = NewLLM(config, torch.randn(50257, 8, generator=rng(3)))
    model.output_bias = torch.randn(50257, generator=rng(4))
    model.tokenizer, model.continuous_cache = load_tokenizer(), request.param
    if request.param is not None:
        model.ngrams = count_ngrams(torch.tensor(ids_of(COUNTED)), model.vocab_size, NGRAM_WEIGHT, 5)
    return model


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in arguments]


def reference(model: NewLLM, ids: list[int]) -> tuple[Tensor, list[int]]:
    """Log probability of each token but the first, and the most probable one instead, read token by token."""
    reader, found, best = Reader(model, 1), [], []
    for token, following in zip(ids, ids[1:]):
        reader.read(torch.tensor([token]))
        scores = reader.scores(torch.tensor([0]))[0].double().log_softmax(dim=0)
        found.append(scores[following])
        best.append(int(scores.argmax()))
    return torch.stack(found), best


def ids_of(text: str) -> list[int]:
    ids: list[int] = load_tokenizer().encode(text).ids
    return ids


PREFIX = [50256]


def test_loglikelihood_is_what_the_model_says_token_by_token_in_the_order_asked(model: NewLLM) -> None:
    pairs = [("What do you", " think about it today?"), ("Hi", " there"), ("One two three", " six"), ("", "Yes, yes")]
    found = HarnessModel(model).loglikelihood(asked("loglikelihood", *pairs))
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        before, after = ids_of(context) or PREFIX, ids_of(continuation)
        expected, best = reference(model, before + after)
        assert value == pytest.approx(float(expected[len(before) - 1 :].sum()), rel=1e-5)
        assert greedy == (best[len(before) - 1 :] == after)


def test_what_greedy_writing_gives_is_greedy_and_nothing_else(model: NewLLM) -> None:
    prompt, config = torch.tensor(ids_of("What do you think")), GenerationConfig(num_tokens=30, temperature=0)
    written = [token for _, token in stream_tokens(model, [prompt], config, [torch.Generator()])]
    greedy = torch.tensor([*prompt.tolist(), *written])
    other = greedy.clone()
    other[-1] += 1
    scores = dict(score_texts(model, [greedy, other]))
    assert scores[0].greedy_from(len(prompt))
    assert not scores[1].greedy_from(len(prompt)) and not scores[1].greedy_from(len(other) - 1)


def test_a_rolling_text_is_read_once_without_windows_every_token_after_all_before_it(model: NewLLM) -> None:
    """Trap: the harness's windows leave tokens with one token of context, and longer ones cost quadratic time."""
    text = "Hello there, how are you today? " * 90  # longer than 512 tokens: read in parallel
    found = HarnessModel(model).loglikelihood_rolling(asked("loglikelihood_rolling", (text,), ("Hi",)))
    for one, value in zip((text, "Hi"), found, strict=True):
        expected, _ = reference(model, PREFIX + ids_of(one))
        assert value == pytest.approx(float(expected.sum()), rel=1e-5)


def test_a_context_of_blanks_is_the_prefix_and_the_blanks_are_scored(model: NewLLM) -> None:
    """Trap: the harness moves blanks to the continuation, and is left with a context of no token at all."""
    (found,) = HarnessModel(model).loglikelihood(asked("loglikelihood", ("  ", "yes")))
    expected, _ = reference(model, PREFIX + ids_of("  yes"))
    assert found[0] == pytest.approx(float(expected.sum()), rel=1e-5)
    with pytest.raises(ValueError, match="at least one token, given '' after 'a'"):
        HarnessModel(model).loglikelihood(asked("loglikelihood", ("a", "")))


def test_results_of_another_model_are_not_taken_from_a_cache(model: NewLLM, tmp_path: Path) -> None:
    """Trap: the harness's cache of results is known by the request alone."""
    request = asked("loglikelihood", ("Hi", " there"))
    file = str(tmp_path / "cache.db")
    (first,) = CachingLM(HarnessModel(model), file).loglikelihood(request)
    (again,) = CachingLM(HarnessModel(model), file).loglikelihood(request)
    assert again == first
    other = NewLLM(ModelConfig(context_dim=6, embed_dim=8), torch.randn(50257, 8, generator=rng(9)))
    other.tokenizer = model.tokenizer
    with pytest.raises(RunError, match="results of another model"):
        CachingLM(HarnessModel(other), file)


def test_text_is_greedy_unless_sampling_is_asked_for_and_ends_before_its_stop(model: NewLLM) -> None:
    adapter = HarnessModel(model)
    (whole,) = model.generate("What do you", num_tokens=12, temperature=0)
    (drawn,) = model.generate("What do you", num_tokens=12, temperature=1.5, top_k=9)
    assert adapter.generate_until(
        asked(
            "generate_until",
            ("What do you", {"until": [], "max_gen_toks": 12}),
            ("What do you", {"until": whole[6:9], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}),
            ("What do you", {"max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 9}),
        )
    ) == [whole, whole[: whole.find(whole[6:9])], drawn]
    with pytest.raises(ConfigError, match="unknown key of GenerationConfig 'num_beams'"):
        adapter.generate_until(asked("generate_until", ("Hi", {"num_beams": 3})))


def test_a_model_needs_a_tokenizer_and_a_prefix_of_one_token(model: NewLLM) -> None:
    with pytest.raises(ValueError, match="expected one token, given 'Hello world', which is 2"):
        HarnessModel(model, prefix="Hello world")
    with pytest.raises(RunError, match="needs a model with a tokenizer"):
        HarnessModel(NewLLM(ModelConfig(context_dim=6, embed_dim=8), torch.randn(50, 8, generator=rng(3))))


# --- Tasks without a network


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"asked for the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    config = DataConfig(num_samples=1, validation_range=(1000, 1003))
    return load_token_streams(config, tmp_path_factory.mktemp("data")).validation


@pytest.mark.usefixtures("_no_network")
def test_the_harness_says_the_perplexity_that_a_run_says(model: NewLLM, stream: TokenStream) -> None:
    cache = model.continuous_cache
    phase2 = Phase2Config() if cache is None else Phase2Config(
        cache_weight=cache.weight, cache_scale=cache.scale, cache_tokens=cache.num_cached,
        cache_horizon=cache.horizon,
    )  # fmt: skip
    own = evaluate_stream(
        model, all_contexts(model, stream.tokens), stream.tokens, evaluation_head(model, "blocks"), phase2
    )
    text = load_tokenizer().decode(stream.tokens[1:].tolist())
    results = evaluate(model, [validation_text(stream)])["validation_text"]
    assert results["perplexity,none"] == pytest.approx(perplexity(own.mean_nats), rel=1e-6)
    expected_bits = bits_per_byte(float(own.nats.double().sum()), len(text.encode()))
    assert results["bits_per_byte,none"] == pytest.approx(expected_bits, rel=1e-6)
    # Trap: the harness counts the empty text behind a last blank as a word; neither figure counts words.
    assert not any("word" in name for name in results)


@pytest.mark.usefixtures("_no_network")
def test_minimal_pairs_of_a_local_file_are_judged_as_the_model_judges_them(model: NewLLM, tmp_path: Path) -> None:
    sentences = ["Who are you?", "The cats sleep.", "A dog barks", "It is so", "Nobody knows that", "He walks home"]
    pairs = [{"sentence_good": one, "sentence_bad": one[::-1], "field": "syntax"} for one in sentences]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in pairs) + "\n\n")
    right = 0
    for pair in pairs:
        good, bad = (
            float(reference(model, PREFIX + ids_of(" " + pair[key]))[0].sum())
            for key in ("sentence_good", "sentence_bad")
        )
        right += good > bad
    results = evaluate(model, [minimal_pairs("mine", path)])["mine"]
    assert math.isclose(results["acc,none"], right / len(pairs)) and 0 < right < len(pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "expected a pair a line"), ('{"sentence_good": "a"}', "line 1: expected an object with"), ("[", "line 1")],
)
def test_a_file_without_pairs_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        minimal_pairs("mine", path)["custom_dataset"]()
