"""What a run on text reads, by its content: half of what says whether two runs are the same."""

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import open_corpus
from newllm_core.data.embeddings import gpt2_file
from newllm_core.data.hub_model import HUB, HubModel
from newllm_core.data.packages import WHISPER_TINY_EN, locate
from newllm_core.data.vocabulary import vocabulary_sha256
from newllm_core.runs.files import content_sha256


def content_read(config: DataConfig) -> dict[str, str]:
    """SHA-256 of text, vocabulary and embeddings, as they are now; UltraChat, which is
    streamed, by its name, and a model on the Hub by its commit.

    Embeddings and a vocabulary that are drawn or computed from the text are not read. Raises DataError where something
    is missing, or an installed package was altered.
    """
    read = {"text": open_corpus(config).source}
    if config.tokenizer == "gpt2":
        read["vocabulary"] = vocabulary_sha256(config)
    if config.embeddings == "whisper-tiny.en":
        locate(WHISPER_TINY_EN)
        read["embeddings"] = WHISPER_TINY_EN.sha256
    if config.embeddings == "gpt2":
        read["embeddings"] = content_sha256(gpt2_file())
    if config.embeddings.startswith(HUB):
        model = HubModel.named(config.embeddings)
        read["embeddings"] = f"{model.repository}@{model.commit()}"  # a commit's content cannot change
    return read


def corpus_key(config: DataConfig) -> str:
    """The corpus in names of folders; a file by its content: `chitchat`, `file-1a2b3c4d`. Raises DataError."""
    return config.corpus if config.corpus != "file" else open_corpus(config).key
