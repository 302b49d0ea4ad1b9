"""A docstring's shapes cannot lie: every call while a small model is trained is held against them.

What stands in brackets before the arrow are the shapes of the tensor arguments, in their order; what stands behind it,
of the result. Names stand for sizes, the same everywhere in one call; they may be followed by ` + 1`, ` - 1` and the
like, or multiplied by `·`. `...` stands for any sizes in front, `L × [n, C]` for a list of such tensors.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase1_config, phase2_config, rng
from torch import Tensor

from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.contexts import shooting
from newllm_core.head import cross_entropy, sampled_softmax
from newllm_core.model import generation, layers, llm, reading, readout, sampling
from newllm_core.training import evaluation, phase1, phase2, predictive

MODULES = (
    layers, llm, readout, reading, sampling, generation, cross_entropy, sampled_softmax, shooting, evaluation, phase1,
    predictive,
)  # fmt: skip
SHAPE = re.compile(r"\[([^\]]+)\]")


def described_shapes(function: Callable[..., Any]) -> tuple[list[str], list[str]] | None:
    """Shapes before and behind the arrow of a docstring; None where it has none, or says what no shape is."""
    for paragraph in (inspect.getdoc(function) or "").split("\n\n"):
        before, arrow, behind = paragraph.replace("\n", " ").partition("->")
        given = SHAPE.findall(before)
        if arrow and given and "…" not in paragraph:
            return given, SHAPE.findall(behind.split(". ")[0].split(";")[0])
    return None


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """Those among the arguments, in order; of a list of tensors the first one."""
    firsts = (value[0] if isinstance(value, list | tuple) and value else value for value in values)
    return [value for value in firsts if isinstance(value, Tensor)]


def size_of(expression: str, sizes: dict[str, int]) -> int | None:
    """Of "n", "E + 2", "N - 1", "E·T", "head_dim"; None where a name in it is not known yet."""
    names = re.findall(r"[A-Za-z_]\w*", expression)
    if any(name not in sizes for name in names):
        return None
    value: int = eval(expression.replace("·", "*"), {}, dict(sizes))  # of our own docstrings
    return value


def hold(tensor: Tensor, shape: str, sizes: dict[str, int], where: str) -> None:
    dimensions, found = [part.strip() for part in shape.split(",")], list(tensor.shape)
    lies = f"{where}: documented [{shape}] with {sizes}, found {found}"
    if dimensions[0] == "...":
        front = len(found) - len(dimensions) + 1
        assert front >= 0, lies
        dimensions = [f"front_{number}" for number in range(front)] + dimensions[1:]
    assert len(found) == len(dimensions), lies
    for dimension, size in zip(dimensions, found, strict=True):
        known = size_of(dimension, sizes)
        if known is None and dimension.isidentifier():
            sizes[dimension] = size
        assert known is None or size == known, lies


def hold_one_of(tensor: Tensor, shapes: list[str], sizes: dict[str, int], where: str) -> None:
    """As ``hold``, where a docstring gives alternatives; none where it gives no shape."""
    for number, shape in enumerate(shapes, start=1):
        try:
            hold(tensor, shape, dict(sizes), where)
            return
        except AssertionError:
            if number == len(shapes):
                raise


def watched(function: Callable[..., Any], calls: set[str]) -> Callable[..., Any]:
    described = described_shapes(function)
    assert described is not None
    given, returned = described
    name, signature = function.__qualname__, inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        arguments = tensors_in([value for key, value in bound.arguments.items() if key != "self"])
        result = function(*args, **kwargs)
        sizes: dict[str, int] = {}
        if len(arguments) == len(given):  # without those of another kind, such as embeddings computed slice by slice
            for tensor, shape in zip(arguments, given, strict=True):
                hold(tensor, shape, sizes, name)
            for tensor in tensors_in([result]):
                hold_one_of(tensor, returned, sizes, name)
            calls.add(name)
        return result

    return call


def documented_functions() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    for module in MODULES:
        owners: list[Any] = [module]
        owners += [
            kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__
        ]
        for owner in owners:
            for name, function in vars(owner).items():
                own = inspect.isfunction(function) and function.__module__ == module.__name__
                if own and described_shapes(function) is not None:
                    yield owner, name, function


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the functions that were called and held against their docstrings."""
    seen: set[str] = set()
    for owner, name, function in documented_functions():
        wrapped = watched(function, seen)
        monkeypatch.setattr(owner, name, wrapped)
        if isinstance(owner, ModuleType):
            for module in (*MODULES, phase2):  # by whom it was imported
                if vars(module).get(name) is function:
                    monkeypatch.setattr(module, name, wrapped)
    return seen


@pytest.mark.parametrize(
    ("model_values", "phase1_values", "phase2_values"),
    [
        ({}, {}, {}),
        ({"num_layers": 2, "num_input_tokens": 3}, {"context_source": "exact"}, {"unigram_bias": True}),
        (
            {"readout": "sum", "adapter_rank": 2, "time_scales": True},
            {"objective": "regression", "prediction_streams": 2},
            {"unigram_bias": True, "unseen_sample": 3, "cache_weight": 0.1, "dropout": 0.1},
        ),
        ({"readout": "linear", "tie_weights": False}, {"objective": "contrastive", "prediction_streams": 2}, {}),
    ],
)
def test_training_calls_every_function_with_the_shapes_that_its_docstring_gives(
    model_values: dict[str, Any], phase1_values: dict[str, Any], phase2_values: dict[str, Any], calls: set[str]
) -> None:
    model = make_model(context_dim=7, embed_dim=11, **model_values)
    train, validation = make_tokens(301), make_tokens(101, seed=2)
    found = phase1.train_phase1(model, train, validation, phase1_config(**phase1_values), seed=1)
    phase2.train_phase2(model, found, train, validation, phase2_config(**phase2_values), seed=1)
    written = GenerationConfig(num_tokens=2, top_p=0.9, repetition_penalty=1.1)
    assert len(list(generation.stream_tokens(model, [train[:5]], written, [rng(0)]))) == 2
    expected = {"all_contexts", "evaluate", "choose", "NewLLM.hidden", "NewLLM.embed", "ContextBlock.token_parts"}
    assert expected <= calls, expected - calls
    assert len(calls) >= 12, calls


@pytest.mark.parametrize("shape", ["[n, 8]", "[n]", "[n, C]"])
def test_a_docstring_that_lies_is_noticed(shape: str) -> None:
    def function(contexts: Tensor) -> Tensor:
        return torch.zeros(len(contexts), 9)

    function.__doc__ = f"`[n, C]` -> `{shape}`."
    with pytest.raises(AssertionError, match="documented"):
        watched(function, set())(torch.zeros(4, 7))
