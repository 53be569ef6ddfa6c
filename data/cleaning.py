"""Repairs the text of a document: mojibake, invisible characters, line ends, boilerplate lines, lines said too often.

Every part has a switch, and what is not wrong comes back as it was: prose and source code keep their quotes, ligatures,
tabs and entities. Of ftfy only `fix_encoding` is used, line by line, behind a check that lets ASCII and harmless lines
pass at once. Cleaning what is clean changes nothing. To change what a part does, edit its function here; to change what
a boilerplate line is, set `data.cleaning.boilerplate`; the defaults are in `boilerplate.py`.
"""

import re
import unicodedata
from collections import Counter
from functools import cache

from pydantic import Field, field_validator

from data.boilerplate import PATTERNS
from data.pieces import pieces
from utils.errors import BackendError
from utils.optional import optional
from utils.schema import Section

Counts = Counter[str]

LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\u2028\u2029]")
# Joiners (U+200C, U+200D) and direction marks (U+200E, U+200F) stay: emoji, Persian, Hindi and Hebrew need them.
CONTROL = re.compile(
    "\x1b\\[[0-?]{0,32}[ -/]{0,8}[@-~]"
    "|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
ASCII_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])
# What `ftfy.badness.is_bad` needs at least: two neighbours that a one-byte encoding has, or one of these few alone.
SUSPECT = re.compile("[\x80-\u2fff\uf8ff\ufb01\ufb02\ufffd]{2}|[\x80-\x9f\xc2\xc3\u0152\u0153]")
LONGEST_BOILERPLATE = 200


