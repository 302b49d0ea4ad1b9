"""A saved model stands alone: a fresh process without any corpus package reads it and writes the same text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, rng

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.data import load_tokenizer
from newllm_core.model import NewLLM, load_model_tokenizer
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
import importlib.util, json, sys
from pathlib import Path
import newllm_core.data.packages as packages

def unreachable(*names):
    raise AssertionError(f"asked for a corpus package: {names}")

packages.locate = importlib.util.find_spec = unreachable
import torch
from newllm_core.model import NewLLM, load_model_tokenizer
from newllm_core.training.phase1 import all_contexts

folder, prompt = Path(sys.argv[1]), sys.argv[2]
model, tokenizer = NewLLM.load(folder), load_model_tokenizer(folder)
tokens = torch.tensor(tokenizer.encode(prompt).ids)
logits = model.logits(model.hidden(all_contexts(model, tokens), tokens)).detach()
model.tokenizer = tokenizer
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
    model.save(tmp_path)
    loaded = NewLLM.load(tmp_path)
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))
    assert loaded.config == model.config and loaded.state_dict().keys() == model.state_dict().keys()


def test_a_fresh_process_without_corpus_packages_writes_the_same_text(tmp_path: Path) -> None:
    tokenizer, prompt = load_tokenizer(), "Hi, how are you"
    matrix = torch.randn(tokenizer.get_vocab_size(), 8, generator=rng(3))
    model = NewLLM(ModelConfig(context_dim=6, embed_dim=8), matrix)
    model.output_bias = torch.randn(len(matrix), generator=rng(4))
    model.tokenizer = tokenizer
    model.save(tmp_path / "model", tokenizer)
    tokens = torch.tensor(tokenizer.encode(prompt).ids)
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
    make_model().save(tmp_path)
    config, weights = read_json(tmp_path / "config.json"), (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(RunError, match="model.safetensors"):
        NewLLM.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    write_json(tmp_path / "config.json", {**config, "model": {**config["model"], "context_dim": 7}})
    with pytest.raises(RunError, match="do not fit the configuration"):
        NewLLM.load(tmp_path)
    write_json(tmp_path / "config.json", {**config, "model": {**config["model"], "readout": "summ"}})
    with pytest.raises(RunError, match="expected one of 'token-block'"):
        NewLLM.load(tmp_path)
    del config["model"]["time_scales"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RunError, match="model.time_scales: missing"):
        NewLLM.load(tmp_path)
    with pytest.raises(RunError, match="expected a saved model"):
        NewLLM.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("renamed", ["embed_norm.bias", "embedding"])
def test_a_tensor_too_few_is_an_error_and_not_a_fresh_one(renamed: str, tmp_path: Path) -> None:
    """As another library loads a renamed layer: with random numbers, without a word."""
    model = make_model()
    model.save(tmp_path)
    tensors = {("other" if name == renamed else name): value for name, value in model.state_dict().items()}
    save_tensors(tmp_path / "model.safetensors", tensors)
    config = read_json(tmp_path / "config.json")
    checksum = (tmp_path / "model.safetensors.sha256").read_text().strip()
    write_json(tmp_path / "config.json", {**config, "weights_sha256": checksum})
    with pytest.raises(RunError, match="do not fit|expected an embedding"):
        NewLLM.load(tmp_path)


def test_a_model_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    make_model().save(tmp_path / "alone")
    with pytest.raises(RunError, match="without a tokenizer"):
        load_model_tokenizer(tmp_path / "alone")
    make_model().save(tmp_path / "both", load_tokenizer())
    (tmp_path / "both" / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match="tokenizer.json"):
        load_model_tokenizer(tmp_path / "both")
