"""What every source of documents has in common; the kinds themselves lie beside it, one table row each.

A source is a generator of `(document, state)`; `state` is JSON and exactly what is needed to go on behind that
document: `source.documents(state)` yields what never stopping would have yielded, without reading again what came
before (a place in a file, a row group or a number is all that a state holds). Text is taken as it is: UTF-8, nothing
normalised. A few broken lines or files are counted and named, more than 1 % stop; what is left out by rule is counted.
To add a source, write a `SourceConfig` subclass with `walk` and `origin`, and add its row to `data/__init__.py`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from data.cache import Report
from utils.errors import DataError
from utils.schema import TypedSection

MAX_BAD_FRACTION = 0.01
JUDGE_AFTER = 1000
NUM_NAMED = 5
State = dict[str, Any]
Documents = Iterator[tuple[str, State]]

START: State = {"block": 0, "offset": 0, "part": 0}
"""Where a file begins; what block, offset and part mean is known to the reader of that kind of file only."""
COUNTS: State = {"documents": 0, "file": 0, **START, "seen": 0, "bad": 0, "named": [], "left_out": {}}


class Part(NamedTuple):
    """One line, file or row of a source: a document, or why it is none."""

    text: str
    """The document; empty when there is none."""
    place: State
    """Where the next part begins: the keys of `START` that changed."""
    problem: str | None = None
    """What is broken, with file and line. More than 1 % of such parts stop the run."""
    left_out: str | None = None
    """The rule by which it is not a document, in a word or two: counted and reported, however many there are."""


class SourceConfig(TypedSection):
    """What all sources have in common."""

    remedy: ClassVar[str] = "check data.sources"
    unit: ClassVar[str] = "file"
    """What a part is called in reports."""

    name: str | None = Field(default=None, min_length=1)
    """What mixtures, reports and logs call it; null: its path, dataset or type."""
    weight: float = Field(default=1.0, gt=0)
    """How much of it: by `mixture.by`, how often its documents come in an epoch (2.5 is five passes in two epochs), or
    its share of the tokens or documents."""
    max_documents: int | None = Field(default=None, gt=0)
    """Read no more than the first so many documents; null: all."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Stop before the training document that would take this source past so many tokens, weight not counted."""

    def documents(self, state: State | None = None, report: Report = print) -> Documents:
        """The documents that follow `state` (None: all), each with the state behind it. Empty ones are left out."""
        begin = state or {"documents": 0}
        if begin["documents"] == self.max_documents:
            self.judge(begin, report)
            return
        state = begin
        for text, state in self.walk(begin, report):
            yield text, state
            if state["documents"] == self.max_documents:
                self.judge(state, report)
                return
        if not state["documents"]:
            raise DataError(f"{self.label()}: holds no documents; check data.sources")

    def walk(self, state: State, report: Report) -> Documents:
        """The documents behind `state`; `state["documents"]` counts those before. A subclass gives it."""
        raise NotImplementedError

    def walk_files(self, files: Sequence[Any], state: State, report: Report) -> Documents:
        """`walk` for a source made of files: those that `parts` finds in each, one file after another."""
        state = COUNTS | state
        for number in range(state["file"], len(files)):
            for part in self.parts(files[number], state):
                state = self.count(state | part.place | {"file": number}, part)
                if part.text:
                    state = state | {"documents": state["documents"] + 1}
                    yield part.text, state
            state = state | START | {"file": number + 1}
        self.judge(state, report)

    def parts(self, file: Any, state: State) -> Iterator[Part]:
        """What a file holds from the place in `state` on. A source that uses `walk_files` gives it."""
        raise NotImplementedError

    def count(self, state: State, part: Part) -> State:
        """Count one part; stop early when, after the first thousand, more than 1 % are broken."""
        state = state | {"seen": state["seen"] + 1}
        if part.left_out:
            number = state["left_out"].get(part.left_out, 0) + 1
            return state | {"left_out": state["left_out"] | {part.left_out: number}}
        if part.problem:
            state = state | {"bad": state["bad"] + 1, "named": [*state["named"], part.problem][:NUM_NAMED]}
            if state["seen"] >= JUDGE_AFTER and state["bad"] > MAX_BAD_FRACTION * state["seen"]:
                raise DataError(*bad_lines(state, self.unit), self.remedy)
        return state

    def judge(self, state: State, report: Report) -> None:
        """At the end: name what was broken. Raises DataError when it was more than 1 % of what was read."""
        bad = state.get("bad", 0)
        if bad > MAX_BAD_FRACTION * state.get("seen", 0):
            raise DataError(*bad_lines(state, self.unit), self.remedy)
        for line in bad_lines(state, self.unit) if bad else []:
            report(f"left out: {line}")
        for line in left_out_lines(state, self.unit):
            report(f"{self.label()}: {line}")

    def label(self) -> str:
        """What messages, mixtures and logs call this source."""
        return self.name or self.type

    def origin(self) -> dict[str, Any]:
        """JSON that changes when the documents may have: part of the name of what is prepared from them."""
        raise NotImplementedError

    def find_problems(self) -> list[str]:
        """What is missing, found without reading documents."""
        raise NotImplementedError


def bad_lines(state: State, unit: str) -> list[str]:
    """What was broken: how many parts of those read so far, and the first few by name."""
    head = f"{state['bad']} of {state['seen']} {unit}s read are broken; {MAX_BAD_FRACTION:.0%} may be"
    more = state["bad"] - len(state["named"])
    return [head, *state["named"], *([f"... and {more} more"] if more else [])]


def left_out_lines(state: State, unit: str) -> list[str]:
    """How many parts were left out by each rule."""
    counts = state.get("left_out", {})
    return [f"left out: {counts[rule]} {unit}s of {state['seen']}: {rule}" for rule in sorted(counts)]
