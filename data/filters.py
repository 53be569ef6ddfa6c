"""Which documents are worth training on: rules on length, symbols and words, after Gopher (Rae et al. 2021).

Each rule has a limit, the paper's by default where it gives one (appendix A1.1, quality filtering), null to switch it
off, and a reason under which what it drops is counted. Words are what stands between spaces. The rules are for English
prose: for source code widen or leave them out. Repetition has a file of its own, `repetition.py`. To add a filter,
write a `FilterConfig` subclass and its row in `data/__init__.py`, or name it in the config: `type: my_module:MyFilter`.
"""

import re
from collections.abc import Iterator

from pydantic import Field, model_validator

from data.pieces import pieces
from utils.schema import Misfits, TypedSection

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
ELLIPSES = ("...", "\u2026")
BULLET = re.compile("[\u2022\u2023\u2043\u204c\u204d\u2219\u25aa\u25cf\u25e6]|[-*+\u2013\u2014][ \t]")
LETTER = re.compile(r"[^\W\d_]")


class FilterConfig(TypedSection):
    """What all filters have in common. `reason` runs in worker processes: it must depend on the text alone."""

    def reason(self, text: str) -> str | None:
        """None to keep a document; else why it is dropped, one of a few fixed names such as `too_few_words`."""
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing, found without reading documents."""
        return []


class LengthFilterConfig(FilterConfig):
    """Drops documents that are too short or too long."""

    type: str = "length"
    """Row of data.FILTERS."""
    min_characters: int | None = Field(default=None, ge=0)
    """Fewer characters: `too_few_characters`."""
    max_characters: int | None = Field(default=None, gt=0)
    """More characters: `too_many_characters`."""
    min_words: int | None = Field(default=50, ge=0)
    """Fewer words: `too_few_words`."""
    max_words: int | None = Field(default=100_000, gt=0)
    """More words: `too_many_words`."""

    @model_validator(mode="after")
    def check_order(self) -> "LengthFilterConfig":
        """Refuse limits that no document can meet."""
        for unit in ("characters", "words"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise Misfits((f"min_{unit}", f"is {low}, above max_{unit} {high}: nothing would be kept"))
        return self

    def reason(self, text: str) -> str | None:
        """See `FilterConfig.reason`."""
        if self.min_characters is not None and len(text) < self.min_characters:
            return "too_few_characters"
        if self.max_characters is not None and len(text) > self.max_characters:
            return "too_many_characters"
        if self.min_words is None and self.max_words is None:
            return None
        num_words = 0
        for piece in pieces(text):
            num_words += len(piece.split())
            if self.max_words is not None and num_words > self.max_words:
                return "too_many_words"
        return "too_few_words" if self.min_words is not None and num_words < self.min_words else None


class SymbolFilterConfig(FilterConfig):
    """Drops documents that are not made of sentences."""

    type: str = "symbols"
    """Row of data.FILTERS."""
    max_hashes_per_word: float | None = Field(default=0.1, ge=0)
    """`#` against words: `many_hashes`."""
    max_ellipses_per_word: float | None = Field(default=0.1, ge=0)
    """`...` and its one-character form against words: `many_ellipses`."""
    max_digit_fraction: float | None = Field(default=0.25, ge=0, le=1)
    """Digits (0 to 9) among the characters of words: `many_digits`. Not in the paper."""
    min_alphabetic_word_fraction: float | None = Field(default=0.8, ge=0, le=1)
    """Words that hold a letter: `few_alphabetic_words`."""
    min_mean_word_length: float | None = Field(default=3, ge=0)
    """Characters of a word on average: `short_words`."""
    max_mean_word_length: float | None = Field(default=10, gt=0)
    """Characters of a word on average: `long_words`."""
    max_ellipsis_line_fraction: float | None = Field(default=0.3, ge=0, le=1)
    """Lines, blank ones not counted, that end with an ellipsis: `many_ellipsis_lines`."""
    max_bullet_line_fraction: float | None = Field(default=0.9, ge=0, le=1)
    """Lines, blank ones not counted, that begin with a bullet, a dash, `*` or `+`: `many_bullet_lines`."""
    min_stop_words: int | None = Field(default=2, ge=0)
    """How many different words of `stop_words` there must be: `few_stop_words`."""
    stop_words: tuple[str, ...] = STOP_WORDS
    """Words that every text of the language holds, in lower case; upper case in the text counts as well."""

    @model_validator(mode="after")
    def check_stop_words(self) -> "SymbolFilterConfig":
        """Refuse more stop words than there are, and any that no word of a text can equal."""
        wrong = [word for word in self.stop_words if word.lower().split() != [word]]
        if wrong:
            raise Misfits(("stop_words", f"'{wrong[0]}' is not one word in lower case"))
        if (self.min_stop_words or 0) > len(set(self.stop_words)):
            most = len(set(self.stop_words))
            raise Misfits(("min_stop_words", f"is {self.min_stop_words}, but there are only {most} stop_words"))
        return self

    def reason(self, text: str) -> str | None:
        """See `FilterConfig.reason`; a document without words is `few_alphabetic_words` or `few_stop_words`."""
        return next((name for name, wrong in self._verdicts(text) if wrong), None)

    def _verdicts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Reasons, and whether the document has them; cheap ones first, none computed before it is asked for."""
        num_words, num_characters, num_alphabetic = count_words(text)
        words, characters = max(num_words, 1), max(num_characters, 1)
        yield "many_hashes", _above(text.count("#") / words, self.max_hashes_per_word)
        num_ellipses = sum(text.count(mark) for mark in ELLIPSES)
        yield "many_ellipses", _above(num_ellipses / words, self.max_ellipses_per_word)
        yield "many_digits", _above(sum(map(text.count, "0123456789")) / characters, self.max_digit_fraction)
        yield "few_alphabetic_words", _below(num_alphabetic / words, self.min_alphabetic_word_fraction)
        yield "short_words", _below(num_characters / words, self.min_mean_word_length)
        yield "long_words", _above(num_characters / words, self.max_mean_word_length)
        num_lines, num_ellipsis, num_bullet = count_lines(text)
        yield "many_ellipsis_lines", _above(num_ellipsis / max(num_lines, 1), self.max_ellipsis_line_fraction)
        yield "many_bullet_lines", _above(num_bullet / max(num_lines, 1), self.max_bullet_line_fraction)
        if self.min_stop_words:
            yield "few_stop_words", count_present(text, frozenset(self.stop_words)) < self.min_stop_words


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def count_words(text: str) -> tuple[int, int, int]:
    """Words, their characters, and how many of them hold a letter of any script."""
    num_words = num_characters = num_alphabetic = 0
    for piece in pieces(text):
        words = piece.split()
        num_words += len(words)
        num_characters += sum(map(len, words))
        # Most words are letters throughout; only the rest are searched.
        mixed = [word for word in words if not word.isalpha()]
        num_alphabetic += len(words) - len(mixed) + sum(1 for word in mixed if LETTER.search(word))
    return num_words, num_characters, num_alphabetic


def count_lines(text: str) -> tuple[int, int, int]:
    """Lines that are not blank, those that end with an ellipsis, and those that begin with a bullet."""
    num_lines = num_ellipsis = num_bullet = 0
    for piece in pieces(text):
        lines = [line for line in map(str.strip, piece.split("\n")) if line]
        num_lines += len(lines)
        num_ellipsis += sum(1 for line in lines if line.endswith(ELLIPSES))
        num_bullet += sum(1 for line in lines if BULLET.match(line))
    return num_lines, num_ellipsis, num_bullet


def count_present(text: str, wanted: frozenset[str]) -> int:
    """How many of the `wanted` words, all lower case, are in the text."""
    found: set[str] = set()
    for piece in pieces(text):
        found |= wanted.intersection(map(str.lower, set(piece.split())))
    return len(found)
