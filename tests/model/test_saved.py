"""A saved model stands alone: a fresh process without any corpus package reads it and writes the same text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, rng
from huggingface_hub import ModelCard

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import load_tokenizer
from newllm_core.data.embeddings import whisper_embeddings
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.head.kneser_ney import count_ngrams
from newllm_core.model import NewLLM
from newllm_core.runs.files import PROJECT_ROOT, RunError, read_json, save_tensors, write_json
from newllm_core.training.phase1 import all_contexts

# Every combination of what is more than a plain parameter: buffers, an untied head, readouts of their own.
KINDS: list[dict[str, Any]] = [
    {},
    {"freeze_embedding": False, "tie_weights": False},
    {"readout": "sum", "adapter_rank": 2, "logit_scale": 2.0, "time_scales": True, "num_input_tokens": 2},
    {"num_layers": 3, "context_routing": "final", "token_input": "first-layer", "token_gate": True},
]
FRESH_PROCESS = """
import importlib.util, json, socket, sys
from pathlib import Path
import newllm_core.data.packages as packages

def unreachable(*names, **values):
    raise AssertionError(f"asked for a corpus package or the network: {names}")

packages.locate = importlib.util.find_spec = socket.socket.connect = unreachable
import torch
from newllm_core.model import NewLLM
from newllm_core.training.phase1 import all_contexts

