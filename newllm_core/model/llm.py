"""NewLLM: frozen embeddings, a ContextBlock, a TokenBlock and a head that is the embedding matrix again."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig
from newllm_core.config.schema import from_mapping
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.head.cross_entropy import with_output_bias, with_unit_columns
from newllm_core.model.generation import generate, stream_text
from newllm_core.model.layers import ContextBlock, TokenBlock, initialise_normal
from newllm_core.model.readout import LinearBlock, Readout
from newllm_core.model.saved import read_model, write_model
from newllm_core.runs.files import RunError
from newllm_core.runs.reproducibility import derived_generator


class NewLLM(nn.Module):
    """The whole language model (docs/method.md, section 2).

    Args:
        model_config: widths, depth, and what is trained.
        embedding_matrix: `[V, E]`; copied, so that training it leaves the caller's alone.
        seed: of the initial weights.

    Raises ValueError when the matrix is not `[V, model_config.embed_dim]`.
    """

    frozen_embedding: Tensor
    output_bias: Tensor | None
    # What text is read and written with, beside the weights.
    tokenizer: Tokenizer | None = None
    continuous_cache: ContinuousCache | None = None

    def __init__(self, model_config: ModelConfig, embedding_matrix: Tensor, seed: int = 42) -> None:
        super().__init__()
        if embedding_matrix.ndim != 2 or embedding_matrix.shape[1] != model_config.embed_dim:
            raise ValueError(
                f"NewLLM: expected an embedding matrix [V, {model_config.embed_dim}] (embed_dim), "
                f"given {list(embedding_matrix.shape)}"
            )
        self.config = model_config
        shape = model_config
        # Drawn again below, with the configured spread; torch's global generator must not notice.
        unused = derived_generator("weights of blocks alone")
        self.context_block = ContextBlock(
            shape.context_dim, shape.embed_dim, shape.num_layers, shape.num_input_tokens,
            shape.token_input, shape.time_scales, unused,
        )  # fmt: skip
        tokens = TokenBlock(shape.context_dim, shape.embed_dim, shape.num_layers, shape.token_gate, unused)
        self.token_block: TokenBlock | LinearBlock = tokens
        if shape.readout != "token-block":
            added = tokens if shape.readout == "sum" else None
            self.token_block = LinearBlock(shape.context_dim, shape.embed_dim, added)
        self.readout = Readout(shape.embed_dim, shape.adapter_rank, shape.logit_scale)
        parts = {"context": self.context_block, "token": self.token_block, "readout": self.readout}
        for name, block in parts.items():
            initialise_normal(block, shape.weight_std, shape.bias_std, derived_generator("weights", name, seed))
        self.readout.start_adapter_at_zero()
        if isinstance(self.token_block, LinearBlock):
            self.token_block.start_at_zero()
        trained = not model_config.freeze_embedding
        self.embedding = nn.Parameter(embedding_matrix.detach().clone().float(), requires_grad=trained)
        if trained:
            # Contexts are computed once, before Phase 2 moves the embedding: the ContextBlock keeps reading this copy.
            self.register_buffer("frozen_embedding", self.embedding.detach().clone())
        self.embed_norm = nn.LayerNorm(shape.embed_dim).requires_grad_(False)
        # Of the output, `[V]`; Phase 2 sets it from the training text.
        self.register_buffer("output_bias", None)
        if not model_config.tie_weights:
            self.untied_head = nn.Parameter(self.embedding.detach().clone())

    @property
    def vocab_size(self) -> int:
        return len(self.embedding)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def head_weight(self) -> Tensor:
        """`[V, E]`: the embedding matrix itself when tied."""
        return self.embedding if self.config.tie_weights else self.untied_head

    @property
    def head_is_frozen(self) -> bool:
        return not self.head_weight.requires_grad

    def embed(self, tokens: Tensor) -> Tensor:
        """`[...]` token ids -> `[..., E]` normalised embeddings."""
        normed: Tensor = self.embed_norm(functional.embedding(tokens, self.embedding))
        return normed

    def embed_for_contexts(self, tokens: Tensor) -> Tensor:
        """The same for the ContextBlock, whose input never changes. `[...]` -> `[..., E]`."""
        matrix = self.embedding if self.config.freeze_embedding else self.frozen_embedding
        normed: Tensor = self.embed_norm(functional.embedding(tokens, matrix))
        return normed

    def output_weight(self) -> Tensor:
        """The head with its bias, where it has one: `[V, E]` or `[V, E + 2]` (``head.with_output_bias``)."""
        return self.head_weight if self.output_bias is None else with_output_bias(self.head_weight, self.output_bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """What ``hidden`` gives -> `[n, V]`; the bias is added here, since joining it to the head copies the head."""
        without_unit_columns = hidden[:, : self.config.embed_dim]
        scores = without_unit_columns @ self.head_weight.T
        return scores if self.output_bias is None else scores + self.output_bias

    def hidden(self, contexts: Tensor, tokens: Tensor, dropout: float = 0.0) -> Tensor:
        """What ``output_weight`` is multiplied by. `contexts [n, L, C], tokens [n]` -> `[n, E]` or `[n, E + 2]`.

        ``dropout``, for training, is of contexts and token embeddings, and of the TokenBlock's output where the head
        reads that alone.
        """
        read = functional.dropout(contexts, dropout)
        layers = read.unbind(1) if self.config.context_routing == "per-layer" else [read[:, -1]] * read.shape[1]
        token = self.token_block.forward_with_contexts(layers, functional.dropout(self.embed(tokens), dropout))
        if isinstance(self.token_block, TokenBlock):
            token = functional.dropout(token, dropout)
        hidden: Tensor = self.readout(token)
        return hidden if self.output_bias is None else with_unit_columns(hidden)

    def generate(self, prompts: str | Sequence[str], *, stop: Sequence[str] = (), **values: Any) -> list[str]:
        """What the model writes after each prompt, without it; the prompts are read side by side.

        Args:
            prompts: at least one token each; the zero context is what stands before them.
            stop: a text ends before the first of these.
            values: of ``GenerationConfig``: num_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed.

        Raises ConfigError for an unknown or impossible value, ValueError for an empty prompt, RunError for a model
        that has no tokenizer.
        """
        return generate(self, self._own_tokenizer(), _as_list(prompts), from_mapping(GenerationConfig, values), stop)

    def stream(
        self, prompts: str | Sequence[str], *, stop: Sequence[str] = (), **values: Any
    ) -> Iterator[tuple[int, str]]:
        """As ``generate``, while it is written: pairs of a prompt's number and the next piece of its text."""
        config = from_mapping(GenerationConfig, values)
        return stream_text(self, self._own_tokenizer(), _as_list(prompts), config, stop)

    def _own_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RunError("this model has no tokenizer; set model.tokenizer, for example to data.load_tokenizer()")
        return self.tokenizer

    def parameter_counts(self) -> dict[str, int]:
        """Parameters per part, their total, and how many of them Phase 1 and Phase 2 train."""
        parts: dict[str, Iterable[nn.Parameter]] = {
            "embedding": [self.embedding],
            "embed_norm": self.embed_norm.parameters(),
            "context_block": self.context_block.parameters(),
            # With what may stand between it and the head.
            "token_block": [*self.token_block.parameters(), *self.readout.parameters()],
            "head": [] if self.config.tie_weights else [self.untied_head],
        }
        counts = {name: sum(parameter.numel() for parameter in group) for name, group in parts.items()}
        counts["total"] = sum(counts.values())
        counts["trained_in_phase1"] = counts["context_block"]
        counts["trained_in_phase2"] = sum(parameter.numel() for parameter in self.phase2_parameters())
        return counts

    def phase2_parameters(self) -> list[nn.Parameter]:
        """TokenBlock and readout, and embedding or head where they are not frozen."""
        others = [self.embedding] if self.config.tie_weights else [self.embedding, self.untied_head]
        blocks = [*self.token_block.parameters(), *self.readout.parameters()]
        return [*blocks, *(p for p in others if p.requires_grad)]

    def save(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """Write all of the model to ``folder``, the embedding matrix too, so that it can be read there alone.

        With a ``tokenizer``, text can be written from there as well (``model.saved.load_model_tokenizer``).
        """
        write_model(folder, self.config, self.state_dict(), tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "NewLLM":
        """The model that ``save`` wrote to ``folder``, on the CPU.

        Raises RunError when there is none, when a file was altered since, and for a tensor too many or too few.
        """
        config, tensors = read_model(folder)
        model = cls(config, tensors["embedding"])
        if "output_bias" in tensors:
            model.output_bias = torch.zeros_like(tensors["output_bias"])
        try:
            model.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise RunError(f"{folder}: the weights do not fit the configuration: {error}") from error
        return model


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)
