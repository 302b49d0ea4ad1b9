"""Folders of models on the Hugging Face Hub: fetched from there and put there; and embeddings read from their source.

Own code in place of `huggingface_hub.PyTorchModelHubMixin`, which loads non-strictly (a renamed layer is fresh random
numbers), leaves out tensors among the constructor's arguments, and gives nested dataclasses back as dictionaries.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.embeddings import is_published, load_embeddings
from newllm_core.data.errors import DataError
from newllm_core.data.network import network_errors
from newllm_core.model.saved import CARD_NAME, CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from newllm_core.runs.files import DATA_DIR, RunError, sha256_tensors

FILES = (CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME, CARD_NAME)


def model_folder(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder ``name``, or else the repository of that name, downloaded or from the Hub's local cache.

    Raises RunError when there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # imported here: it is slow, and only this needs it

    with _explained(f"{name}: there is no such folder, and as a repository on the Hub it cannot be fetched"):
        return Path(snapshot_download(str(name), revision=revision, token=token, allow_patterns=list(FILES)))


def upload(folder: Path, repository: str, message: str, private: bool | None, token: str | None) -> str:
    """Put a model's folder into ``repository``, which is created if it is not there. Returns the commit's address.

    Raises RunError when that is not allowed, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _explained(f"{repository}: cannot be written on the Hub"):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=list(FILES)
        )
    return str(commit.commit_url)


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    try:
        yield
    except network_errors() as error:
        raise RunError(f"{problem} ({type(error).__name__}: {error})") from error


def require_published(source: Mapping[str, Any] | None) -> None:
    """Raises RunError unless the embedding matrix can be read again by whoever loads the model."""
    name = None if source is None else source["name"]
    if name is None or not is_published(name):
        raise RunError(
            "embedding='referenced': expected embeddings that others can read again (whisper-tiny.en, gpt2, hub:…), "
            f"given {'ones whose source is not known' if name is None else name}; embedding='stored' keeps them"
        )


def referenced_embedding(source: Mapping[str, Any]) -> Tensor:
    """The matrix `[V, E]`, read from where it came from. Raises RunError when it is not there, or not the same."""
    try:
        config = DataConfig(embeddings=source["name"])
        matrix = load_embeddings(config, source["embed_dim"], 0, None, DATA_DIR).matrix
    except DataError as error:
        raise RunError(f"the model refers to embeddings {source['name']!r}, which cannot be read: {error}") from error
    found = sha256_tensors(matrix)
    if found != source["matrix_sha256"]:
        raise RunError(
            f"the model refers to embeddings {source['name']!r} with SHA-256 {source['matrix_sha256']}, found {found}: "
            "they have changed since it was saved"
        )
    return matrix
