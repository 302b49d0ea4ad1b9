"""Text, tokens and frozen embeddings."""

from newllm_core.data.content import content_read, corpus_key
from newllm_core.data.embeddings import EmbeddingMatrix, load_embeddings
from newllm_core.data.errors import DataError
from newllm_core.data.tokens import TokenData, load_token_streams
from newllm_core.data.vocabulary import VOCAB_SIZE, load_tokenizer, token_byte_lengths

__all__ = [
    "DataError",
    "EmbeddingMatrix",
    "TokenData",
    "VOCAB_SIZE",
    "content_read",
    "corpus_key",
    "load_embeddings",
    "load_token_streams",
    "load_tokenizer",
    "token_byte_lengths",
]
