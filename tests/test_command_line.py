"""`python -m newllm_core generate FOLDER "prompt"`."""

from pathlib import Path

import pytest
import torch
from core_helpers import rng

from newllm_core.__main__ import main
from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.data.vocabulary import load_tokenizer
from newllm_core.model import NewLLM


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = NewLLM(ModelConfig(context_dim=6, embed_dim=8), torch.randn(50257, 8, generator=rng(3)))
    model.tokenizer = load_tokenizer()
    model.save_pretrained(folder)
    return folder


def test_it_writes_what_the_model_writes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = NewLLM.from_pretrained(saved)
    main(["generate", str(saved), "Hello", "--num-tokens", "9", "--temperature", "1.5", "--top-k", "none"])
    (text,) = model.generate("Hello", num_tokens=9, temperature=1.5, top_k=None)
    assert capsys.readouterr().out == f"Hello{text}\n"
    main(["generate", str(saved), "Hello", "It is", "--num-tokens", "5", "--stop", "\n", "--seed", "7"])
    texts = model.generate(["Hello", "It is"], num_tokens=5, seed=7, stop=["\n"])
    assert capsys.readouterr().out == f"Hello{texts[0]}\n\nIt is{texts[1]}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hello", "--top-p", "2"], "top_p: expected at most 1, given 2"),
        (["Hello", "--num-tokens", "many"], "num_tokens: expected int, given 'many'"),
        ([""], "at least one token, given none in prompt 0"),
        (["Hello", "--stop", ""], "stop: expected texts of at least one character"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(
    saved: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(saved), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_a_folder_without_a_model_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", str(tmp_path), "Hello"])
    assert "expected a saved model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "notebooks/profiles/quick.yaml", "-p", "max_epoch", "3"], "max_epochs"),
        (["run", "notebooks/profiles/slow.yaml"], "slow.yaml: no such file"),
        (["run", "notebooks/profiles/quick.yaml", "--variant", "gur"], "Did you mean 'gru'"),
        (["run", "notebooks/profiles/quick.yaml", "-p", "seed"], "expected a name and a value, given 'seed'"),
        (["generate", "folder", "Hello", "-p", "seed", "1"], "-p: only of run"),
    ],
)
def test_a_run_that_is_not_one_is_refused_before_it_begins(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