torch.set_num_threads(1)  # as the tests: on some CPUs the last bits of a product depend on it
model, prompt = NewLLM.from_pretrained(sys.argv[1]), sys.argv[2]
tokens = torch.tensor(model.tokenizer.encode(prompt).ids)
logits = model.logits(model.hidden(all_contexts(model, tokens), tokens)).detach()
text = model.generate(prompt, num_tokens=6)[0]
print(json.dumps([float(logits.double().square().sum()), logits[-1, :50].tolist(), text]))
"""


@torch.no_grad()
def logits_of(model: NewLLM, tokens: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(all_contexts(model, tokens), tokens))


@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_a_loaded_model_gives_the_same_logits(values: dict[str, Any], biased: bool, tmp_path: Path) -> None:
    model, tokens = make_model(**values), make_tokens(9)
    model.embedding.add_(1.0)  # as training moves it, away from what the ContextBlock reads
    if biased:
        model.output_bias = torch.randn(len(model.embedding), generator=rng(5))
    model.continuous_cache = ContinuousCache(0.25, 8.0, 100, 30.0) if biased else None
    model.ngrams = count_ngrams(make_tokens(60), model.vocab_size, 0.3, 3) if biased else None
    model.save_pretrained(tmp_path)
    loaded = NewLLM.from_pretrained(tmp_path)
    assert (loaded.ngrams is None) == (not biased)
    if loaded.ngrams is not None and model.ngrams is not None:
        assert loaded.ngrams.weight == 0.3
        found, expected = (one.counts.log_probabilities(tokens) for one in (loaded.ngrams, model.ngrams))
        assert torch.equal(found, expected)
    assert loaded.continuous_cache == model.continuous_cache
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))
    assert loaded.config == model.config and loaded.state_dict().keys() == model.state_dict().keys()


def test_a_fresh_process_without_corpus_packages_writes_the_same_text(tmp_path: Path) -> None:
    tokenizer, prompt = load_tokenizer(), "Hi, how are you"
    matrix = torch.randn(tokenizer.get_vocab_size(), 8, generator=rng(3))
    model = NewLLM(ModelConfig(context_dim=6, embed_dim=8), matrix)
    model.output_bias = torch.randn(len(matrix), generator=rng(4))
    model.tokenizer = tokenizer
    model.continuous_cache = ContinuousCache(0.25, 8.0, 100)
    tokens = torch.tensor(tokenizer.encode(prompt).ids)
    model.ngrams = count_ngrams(tokens, model.vocab_size, 0.3, 3)
    model.save_pretrained(tmp_path / "model")
    logits = logits_of(model, tokens)
    expected = [
        float(logits.double().square().sum()),
        logits[-1, :50].tolist(),
        model.generate(prompt, num_tokens=6)[0],
    ]
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "model"), prompt]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, check=False)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == expected


def test_what_was_altered_is_refused(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    config, weights = read_json(tmp_path / "config.json"), (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(RunError, match="model.safetensors"):
        NewLLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    write_json(tmp_path / "config.json", {**config, "model": {**config["model"], "context_dim": 7}})
    with pytest.raises(RunError, match="do not fit the configuration"):
        NewLLM.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**config, "model": {**config["model"], "readout": "summ"}})
    with pytest.raises(RunError, match="expected one of 'token-block'"):
        NewLLM.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**config, "ngram_weight": 0.3})
    with pytest.raises(RunError, match="expected counted n-grams and a weight of theirs, or neither; given 0 tensors"):
        NewLLM.from_pretrained(tmp_path)
    del config["model"]["time_scales"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RunError, match="model.time_scales: missing"):
        NewLLM.from_pretrained(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(RunError, match="expected a saved model"):
        NewLLM.from_pretrained(tmp_path / "elsewhere")


@pytest.mark.parametrize("renamed", ["embed_norm.bias", "embedding"])
def test_a_tensor_too_few_is_an_error_and_not_a_fresh_one(renamed: str, tmp_path: Path) -> None:
    """As another library loads a renamed layer: with random numbers, without a word."""
    model = make_model()
    model.save_pretrained(tmp_path)
    tensors = {("other" if name == renamed else name): value for name, value in model.state_dict().items()}
    save_tensors(tmp_path / "model.safetensors", tensors)
    config = read_json(tmp_path / "config.json")
    checksum = (tmp_path / "model.safetensors.sha256").read_text().strip()
    write_json(tmp_path / "config.json", {**config, "weights_sha256": checksum})
    with pytest.raises(RunError, match="do not fit"):
        NewLLM.from_pretrained(tmp_path)


def test_a_tokenizer_is_saved_where_there_is_one_and_cannot_be_altered(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "alone")
    assert NewLLM.from_pretrained(tmp_path / "alone").tokenizer is None
    model.tokenizer = load_tokenizer()
    model.save_pretrained(tmp_path / "both")
    again = NewLLM.from_pretrained(tmp_path / "both").tokenizer
    assert again is not None and again.to_str() == model.tokenizer.to_str()
    (tmp_path / "both" / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match="tokenizer.json"):
        NewLLM.from_pretrained(tmp_path / "both")


# --- The embedding matrix: stored once, or referenced


@pytest.fixture(scope="module")
def whisper_model() -> NewLLM:
    embeddings = whisper_embeddings(384)
    model = NewLLM(ModelConfig(context_dim=6), embeddings.matrix)
    model.embedding_source = embeddings.provenance
    return model


def test_a_frozen_embedding_is_stored_once_or_not_at_all(whisper_model: NewLLM, tmp_path: Path) -> None:
    tokens = torch.tensor([15496, 995])
    matrix_bytes = 4 * whisper_model.embedding.numel()
    for embedding, low, high in (("stored", 1.0, 1.01), ("referenced", 0.0, 0.01)):
        whisper_model.save_pretrained(tmp_path / embedding, embedding=embedding)
        size = (tmp_path / embedding / "model.safetensors").stat().st_size
        assert low * matrix_bytes <= size < low * matrix_bytes + high * matrix_bytes
        loaded = NewLLM.from_pretrained(tmp_path / embedding)
        assert torch.equal(logits_of(loaded, tokens), logits_of(whisper_model, tokens))
        assert loaded.embedding_source == whisper_model.embedding_source


def test_a_reference_to_embeddings_that_have_changed_is_refused(whisper_model: NewLLM, tmp_path: Path) -> None:
    whisper_model.save_pretrained(tmp_path, embedding="referenced")
    config = read_json(tmp_path / "config.json")
    source = {**config["embedding_source"], "matrix_sha256": "0" * 64}
    write_json(tmp_path / "config.json", {**config, "embedding_source": source})
    with pytest.raises(RunError, match="'whisper-tiny.en' with SHA-256 0000.*have changed since"):
        NewLLM.from_pretrained(tmp_path)


def test_embeddings_that_nobody_can_read_again_are_not_referenced(tmp_path: Path) -> None:
    model = make_model()
    for source, found in ((None, "source is not known"), ({"name": "ppmi-svd"}, "given ppmi-svd")):
        model.embedding_source = source
        with pytest.raises(RunError, match=found):
            model.save_pretrained(tmp_path, embedding="referenced")
    with pytest.raises(RunError, match="given ones that were trained"):
        make_model(freeze_embedding=False).save_pretrained(tmp_path, embedding="referenced")
    with pytest.raises(ConfigError, match="expected 'stored' or 'referenced', given 'once'"):
        model.save_pretrained(tmp_path, embedding="once")
    assert not any(tmp_path.iterdir())


# --- The card


def test_the_card_says_what_the_record_says(whisper_model: NewLLM, tmp_path: Path) -> None:
    record = read_json(PROJECT_ROOT / "results" / "reference" / "runs" / "cpu.json")
    whisper_model.save_pretrained(tmp_path / "mine", embedding="referenced", record=record)
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    data, best = card.data, record["phase2"]["best"]
    assert (data.library_name, data.pipeline_tag, data.license) == ("newllm_core", "text-generation", "mit")
    assert data.language == "en" and data.model_name == "mine"
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found["perplexity"] == best["validation_perplexity"] and found["accuracy"] == best["validation_accuracy"]
    assert "conversations 1000–1019" in data.eval_results[0].dataset_name
    for words in (
        "chitchat-dataset 0.9.0",
        "| MIT |",
        f"{record['tokens']['train']:,} training tokens",
        f"{best['validation_perplexity']:.2f}",
        "Whisper tiny.en",
        'from_pretrained("mine")',
    ):
        assert words in card.content, words


def test_a_model_without_a_record_has_a_card_without_figures(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "How well it predicts" not in card.content
