"""Where text and embeddings come from and what allows their use, for a model's card; docs/data.md says more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """``words`` name it, ``licence`` as its publisher says; ``dataset`` and ``language`` as the Hub calls them."""

    words: str
    licence: str
    dataset: str | None = None
    language: str | None = None


CORPORA: Mapping[str, Source] = {
    "chitchat": Source(
        "chitchat-dataset 0.9.0 (Myers, Etchart and Fulda 2020), https://github.com/BYU-PCCL/chitchat-dataset",
        "MIT", language="en",
    ),
    "ultrachat": Source(
        "UltraChat 200k, https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k",
        "MIT", "HuggingFaceH4/ultrachat_200k", "en",
    ),
    "brown": Source(
        "Brown corpus (Francis and Kučera 1964, amplified 1979), NLTK's edition, https://www.nltk.org/nltk_data/",
        "redistribution permitted; for non-commercial purposes", language="en",
    ),
    "file": Source("conversations of the author's own", "as their author says"),
}  # fmt: skip
EMBEDDINGS: Mapping[str, Source] = {
    "whisper-tiny.en": Source("token matrix of Whisper tiny.en (Radford et al. 2022), scaled", "MIT"),
    "gpt2": Source("token matrix of GPT-2, https://huggingface.co/openai-community/gpt2", "MIT (modified, OpenAI)"),
    "ppmi-svd": Source("computed from the training text", "that of the text"),
    "random": Source("random numbers", "none needed"),
}


def embedding_source(name: str) -> Source:
    """Of a value of ``DataConfig.embeddings``; of a model on the Hub, its page."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    repository = name.removeprefix("hub:").partition("@")[0]
    return Source(f"token matrix of https://huggingface.co/{repository}, scaled", "that of the model")


def corpus_source(record: Mapping[str, Any]) -> Source:
    """Of what a run's record says it was trained on."""
    return CORPORA[record["corpus"]]