class CleaningConfig(Section):
    """What is repaired in each document, before anything is judged or counted."""

    mojibake: bool = True
    """Undo text decoded with the wrong encoding (ftfy.fix_encoding), line by line."""
    normalize: bool = True
    """Compose accents with their letters: Unicode NFC. Nothing that looks different is changed."""
    control_characters: bool = True
    """Drop control characters, terminal colours, zero-width spaces, byte order marks, soft hyphens and overrides of the
    direction of writing; write every line break as one newline. Tabs and joiners stay."""
    trailing_whitespace: bool = True
    """Drop spaces and tabs at line ends. Switch it off if Markdown's hard breaks, two spaces, matter."""
    max_blank_lines: int | None = Field(default=2, ge=0)
    """Longest run of blank lines that is kept; null: any."""
    boilerplate: tuple[str, ...] = PATTERNS
    """Regular expressions, in either case; a line that one of them matches whole is dropped. Indented lines and lines
    of more than 200 characters are left alone. []: drop none."""
    max_repeats: int | None = Field(default=8, gt=0)
    """How often the same line is kept in a document; null: always. See `repeat_min_length` for what is a line here."""
    max_repeats_in_a_row: int | None = Field(default=2, gt=0)
    """How often the same line is kept with nothing but blank lines between; null: always."""
    repeat_min_length: int = Field(default=30, gt=0)
    """Only lines of so many characters count as repeated, and only those that are not indented and hold more letters
    and spaces than anything else: brackets, rules, tables and most code say the same again for good reason."""

    @field_validator("boilerplate")
    @classmethod
    def check_boilerplate(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what is no regular expression."""
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression ({error})") from None
        return patterns

    def find_problems(self) -> list[str]:
        """What is missing, found without reading documents."""
        try:
            if self.mojibake:
                optional("ftfy", extra="data")
        except BackendError as error:
            return [f"data.cleaning.mojibake: {problem}" for problem in error.problems]
        return []

    def clean(self, text: str) -> tuple[str, dict[str, int]]:
        """The text as it should have been, possibly empty, and how much of what was done, only what occurred:
        `mojibake_lines` and `normalized_lines` changed; `control_characters` dropped; `line_breaks` rewritten;
        `trailing_whitespace` characters dropped; `boilerplate_lines`, `repeated_lines` and `blank_lines` dropped.
        `clean(clean(x)) == clean(x)`. Raises BackendError when ftfy is needed and not installed."""
        counts = Counts()
        before = None
        while text != before:  # A character dropped may bring together what the next round repairs.
            before = text
            text = self._repair(text, counts)
        text = self._drop_lines(text, counts)
        if self.max_blank_lines is not None:
            text = limit_blank_lines(text, self.max_blank_lines, counts)
        return text, dict(+counts)

    def _repair(self, text: str, counts: Counts) -> str:
        if self.control_characters:
            text, num_breaks = LINE_BREAK.subn("\n", text) if _has_line_breaks(text) else (text, 0)
            counts["line_breaks"] += num_breaks
        if self.mojibake and not text.isascii():
            text = fix_mojibake(text, counts)
        if self.normalize and not unicodedata.is_normalized("NFC", text):
            text = normalize(text, counts)
        if self.control_characters:
            text = drop_control_characters(text, counts)
        return strip_lines(text, counts) if self.trailing_whitespace else text

    def _drop_lines(self, text: str, counts: Counts) -> str:
        lines = text.split("\n")
        kept = drop_boilerplate(lines, self.boilerplate) if self.boilerplate else lines
        counts["boilerplate_lines"] += len(lines) - len(kept)
        often = self._repeated(kept)
        fewer = limit_repeats(kept, often, self.max_repeats, self.max_repeats_in_a_row) if often else kept
        counts["repeated_lines"] += len(kept) - len(fewer)
        return text if len(fewer) == len(lines) else "\n".join(fewer)

    def _repeated(self, lines: list[str]) -> set[str]:
        """The different lines that may be too often there."""
        limits = [limit for limit in (self.max_repeats, self.max_repeats_in_a_row) if limit is not None]
        if not limits:
            return set()
        often = {line for line, count in Counter(lines).items() if count > min(limits)}
        return {line for line in often if len(line) >= self.repeat_min_length and is_sentence_like(line)}


def _has_line_breaks(text: str) -> bool:
    # Five searches at the speed of memchr: much faster than one regular expression.
    return any(mark in text for mark in "\r\x0b\x0c\u2028\u2029")


def fix_mojibake(text: str, counts: Counts) -> str:
    """Lines as `ftfy.fix_encoding` has them; a line beyond a million characters is seen in pieces."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.isascii() and SUSPECT.search(line):
            fix_encoding = optional("ftfy", extra="data").fix_encoding
            fixed = "".join(fix_encoding(piece) for piece in pieces(line))
            if fixed != line:
                lines[number] = fixed
                counts["mojibake_lines"] += 1
    return "\n".join(lines)


def normalize(text: str, counts: Counts) -> str:
    """Unicode NFC; a newline never composes with what follows it, so lines stay lines."""
    after = unicodedata.normalize("NFC", text)
    pairs = zip(text.split("\n"), after.split("\n"), strict=True)
    counts["normalized_lines"] += sum(old != new for old, new in pairs)
    return after


def drop_control_characters(text: str, counts: Counts) -> str:
    """The text without what `CONTROL` matches; a terminal's colour goes with its parameters."""
    if text.isascii() and len(text.encode().translate(None, ASCII_CONTROL)) == len(text):
        return text  # Twenty times faster than the search.
    after = CONTROL.sub("", text)
    counts["control_characters"] += len(text) - len(after)
    return after


def strip_lines(text: str, counts: Counts) -> str:
    """No spaces or tabs at line ends; line by line, since a regular expression is quadratic in a long run of spaces."""
    if not (" \n" in text or "\t\n" in text or text.endswith((" ", "\t"))):
        return text
    after = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    counts["trailing_whitespace"] += len(text) - len(after)
    return after


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def drop_boilerplate(lines: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The lines that no pattern matches whole; indented, blank and very long ones are not looked at."""
    matches = _compiled(patterns).fullmatch
    return [
        line
        for line in lines
        if not line or line[0] in " \t" or len(line) > LONGEST_BOILERPLATE or not matches(line.rstrip(" \t"))
    ]


def is_sentence_like(line: str) -> bool:
    """Not indented, and more than half of it letters and single spaces."""
    words = line.split()
    return line[0] not in " \t" and 2 * (sum(map(str.isalpha, line)) + len(words) - 1) > len(line)


def limit_repeats(lines: list[str], often: set[str], most: int | None, most_in_a_row: int | None) -> list[str]:
    """The lines, those in `often` at most so many times in all and in a row; blank lines do not end a row."""
    kept: list[str] = []
    times = Counter[str]()
    previous, row = "", 0
    for line in lines:
        again = row if line == previous else 0
        if line in often:
            if _reached(times[line], most) or _reached(again, most_in_a_row):
                continue
            times[line] += 1
        if line:
            previous, row = line, again + 1
        kept.append(line)
    return kept


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def limit_blank_lines(text: str, most: int, counts: Counts) -> str:
    """No run of empty lines longer than `most`, at the beginning and at the end as in between."""
    before = len(text)
    if text.startswith("\n" * (most + 1)):
        text = "\n" * most + text.lstrip("\n")
    if "\n" * (most + 2) in text:
        text = re.sub("\n" * (most + 1) + "\n+", "\n" * (most + 1), text)
    counts["blank_lines"] += before - len(text)
    return text
