"""What `data/inspection.py` finds, as lines for a person: rows as text, tables of tokens, the corpus in numbers.

Text is shown on one line: special tokens stand in angle quotes, where they cannot be taken for text that spells them;
line breaks and tabs are arrows, other characters that cannot be printed are escapes as in Python.
To show something else of a piece, edit `piece_lines`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from data.batch import positions_of
from data.inspection import Copies, Course, Found, Inspected, Lengths, Survey
from data.store import StoredDocuments
from data.tokenizer import Tokenizer

OPEN, CLOSE, BREAK, TAB = "\u00ab", "\u00bb", "\u21b5", "\u2192"
LEGEND = (
    f"{OPEN}{CLOSE} special token, {BREAK} line break, {TAB} tab; documents, tokens and positions count from 0,",
    "documents in the order in which their source is read, before anything is dropped",
)
SHOWN_CHARACTERS = 150
BEGINNING_TOKENS = 48
BEGINNING_CHARACTERS = 70
NUM_PARTS = 6


def visible(text: str) -> str:
    """The text on one line, with nothing in it that cannot be seen."""
    arrows = {"\n": BREAK, "\t": TAB}
    return "".join(
        arrows.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )


def spell(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The visible text of these ids; special tokens, and ids that the tokenizer does not have, in angle quotes."""
    special = {i: token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    special |= {token: f"{token}?" for token in set(tokens) if tokenizer.backend.id_to_token(token) is None}
    parts = []
    for is_special, run in groupby(tokens, key=special.__contains__):
        if is_special:
            parts += [f"{OPEN}{special[token]}{CLOSE}" for token in run]
        else:
            parts.append(visible(tokenizer.decode(list(run))))
    return "".join(parts)


def shorten(text: str, most: int) -> str:
    """The beginning and the end where the text has more than `most` characters."""
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def ranges(mask: np.ndarray) -> str:
    """Where a bool array is true, for example `0-127, 200`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))).reshape(-1, 2)
    return ", ".join(f"{a}-{b - 1}" if b - a > 1 else f"{a}" for a, b in edges.tolist()) or "none"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Aligned columns, the first to the left, the others to the right; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def row_lines(inspected: Inspected, row: int, tokenizer: Tokenizer, names: Sequence[str]) -> Iterator[str]:
    """A row of the batch: its pieces with their origin and text, and what the loss counts."""
    counts = inspected.batch.weights[row] > 0
    pieces, length = inspected.pieces[row], len(counts)
    yield (
        f"row {row + 1} of {len(inspected.pieces)} (row {inspected.before['row'] + row + 1:,} of the run): "
        f"{plural(len(pieces), 'piece')}, the loss counts {counts.sum()} of {length} positions "
        f"({counts.mean():.1%}): {ranges(counts)}"
    )
    for number in range(len(pieces)):
        yield from piece_lines(inspected, row, number, tokenizer, names)


def piece_lines(
    inspected: Inspected, row: int, number: int, tokenizer: Tokenizer, names: Sequence[str]
) -> Iterator[str]:
    """One piece of a row."""
    piece, (begin, end) = inspected.pieces[row][number], inspected.places(row)[number]
    tokens, targets = (array[row, begin:end].tolist() for array in inspected.batch[:2])
    counts = inspected.batch.weights[row, begin:end] > 0
    yield (
        f"  [{number + 1}] {names[piece.source]}: document {piece.ordinal:,} (kept as {piece.document:,}), "
        f"epoch {piece.epoch}, tokens {piece.start:,} to {piece.start + piece.length:,}"
    )
    told = ", rearranged to fill in the middle" if piece.transformed else ""
    loss = "all" if counts.all() else f"{counts.mean():.1%}"
    yield f"      at positions {begin} to {end - 1}, the loss counts {loss}{told}"
    yield f"      {shorten(spell(tokenizer, [*tokens, targets[-1]]), SHOWN_CHARACTERS)}"


def token_lines(inspected: Inspected, row: int, tokenizer: Tokenizer) -> list[str]:
    """A row of the batch as a table with a line for each position."""
    batch = inspected.batch
    places = positions_of(batch.segments[row : row + 1])[0]
    columns = [array[row].tolist() for array in (batch.segments, batch.weights, batch.tokens, batch.targets)]
    lines: list[list[str]] = [["position", "segment", "in piece", "weight", "id", "target", "token", "target token"]]
    for position, (place, segment, weight, *ids) in enumerate(zip(places.tolist(), *columns, strict=True)):
        spelled = [spell(tokenizer, [each]) if segment else "" for each in ids]
        lines.append([str(position), str(segment), str(place), f"{weight:g}", *map(str, ids), *spelled])
    return table(lines)


def batch_lines(inspected: Inspected, names: Sequence[str], asked: Sequence[float]) -> list[str]:
    """The batch in numbers."""
    batch, pieces = inspected.batch, inspected.pieces
    num_rows, length = batch.weights.shape
    per_row = [len(each) for each in pieces]
    documents = {(piece.source, piece.document) for each in pieces for piece in each}
    counted = inspected.counted(len(names))
    present = [sum(piece.source == source for each in pieces for piece in each) for source in range(len(names))]
    head = ("source", "pieces", "tokens", "share", "asked")
    rows = [
        (name, f"{number:,}", f"{count:,}", percent(count / max(1, sum(counted))), percent(share))
        for name, number, count, share in zip(names, present, counted, asked, strict=True)
    ]
    return [
        f"{num_rows} rows of {length} positions, of which the loss counts {batch.weights.mean():.2%}",
        f"{plural(sum(per_row), 'piece')} of {plural(len(documents), 'document')}: "
        f"{sum(per_row) / num_rows:.1f} in a row, {min(per_row)} to {max(per_row)}",
        *table([head, *rows]),
    ]


def survey_lines(found: Survey, stored: StoredDocuments, tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """The training documents in numbers, the longest ones, and copies."""
    total = sum(stored.num_tokens)
    head = ("source", "documents", "tokens", "share", "median", "p90", "longest")
    columns = zip(names, stored.num_documents, stored.num_tokens, found.lengths, strict=True)
    rows = [
        (name, f"{documents:,}", f"{tokens:,}", percent(tokens / max(1, total)), *quantiles(lengths))
        for name, documents, tokens, lengths in columns
    ]
    longest = [
        f"  {each.length:,} tokens: {where(each, names)}: {beginning(each, stored, tokenizer)}"
        for each in found.longest
    ]
    return [
        f"{plural(sum(stored.num_documents), 'document')} of {total:,} tokens; lengths in tokens:",
        *table([head, *rows]),
        "longest documents:",
        *longest,
        *copy_lines(found.copies, stored, tokenizer, names),
    ]


def quantiles(lengths: Lengths) -> list[str]:
    """The median, the length that one document in ten exceeds, and the greatest."""
    return [f"{lengths.at(share):,}" for share in (0.5, 0.9, 1.0)]


def copy_lines(copies: Copies, stored: StoredDocuments, tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """Exact copies: how many, where, and the most frequent texts."""
    number = sum(copies.by_source)
    share = f"{number / max(1, copies.num_documents):.2%}"
    of = "" if copies.sampled == 1 else f", of a sample of {copies.sampled:.4g} of all texts"
    lines = [f"exact copies of an earlier document: {number:,} of {copies.num_documents:,} ({share}){of}"]
    if copies.num_across:
        lines.append(f"  {plural(copies.num_across, 'text')} in more than one source")
    if number:
        each = [f"{count:,} in {name}" for name, count in zip(names, copies.by_source, strict=True) if count]
        lines.append(f"  {', '.join(each)}")
    for times, places in copies.most:
        found = "; ".join(where(place, names) for place in places)
        more = ", ..." if times > len(places) else ""
        lines.append(f"  {times:,} times: {beginning(places[0], stored, tokenizer)}")
        lines.append(f"      {found}{more}")
    return lines


def course_lines(asked: Course, observed: Course, names: Sequence[str]) -> list[str]:
    """What some parts of the run hold of each source, and in brackets what was asked for."""
    steps = np.unique(np.linspace(0, observed.edges[-1], NUM_PARTS + 1).round().astype(np.int64))
    found, wanted = (course.within(steps) for course in (observed, asked))
    head = ["observed (asked)", *(f"to update {step:,}" for step in steps[1:].tolist())]
    cells = [
        [f"{percent(got)} ({percent(want)})" for got, want in zip(*columns, strict=True)]
        for columns in zip(found.T.tolist(), wanted.T.tolist(), strict=True)
    ]
    lines = table([head, *([name, *each] for name, each in zip(names, cells, strict=True))], indent="")
    if observed.edges[-1] < asked.edges[-1]:
        lines.append(f"only the beginning, to update {observed.edges[-1]:,}, was looked at or is there")
    return lines


def where(found: Found, names: Sequence[str]) -> str:
    """The source of a document and its number there."""
    return f"{names[found.source]}, document {found.ordinal:,}"


def beginning(found: Found, stored: StoredDocuments, tokenizer: Tokenizer) -> str:
    """The first words of a document."""
    tokens = stored.document(found.source, found.document)[1:BEGINNING_TOKENS].tolist()
    return spell(tokenizer, tokens)[:BEGINNING_CHARACTERS]


def percent(share: float) -> str:
    """A share with one digit, a dash where there is none."""
    return "-" if np.isnan(share) else f"{share:.1%}"


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
