"""From tokens to text while they arrive: whole characters only, and nothing from a stop string on.

A token of a byte-level tokenizer can end in the middle of a character, and a stop string can begin in one token and
end in another. So the last few replacement characters wait (the next token may complete them), and so does any end of
the text with which a stop string begins. What has been handed out is never taken back: the pieces joined are exactly
what decoding everything at once gives, cut at the stop string that was complete first. Decoding starts at the last
clean boundary but one, so a step costs the same at any length, and a tokenizer that strips a leading space at the
start of a text keeps it here. To change what stops a text: `find_stop`.
"""

from collections.abc import Callable, Sequence

MAX_PENDING = 3
"""A UTF-8 character has at most four bytes, so at most three of them wait for the rest."""


class Detokenizer:
    """Decodes one growing sequence of tokens into settled text."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._known_tokens = 0
        self._known_text = ""
        self._num_emitted = 0

    def push(self, token: int) -> str:
        """Take one more token; the text that is now certain, possibly empty."""
        self._tokens.append(token)
        fresh = self._fresh_text()
        settled = fresh[: len(fresh) - num_pending(fresh)]
        piece = settled[self._num_emitted :]
        self._num_emitted = len(settled)
        if fresh and settled == fresh:
            self._start_from_here()
        return piece

    def finish(self) -> str:
        """The text that was waiting for a token that never came: broken characters, as U+FFFD."""
        rest = self._fresh_text()[self._num_emitted :]
        self._num_emitted += len(rest)
        return rest

    def _fresh_text(self) -> str:
        return self._decode(self._tokens)[len(self._known_text) :]

    def _start_from_here(self) -> None:
        self._tokens = self._tokens[self._known_tokens :]
        self._known_tokens = len(self._tokens)
        self._known_text = self._decode(self._tokens)
        self._num_emitted = 0


class TextStream:
    """A detokenizer that ends at the first of some stop strings."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; nothing comes after it."""

    def push(self, token: int) -> str:
        """Take one more token; the text that may be shown now, possibly empty."""
        return "" if self.stopped else self._release(self._detokenizer.push(token))

    def finish(self) -> str:
        """What was held back and may be shown after all, because no more tokens come."""
        if self.stopped:
            return ""
        shown = self._release(self._detokenizer.finish())
        rest, self._held = self._held, ""
        return shown + rest

    def _release(self, piece: str) -> str:
        text = self._held + piece
        start = find_stop(text, self._stop)
        if start is not None:
            self.stopped, self._held = True, ""
            return text[:start]
        num_shown = len(text) - num_held(text, self._stop)
        self._held = text[num_shown:]
        return text[:num_shown]


def num_pending(text: str) -> int:
    """How many characters at the end of `text` may still become something else with the next token."""
    return min(MAX_PENDING, len(text) - len(text.rstrip("\ufffd")))


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first (of several the longest), or None."""
    found = [(start + len(word), start) for word in stop if (start := text.find(word)) >= 0]
    return min(found)[1] if found else None


def num_held(text: str, stop: Sequence[str]) -> int:
    """The length of the longest end of `text` with which some stop string begins."""
    longest = max((len(word) for word in stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-length:]) for word in stop):
            return length
    return 0
