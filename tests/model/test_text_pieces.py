"""Pieces, joined, are the text of all tokens up to the stop text, whatever the tokens and wherever they are cut."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from newllm_core.data import load_tokenizer
from newllm_core.model.text_pieces import TextPieces

GPT2 = load_tokenizer()
# As Llama's: words with a mark for the blank before, and every byte for what is not in the vocabulary.
_WORDS = ["▁the", "▁cat", "s", "▁", "é"]
_VOCABULARY = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(_WORDS)}
LLAMA_LIKE = Tokenizer(models.BPE(vocab=_VOCABULARY, merges=[], byte_fallback=True))
LLAMA_LIKE.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def pieces_of(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextPieces]:
    pieces, found = TextPieces(tokenizer, stop), []
    for token in tokens:
        found.append(pieces.add(token))
        if pieces.stopped:
            return found, pieces
    return [*found, pieces.rest()], pieces


@pytest.mark.parametrize("text", ["Hello world", "naïve 日本語 👩‍👩‍👧 end", "�", ""])
def test_characters_come_whole(text: str) -> None:
    found, _ = pieces_of(GPT2, GPT2.encode(text).ids)
    assert "".join(found) == text
    assert text == "�" or not any("�" in piece for piece in found)


@given(st.lists(st.one_of(st.integers(0, 255), st.integers(0, 50256)), max_size=120))
@hypothesis_settings(deadline=None, max_examples=100)
def test_any_tokens_give_the_text_of_all_of_them(tokens: list[int]) -> None:
    # GPT-2's first 256 ids are single bytes, most of which are no character: random ones are the worst case.
    found, _ = pieces_of(GPT2, tokens)
    assert "".join(found) == GPT2.decode(tokens, skip_special_tokens=False)


@given(st.lists(st.sampled_from(["▁the", "▁cat", "s", "▁", "é", "ü", "日本", "👩‍👧", "x"]), max_size=60))
@hypothesis_settings(deadline=None, max_examples=100)
def test_words_and_characters_in_bytes_give_the_text_of_all_of_them(words: list[str]) -> None:
    tokens: list[int] = []
    for word in words:
        tokens += [_VOCABULARY[word]] if word in _VOCABULARY else word.encode()
    found, _ = pieces_of(LLAMA_LIKE, tokens)
    assert "".join(found) == LLAMA_LIKE.decode(tokens, skip_special_tokens=False)


@given(st.text(alphabet="ab\nc", max_size=80), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
@hypothesis_settings(deadline=None, max_examples=200)
def test_the_text_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    found, pieces = pieces_of(GPT2, GPT2.encode(text).ids, tuple(stop))
    places = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    assert "".join(found) == (text[: min(places)[1]] if places else text)
    assert pieces.stopped == bool(places)


def test_nothing_of_a_stop_text_is_said_before_it_is_certain_that_it_is_none() -> None:
    tokens = [GPT2.token_to_id(character) for character in "a<|b<|end|>c"]
    found, pieces = pieces_of(GPT2, tokens, ("<|end|>",))
    assert found == ["a", "", "", "<|b", "", "", "", "", "", "", ""] and pieces.stopped


def test_memory_stays_the_same() -> None:
    pieces = TextPieces(GPT2, ("never",))
    for token in [GPT2.token_to_id("Ģ")] * 500:  # a byte that begins no character
        pieces.add(token)
        assert len(pieces._tokens) <= 48 and len(pieces._held) < 10


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        TextPieces(GPT2, ("a", ""))
