"""What both phases start from: tokens, embeddings, and a model with initial weights; and whether that is enough.

What is needed later is looked at here, before anything is trained: the lengths of the texts, and the space on disk.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, RunConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError, EmbeddingMatrix, TokenData, load_embeddings, load_token_streams
from newllm_core.metrics.forgetting import MIN_FORGETTING_TOKENS
from newllm_core.model import NewLLM, StreamEmbeddings
from newllm_core.runs.disk import refuse_full_disk
from newllm_core.runs.files import DATA_DIR
from newllm_core.runs.host_memory import free_memory_bytes, set_memory_budget
from newllm_core.runs.reproducibility import resolve_device, seed_everything
from newllm_core.training.initialisation import scale_to_exponent

MIN_TOKENS = 2  # one token, and the one after it that is predicted


@dataclass(frozen=True)
class Prepared:
    """Everything that both phases start from. Tokens `[N]`, `[M]` and `[S]` are on the model's device.

    ``selection_tokens``: those that choose; ``validation_tokens`` itself where these do.
    """

    data: DataConfig
    run: RunConfig
    token_data: TokenData
    embeddings: EmbeddingMatrix
    model: NewLLM
    train_tokens: Tensor
    validation_tokens: Tensor
    selection_tokens: Tensor


def prepare(data: DataConfig, model: ModelConfig, run: RunConfig, data_dir: Path = DATA_DIR) -> Prepared:
    """Seed, tokens, embeddings and a model with initial weights, before any training.

    Raises DataError for a corpus that cannot be used or texts without a token to predict, RunError for a device that is
    not there, ConfigError where the weights do not fit into memory or cannot have the initial exponent asked for.
    """
    refuse_large_model(model)
    seed_everything(run.seed, run.num_threads)
    set_memory_budget(run.memory_budget_gb)
    device = resolve_device(run.device)
    token_data = load_token_streams(data, data_dir)
    refuse_short_texts(data, token_data, model)
    vocabulary = token_data.train.vocabulary
    embeddings = load_embeddings(data, model.embed_dim, run.seed, token_data.train.tokens, data_dir, vocabulary.size)
    network = NewLLM(model, embeddings.matrix, run.seed).to(device)
    network.tokenizer, network.embedding_source = vocabulary.tokenizer, embeddings.provenance
    train, validation = (stream.tokens.to(device) for stream in (token_data.train, token_data.validation))
    chosen_here = data.selection_range is None
    selection = validation if chosen_here else token_data.selection.tokens.to(device)
    if model.initial_exponent is not None:
        scaled = scale_to_exponent(network.context_block, StreamEmbeddings(network, train), model.initial_exponent)
        if not scaled.success:
            raise ConfigError(
                f"initial_exponent: no scale of the recurrent weights gives {model.initial_exponent} nats a token; "
                f"the weights as drawn give {scaled.exponent:.3f}"
            )
    return Prepared(data, run, token_data, embeddings, network, train, validation, selection)


def refuse_large_model(model: ModelConfig) -> None:
    """Raises ConfigError, with the numbers, where the blocks' weights alone do not fit into memory."""
    width, embed = model.context_dim, model.embed_dim
    per_layer = width * (width + model.num_input_tokens * embed) + embed * (width + embed)
    needed, free = 4 * model.num_layers * per_layer, free_memory_bytes()
    if needed > free:
        raise ConfigError(
            f"num_layers={model.num_layers}, context_dim={width}, embed_dim={embed}: the weights alone take "
            f"{needed / 1e6:,.0f} MB of memory, {free / 1e6:,.0f} MB are free; choose smaller ones"
        )


def refuse_short_texts(
    data: DataConfig, tokens: TokenData, model: ModelConfig, phase1: Phase1Config | None = None
) -> None:
    """Raises DataError, with file, range and numbers, where a text is too short to be trained or judged on.

    A figure that cannot be measured on few tokens is no reason: it is missing in the record.
    """
    for name, stream in (("validation_range", tokens.validation), ("selection_range", tokens.selection)):
        if stream.num_tokens < MIN_TOKENS:
            raise DataError(
                f"{data.conversations_file or data.corpus}: {name} {getattr(data, name)} holds {stream.num_tokens} "
                f"token; expected at least {MIN_TOKENS}, one and the one after it that is predicted. Widen {name}"
            )
    refuse_short_training(data, tokens, MIN_TOKENS, "one and the one after it that is predicted")
    if model.initial_exponent is not None:
        refuse_short_training(data, tokens, MIN_FORGETTING_TOKENS, "from which initial_exponent is set")
    if phase1 is not None and phase1.objective != "cvfp" and phase1.max_iterations:
        purpose = f"{MIN_TOKENS} for each of prediction_streams={phase1.prediction_streams}"
        refuse_short_training(data, tokens, MIN_TOKENS * phase1.prediction_streams, purpose)


def refuse_short_training(data: DataConfig, tokens: TokenData, needed: int, purpose: str) -> None:
    """Raises DataError, with file, conversations and numbers, where there are fewer than ``needed`` training tokens."""
    found, indices = tokens.train.num_tokens, tokens.train.sample_indices
    if found < needed:
        raise DataError(
            f"{data.conversations_file or data.corpus}: training conversations {indices[0]} to {indices[-1]} hold "
            f"{found} tokens; expected at least {needed}, {purpose}. Raise num_samples"
        )


def check_phase1(prepared: Prepared, config: Phase1Config, folder: Path) -> None:
    """Whether Phase 1 can be trained and kept in ``folder``. Raises DataError or RunError.

    A checkpoint holds the contexts of all training tokens, the weights, Adam's two moments of them and the best ones.
    """
    refuse_short_texts(prepared.data, prepared.token_data, prepared.model.config, config)
    weights = sum(weight.numel() for weight in prepared.model.context_block.parameters())
    contexts = len(prepared.train_tokens) * prepared.model.config.context_dim
    refuse_full_disk(folder, 4 * (contexts + 4 * weights))  # float32
