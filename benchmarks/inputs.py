"""What both sides compute on: the embedded corpus, Whisper's embeddings at E = 384, random ones at E = 768."""

from dataclasses import dataclass

from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig, ModelConfig
from newllm_core.data import load_embeddings, load_token_streams
from newllm_core.model import NewLLM
from newllm_core.runs.files import DATA_DIR

WHISPER_WIDTH = 384


@dataclass(frozen=True)
class Streams:
    """Token ids, `[N]` and `[M]`."""

    train: Tensor
    validation: Tensor


def load_streams(num_conversations: int) -> Streams:
    data = load_token_streams(DataConfig(num_samples=num_conversations), DATA_DIR)
    return Streams(data.train.tokens, data.validation.tokens)


def embeddings_name(embed_dim: int) -> str:
    return "whisper-tiny.en" if embed_dim == WHISPER_WIDTH else "random"


def new_model(context_dim: int, embed_dim: int, seed: int, weight_std: float = ModelConfig.weight_std) -> NewLLM:
    """An untrained model of one layer."""
    config = DataConfig(embeddings=embeddings_name(embed_dim))
    matrix = load_embeddings(config, embed_dim, seed, None, DATA_DIR).matrix
    shape = ModelConfig(context_dim=context_dim, embed_dim=embed_dim, weight_std=weight_std)
    return NewLLM(shape, matrix, seed)
