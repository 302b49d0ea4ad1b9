"""The Brown corpus from a small folder in NLTK's layout, and the vocabulary of words."""

import dataclasses
import itertools
import zipfile
from pathlib import Path

import pytest

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.config.schema import ConfigError
from newllm_core.data import DataError, brown, load_embeddings, load_token_streams, token_byte_lengths
from newllm_core.data.brown import brown_source, conversations_of, cut_at
from newllm_core.data.corpus import open_corpus
from newllm_core.data.word_vocabulary import RARE, frequent_words, word_vocabulary_path

FILES = {
    "ca01": "\n\n\tThe/at jury/nn said/vbd ,/, and/or/cc it/pps rained/vbd ./.\nThe/at jury/nn rained/vbd ./.\n\n\n"
    "\tAnd/cc then/rb ./.\n\n",
    "ca02": "\n\n\tThe/at jury/nn ./.\n",
    "cr09": "\n\n\tThe/at end/nn ./.\n",
}
TEXTS = [
    "The jury said , and/or it rained . The jury rained . <p> And then . <p> <text>", "The jury . <p> <text>",
    "The end . <p> <text>",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "brown").mkdir()
    for name, content in {**FILES, "CONTENTS": "not a text", "cats.txt": "ca01 news"}.items():
        (tmp_path / "brown" / name).write_text(content)
    return tmp_path


def config(place: Path, **changes: object) -> DataConfig:
    values = {"num_samples": 1, "selection_range": (1, 2), "validation_range": (2, 3), "tokenizer": "words",
              "embeddings": "random", **changes}  # fmt: skip
    return DataConfig(corpus="brown", conversations_file=str(place), **values)  # type: ignore[arg-type]


def test_a_folder_and_its_zip_are_the_same_corpus(folder: Path) -> None:
    packed = folder / "brown.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((folder / "brown").iterdir(), reverse=True):
            archive.write(path, f"brown/{path.name}")
    corpora = [open_corpus(config(place)) for place in (folder, folder / "brown", packed)]
    for one in corpora:
        assert list(one.read()) == TEXTS and one.key == "brown"
    assert len({one.source for one in corpora}) == 1
    (folder / "brown" / "ca02").write_text("The/at end/nn\n")
    assert brown_source(str(folder)) != corpora[0].source


@pytest.mark.parametrize("borders", [(), (3,), (15, 20), (0, 5, 25, 99), (16, 17)])
def test_a_text_that_reaches_over_a_border_is_two(borders: tuple[int, ...]) -> None:
    found = [text.split() for text in conversations_of(FILES, borders)]
    assert list(itertools.chain(*found)) == " ".join(TEXTS).split()
    ends = set(itertools.accumulate(map(len, found)))
    texts = set(itertools.accumulate(len(text.split()) for text in TEXTS))
    assert ends == texts | {border for border in borders if 0 < border < max(texts)}
    assert list(cut_at([], borders)) == []


@pytest.mark.parametrize("broken", ["nothing", "an empty folder", "no zip"])
def test_a_place_without_the_corpus_is_said(broken: str, tmp_path: Path) -> None:
    place = tmp_path / "mine.zip"
    if broken == "an empty folder":
        place.mkdir()
    elif broken == "no zip":
        place.write_text("text")
    expected = "there is no such file" if broken == "nothing" else "mine.zip: expected NLTK's Brown corpus"
    with pytest.raises(DataError, match=expected):
        open_corpus(config(place))


def test_without_a_place_it_is_looked_for_and_downloaded_by_nltk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def download(name: str, **options: object) -> None:
        assert name == "brown"
        if unreachable:
            raise ValueError("no network")
        (folder / "corpora").mkdir()
        (folder / "brown").rename(folder / "corpora" / "brown")

    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    monkeypatch.setattr(nltk, "download", download)
    unreachable = True
    with pytest.raises(DataError, match="cannot download one \\(no network\\); conversations_file="):
        brown_source(None)
    unreachable = False
    assert list(brown.brown_conversations(None)) == TEXTS


# --- the vocabulary


def test_words_are_those_that_are_not_rare_and_their_file_is_kept(folder: Path, tmp_path: Path) -> None:
    data = config(folder, tokenizer="words-of-corpus")
    streams, data_dir = load_token_streams(data, tmp_path / "data"), tmp_path / "data"
    vocabulary = streams.train.vocabulary
    # Four times or more in all; in the training text alone only the full stop, the mark and its like are not.
    assert frequent_words(TEXTS) == [".", "<p>", "The"]
    assert sorted(vocabulary.tokenizer.get_vocab(), key=vocabulary.tokenizer.token_to_id) == [RARE, ".", "<p>", "The"]
    assert streams.train.tokens.tolist()[:5] == [3, 0, 0, 0, 0] and streams.validation.tokens.tolist() == [
        3,
        0,
        1,
        2,
        0,
    ]
    assert vocabulary.tokenizer.decode(streams.validation.tokens.tolist()) == "The <rare> . <p> <rare>"
    assert token_byte_lengths(vocabulary).tolist() == [0, 2, 4, 4]
    (path,) = (data_dir / "brown").glob("words-*.json")
    before = path.read_bytes()
    path.write_bytes(b"{}")
    again = load_token_streams(data, data_dir)
    assert path.read_bytes() == before and again.train.vocabulary.sha256 == vocabulary.sha256
    few = load_token_streams(dataclasses.replace(data, tokenizer="words"), data_dir)
    assert few.train.vocabulary.size == 1 and few.train.provenance["tokenizer_sha256"] != vocabulary.sha256
    matrix = load_embeddings(data, 6, 1, streams.train.tokens, data_dir, vocabulary.size).matrix
    assert matrix.shape == (4, 6)


def test_a_vocabulary_of_training_words_is_named_by_the_training_text(folder: Path, tmp_path: Path) -> None:
    one, corpus = config(folder), open_corpus(config(folder))
    two = config(folder, num_samples=1, selection_range=None)
    paths = {word_vocabulary_path(data, corpus, tmp_path) for data in (one, two)}
    assert len(paths) == 2
    whole = [dataclasses.replace(data, tokenizer="words-of-corpus") for data in (one, two)]
    assert len({word_vocabulary_path(data, corpus, tmp_path) for data in whole}) == 1


def test_words_and_published_embeddings_do_not_fit(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected 'gpt2', whose ids embeddings='whisper-tiny.en' are on"):
        config(folder, embeddings="whisper-tiny.en")
