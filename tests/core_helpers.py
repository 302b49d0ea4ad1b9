"""Small models, streams and configs for the tests of newllm_core's two phases and what they stand on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from newllm_core.config.hyperparameters import ModelConfig, Phase1Config, Phase2Config
from newllm_core.model import ContextBlock, NewLLM
from newllm_core.runs import checkpoint as checkpoint_module
from newllm_core.training.loop import TrainingLoop

VOCAB_SIZE = 30

# (std of the context weights, std of the token weights) of blocks that forget their start within some tens of tokens,
# that hardly forget, and that drive neighbouring trajectories apart; see test_contexts.test_the_three_kinds_of_block.
CONTRACTING, NEUTRAL, EXPANDING = (0.1, 1.0), (1e-4, 1e-4), (3.0, 1.0)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_block(
    kind: tuple[float, float] = CONTRACTING, context_dim: int = 32, embed_dim: int = 6, num_layers: int = 1,
    num_input_tokens: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64,
) -> ContextBlock:  # fmt: skip
    block = ContextBlock(context_dim, embed_dim, num_layers, num_input_tokens)
    generator = rng(seed)
    for layer in block.layers:
        torch.nn.init.normal_(layer.from_context.weight, std=kind[0], generator=generator)
        torch.nn.init.normal_(layer.from_context.bias, std=0.01, generator=generator)
        torch.nn.init.normal_(layer.from_token.weight, std=kind[1], generator=generator)
    return block.to(dtype)


def make_embeds(num_tokens: int, width: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num_tokens, width, generator=rng(seed), dtype=torch.float64).to(dtype)


def make_model(seed: int = 42, **values: Any) -> NewLLM:
    config = ModelConfig(**{"context_dim": 6, "embed_dim": 8, **values})
    return NewLLM(config, torch.randn(VOCAB_SIZE, config.embed_dim, generator=rng(3)), seed=seed)


def make_tokens(num_tokens: int, seed: int = 1) -> Tensor:
    """A stream with something to learn: mostly a fixed successor, sometimes any token."""
    generator = rng(seed)
    tokens = [0]
    surprises = torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator).tolist()
    for position in range(1, num_tokens):
        follows = (3 * tokens[-1] + 1) % VOCAB_SIZE
        tokens.append(surprises[position] if surprises[position] % 3 == 0 else follows)
    return torch.tensor(tokens)


def phase1_config(**values: Any) -> Phase1Config:
    small = {
        "batch_tokens": 100, "min_last_batch": 20, "effective_rank_tokens": 200, "min_iterations": 1,
        "max_iterations": 2, "check_interval": 1, "patience": 100, "validation_passes": 3,
        "context_source": "previous_iteration", "context_tolerance": 1e-6, "products": "float32",
    }  # fmt: skip
    return Phase1Config(**{**small, **values})


def phase2_config(**values: Any) -> Phase2Config:
    return Phase2Config(**{"effective_batch_size": 32, "max_epochs": 2, "patience": 100, "head": "blocks", **values})


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def save_always(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every step and every pass, whatever they cost."""
    patch.setattr(checkpoint_module, "CHECKPOINT_SHARE", math.inf)


def stop_after(name: str, count: int, patch: pytest.MonkeyPatch, steps: int = 0) -> None:
    """Interrupt the training ``name`` when it is saved after ``count`` passes, and ``steps`` of the next."""
    save = TrainingLoop.save

    def save_and_stop(loop: TrainingLoop[Any]) -> None:
        save(loop)
        if loop.name == name and (len(loop.rows), loop.within.steps) == (count, steps):
            raise KeyboardInterrupt

    save_always(patch)
    patch.setattr(TrainingLoop, "save", save_and_stop)
