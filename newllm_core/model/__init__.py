"""The network: context layers that carry a vector along the text, token layers that predict from it."""

from newllm_core.model.layers import ContextBlock, ContextLayer, TokenBlock, TokenLayer
from newllm_core.model.llm import NewLLM
from newllm_core.model.stream import StreamEmbeddings

__all__ = [
    "ContextBlock",
    "ContextLayer",
    "NewLLM",
    "StreamEmbeddings",
    "TokenBlock",
    "TokenLayer",
]
