"""Text, tokens and frozen embeddings."""

from newllm_core.data.content import content_read, corpus_key
from newllm_core.data.corpus import Corpus, load_conversations, open_corpus
from newllm_core.data.embeddings import EmbeddingMatrix, load_embeddings
from newllm_core.data.errors import DataError
from newllm_core.data.samples import conversations_needed, select_samples
from newllm_core.data.tokens import (
    VOCAB_SIZE,
    TokenData,
    TokenStatistics,
    TokenStream,
    load_token_streams,
    load_tokenizer,
    token_byte_lengths,
    token_statistics,
)

__all__ = [
    "VOCAB_SIZE",
    "Corpus",
    "DataError",
    "EmbeddingMatrix",
    "TokenData",
    "TokenStatistics",
    "TokenStream",
    "content_read",
    "conversations_needed",
    "corpus_key",
    "load_conversations",
    "load_embeddings",
    "load_token_streams",
    "load_tokenizer",
    "open_corpus",
    "select_samples",
    "token_byte_lengths",
    "token_statistics",
]
