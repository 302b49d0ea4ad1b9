"""Any causal language model on the Hugging Face Hub: its tokenizer, and its embedding matrix alone.

`embeddings="hub:owner/name"` or `"hub:owner/name@revision"`. Of the weights, which may lie in many files, only the
bytes of that one tensor are fetched.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.data.errors import DataError
from newllm_core.data.network import network_errors
from newllm_core.runs.files import RunError, load_tensors, save_tensors
from newllm_core.runs.progress import progress_bar

HUB = "hub:"
TOKENIZER_FILE, WEIGHTS_FILE, INDEX_FILE = "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
# Ends of the tensor's name in the models of transformers, the more usual first.
EMBEDDING_NAMES = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight",
    "embeddings.weight", "embedding.weight",
)  # fmt: skip
_PIECE = 16 << 20  # bytes fetched at once
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
Header = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class HubModel:
    """A repository, and a branch, tag or commit of it."""

    repository: str
    revision: str = "main"

    @classmethod
    def named(cls, embeddings: str) -> "HubModel":
        """Of a value of ``DataConfig.embeddings`` that begins with `hub:`."""
        repository, _, revision = embeddings.removeprefix(HUB).partition("@")
        return cls(repository, revision or "main")

    def __str__(self) -> str:
        return f"{HUB}{self.repository}@{self.revision}"

    def tokenizer_file(self) -> Path:
        """In the Hub's local cache, fetched if it is not there. Raises DataError when there is none to be had."""
        return self._fetched(TOKENIZER_FILE)

    def commit(self) -> str:
        """The commit that the revision stands for now; without a network, the one in the Hub's local cache."""
        return self.tokenizer_file().parent.name  # of the cache's folders: snapshots/<commit>/<file>

    def embedding_matrix(self, data_dir: Path) -> Tensor:
        """float32 `[rows, E]`, rows >= V, fetched once and then kept below ``data_dir``. Raises DataError."""
        commit = self.commit()
        kept = data_dir / "embeddings" / f"hub-{self.repository.replace('/', '--')}-{commit[:12]}.safetensors"
        if kept.is_file():
            try:
                return load_tensors(kept)["embedding"].float()
            except (RunError, KeyError):
                kept.unlink()  # damaged: fetched again
        matrix = self._read_embedding(commit)
        save_tensors(kept, {"embedding": matrix})
        return matrix.float()

    def _read_embedding(self, commit: str) -> Tensor:
        from huggingface_hub import HfFileSystem  # imported here: it is slow, and only this source needs it

        file = self._file_with_embedding(commit)
        try:
            with HfFileSystem().open(f"{self.repository}/{file}", revision=commit, cache_type="none") as stream:
                return _read_tensor(stream, f"{self}: {file}")
        except network_errors() as error:
            raise self._unreachable(file, error) from error

    def _file_with_embedding(self, commit: str) -> str:
        """Which of the files of weights; read from their index, where there are several."""
        try:
            index = json.loads(self._fetched(INDEX_FILE, commit).read_text(encoding="utf-8"))
        except DataError as error:
            if not isinstance(error.__cause__, _absent()):
                raise
            return WEIGHTS_FILE
        files: dict[str, str] = index["weight_map"]
        return files[embedding_name(files, f"{self}: {INDEX_FILE}")]

    def _fetched(self, file: str, commit: str | None = None) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repository, file, revision=commit or self.revision))
        except network_errors() as error:
            raise self._unreachable(file, error) from error

    def _unreachable(self, file: str, error: Exception) -> DataError:
        return DataError(
            f"embeddings={str(self)!r}: {file} cannot be read ({type(error).__name__}: {error!s:.500}). It needs a "
            f"network, a repository with {TOKENIZER_FILE} and safetensors, and a token if that is not public"
        )


def _absent() -> type[Exception]:
    from huggingface_hub.errors import EntryNotFoundError

    return EntryNotFoundError


def embedding_name(names: Any, where: str) -> str:
    """The one among the names of tensors. Raises DataError when there is none, or more than one."""
    for ending in EMBEDDING_NAMES:
        found = sorted(name for name in names if name == ending or name.endswith(f".{ending}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{where}: expected one tensor …{ending}, found {', '.join(found)}")
    some = ", ".join(sorted(names)[:5])
    raise DataError(
        f"{where}: expected a tensor whose name ends in one of {', '.join(EMBEDDING_NAMES)}; found {some}, …"
    )


def _read_tensor(stream: Any, where: str) -> Tensor:
    """The embedding matrix of an open safetensors file: its header is read, then the matrix' own bytes."""
    length = int.from_bytes(stream.read(8), "little")
    header: Header = json.loads(stream.read(length))
    name = embedding_name([name for name in header if name != "__metadata__"], where)
    described = header[name]
    if described["dtype"] not in _TYPES or len(described["shape"]) != 2:
        raise DataError(f"{where}: expected {name} of two dimensions and a floating type, found {described}")
    first, last = described["data_offsets"]
    stream.seek(8 + length + first)
    content = bytearray()
    with progress_bar(total=last - first, desc=name, unit="B", unit_scale=True) as bar:
        while len(content) < last - first:
            piece = stream.read(min(_PIECE, last - first - len(content)))
            if not piece:
                raise DataError(f"{where}: expected {last - first} bytes of {name}, found {len(content)}")
            content += piece
            bar.update(len(piece))
    return torch.frombuffer(content, dtype=_TYPES[described["dtype"]]).view(*described["shape"])


def folder_name(embeddings: str) -> str:
    """A value of ``DataConfig.embeddings`` as part of a folder's name."""
    return re.sub(r"[^\w.-]+", "--", embeddings)
