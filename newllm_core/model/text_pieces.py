"""Text from tokens as they come: whole characters at once, held back where a stop text may have begun."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_UNKNOWN = "\ufffd"  # what bytes decode to that are no character, or none yet
_UNFINISHED = 3  # characters of UTF-8 have at most four bytes; so many may be waiting for the last one
# Tokens decoded together; how many more are waited for where they end inside a character; how many of them are decoded
# again at the beginning of the next window.
_WINDOW, _PATIENCE, _OVERLAP = 32, 16, 8


class TextPieces:
    """The text of one stream of tokens; joined, its pieces are what the tokenizer makes of all of them.

    One exception: a tokenizer with byte fallback (Llama's kind) writes a whole run of bytes as unknown characters as
    soon as one of them fits no character; pieces that were passed on before stay.

    Memory does not grow with the text.

    Args:
        tokenizer: whose tokens they are.
        stop: the text ends before the one of these that is complete first.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise ValueError("stop: expected texts of at least one character, given an empty one")
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        self._tokens: list[int] = []
        self._given = 0  # characters of the window's text that were passed on to ``_held``
        self._held = ""  # may be the beginning of a stop text

    def add(self, token: int) -> str:
        """What can be said for certain after one more token; ``stopped`` is set when the text has ended."""
        self._tokens.append(token)
        text = self._decoded()
        if text.endswith(_UNKNOWN) and len(self._tokens) < _WINDOW + _PATIENCE:
            return ""
        end = _settled(text)
        fresh = text[self._given : end]
        self._given = max(self._given, end)
        if len(self._tokens) >= _WINDOW:
            self._next_window()
        return self._released(fresh)

    def _next_window(self) -> None:
        """Begin at a whole character, where there is one: after half of one, bytes may decode to another text."""
        last = self._tokens[-_OVERLAP:]
        begins = (start for start in range(_UNFINISHED + 1) if not self._decoded(last[start:]).startswith(_UNKNOWN))
        self._tokens = last[next(begins, 0) :]
        self._given = _settled(self._decoded())

    def rest(self) -> str:
        """What is left when no token follows."""
        piece = self._released(self._decoded()[self._given :])
        return piece if self.stopped else piece + self._held

    def _decoded(self, tokens: Sequence[int] | None = None) -> str:
        text: str = self.tokenizer.decode(self._tokens if tokens is None else tokens, skip_special_tokens=False)
        return text

    def _released(self, fresh: str) -> str:
        """``fresh`` with what was held before, without what may still become, or is, a stop text."""
        text = self._held + fresh
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stop if stop in text]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        held = max((_begun(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _settled(text: str) -> int:
    """How many of its characters no further token can change."""
    end = len(text)
    while end > max(0, len(text) - _UNFINISHED) and text[end - 1] == _UNKNOWN:
        end -= 1
    return end


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
