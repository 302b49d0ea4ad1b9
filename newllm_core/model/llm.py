"""NewLLM: frozen embeddings, a ContextBlock, a TokenBlock and a head that is the embedding matrix again."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig
from newllm_core.config.schema import ConfigError, from_mapping
from newllm_core.head.continuous_cache import ContinuousCache
from newllm_core.head.cross_entropy import with_output_bias, with_unit_columns
from newllm_core.head.kneser_ney import CountedNGrams
from newllm_core.model.card import model_card
from newllm_core.model.dropout import RowsOf, batch_dropout
from newllm_core.model.generation import generate, stream_text
from newllm_core.model.hub import model_folder, referenced_embedding, require_published, upload
from newllm_core.model.layers import ContextBlock, TokenBlock, initialise_normal
from newllm_core.model.readout import LinearBlock, Readout
from newllm_core.model.saved import CARD_NAME, EMBEDDING, SavedModel, read_model, write_model
from newllm_core.runs.files import RunError, write_text
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
    ngrams: CountedNGrams | None = None  # of the training text; Phase 2 counts them
    embedding_source: Mapping[str, Any] | None = None  # where the matrix came from: ``EmbeddingMatrix.provenance``

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

    def hidden(self, contexts: Tensor, tokens: Tensor, dropout: float = 0.0, rows: RowsOf | None = None) -> Tensor:
        """What ``output_weight`` is multiplied by. `contexts [n, L, C], tokens [n]` -> `[n, E]` or `[n, E + 2]`.

        ``dropout``, for training, is of contexts and token embeddings, and of the TokenBlock's output where the head
        reads that alone; ``rows``: of a larger batch.
        """
        read = batch_dropout(contexts, dropout, rows)
        layers = read.unbind(1) if self.config.context_routing == "per-layer" else [read[:, -1]] * read.shape[1]
        token = self.token_block.forward_with_contexts(layers, batch_dropout(self.embed(tokens), dropout, rows))
        if isinstance(self.token_block, TokenBlock):
            token = batch_dropout(token, dropout, rows)
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

    def save_pretrained(
        self, folder: str | Path, *, embedding: str = "stored", record: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:  # fmt: skip
        """Write the model to ``folder``: weights, configuration, card, and what it has of tokenizer, cache and n-grams.

        Args:
            embedding: "stored", so that it can be read from the folder alone; or "referenced": a frozen embedding
                matrix that others can read again is left out, and read from its source when the model is loaded.
            record: of the run that made it (`run.json`), for the card.
            name: on the card; None: that of the folder.

        Raises RunError for embeddings that cannot be referenced.
        """
        if embedding not in ("stored", "referenced"):
            raise ConfigError(f"embedding: expected 'stored' or 'referenced', given {embedding!r}")
        tensors = self.state_dict()
        if embedding == "referenced":
            if not self.config.freeze_embedding:
                raise RunError("embedding='referenced': expected frozen embeddings, given ones that were trained")
            require_published(self.embedding_source)
            del tensors[EMBEDDING]
        saved = SavedModel(
            self.config, tensors, self.tokenizer, self.continuous_cache, self.ngrams, self.embedding_source,
            self.vocab_size, embedding == "stored",
        )  # fmt: skip
        write_model(Path(folder), saved)
        card = model_card(name or Path(folder).resolve().name, self.config, self.embedding_source, record)
        write_text(Path(folder) / CARD_NAME, card)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> "NewLLM":
        """The model that ``save_pretrained`` wrote, on the CPU.

        Args:
            name: a folder, or a repository on the Hugging Face Hub; the other arguments are of the latter.
            revision: branch, tag or commit; None: the main branch.
            token: of the Hub; None: the one that `huggingface_hub` knows.

        Raises RunError when there is none, when a file was altered since, and for a tensor too many or too few.
        """
        folder = model_folder(name, revision, token)
        saved = read_model(folder)
        tensors = dict(saved.tensors)
        if not saved.embedding_stored:
            assert saved.embedding_source is not None
            tensors[EMBEDDING] = referenced_embedding(saved.embedding_source)
        expected = (saved.vocab_size, saved.config.embed_dim)
        if EMBEDDING not in tensors or tensors[EMBEDDING].shape != expected:
            raise RunError(f"{folder}: the weights do not fit the configuration: expected {EMBEDDING} {list(expected)}")
        model = cls(saved.config, tensors[EMBEDDING])
        if "output_bias" in tensors:
            model.output_bias = torch.zeros_like(tensors["output_bias"])
        try:
            model.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise RunError(f"{folder}: the weights do not fit the configuration: {error}") from error
        model.tokenizer, model.continuous_cache = saved.tokenizer, saved.continuous_cache
        model.ngrams = saved.ngrams
        model.embedding_source = saved.embedding_source
        return model

    def push_to_hub(
        self, repository: str, *, embedding: str = "stored", record: Mapping[str, Any] | None = None,
        private: bool | None = None, token: str | None = None, message: str = "New-LLM model",
    ) -> str:  # fmt: skip
        """Save the model into ``repository`` on the Hub, which is created if need be; see ``save_pretrained``.

        Returns the address of the commit. Raises RunError when that is not allowed, or the Hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, embedding=embedding, record=record, name=repository)
            return upload(Path(folder), repository, message, private, token)


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)
