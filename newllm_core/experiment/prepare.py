"""What both phases start from: tokens, embeddings, and a model with initial weights."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from newllm_core.config.language import DataConfig, ModelConfig, RunConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import EmbeddingMatrix, TokenData, load_embeddings, load_token_streams
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.runs.files import DATA_DIR
from newllm_core.runs.reproducibility import resolve_device, seed_everything
from newllm_core.training.initialisation import scale_to_exponent


@dataclass(frozen=True)
class Prepared:
    """Everything that both phases start from. Tokens `[N]` and `[M]` are on the model's device."""

    data: DataConfig
    run: RunConfig
    token_data: TokenData
    embeddings: EmbeddingMatrix
    model: NewLLM
    train_tokens: Tensor
    validation_tokens: Tensor


def prepare(data: DataConfig, model: ModelConfig, run: RunConfig, data_dir: Path = DATA_DIR) -> Prepared:
    """Seed, tokens, embeddings and a model with initial weights. Raises DataError or RunError, before any training.

    ConfigError where the weights cannot have the initial exponent that is asked for.
    """
    seed_everything(run.seed, run.num_threads)
    device = resolve_device(run.device)
    token_data = load_token_streams(data, data_dir)
    embeddings = load_embeddings(data, model.embed_dim, run.seed, token_data.train.tokens, data_dir)
    network = NewLLM(model, embeddings.matrix, run.seed).to(device)
    train, validation = (stream.tokens.to(device) for stream in (token_data.train, token_data.validation))
    if model.initial_exponent is not None:
        scaled = scale_to_exponent(network.context_block, StreamEmbeddings(network, train), model.initial_exponent)
        if not scaled.success:
            raise ConfigError(
                f"initial_exponent: no scale of the recurrent weights gives {model.initial_exponent} nats a token; "
                f"the weights as drawn give {scaled.exponent:.3f}"
            )
    return Prepared(data, run, token_data, embeddings, network, train, validation)
