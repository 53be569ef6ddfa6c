"""Stories made by a grammar, for tests and demos where no corpus may be fetched.

Honestly: this is synthetic text. It has names, pronouns that agree, things that stay what they are, dialogue, and one
to three plots of setup, trouble and resolution, from some eight hundred words; there are eight plots, told in very many
ways. A model learns from it spelling, these sentences, agreement, and to remember who and what a story is about. It
cannot learn facts, reasoning, or any sentence that is not in `data/grammar.py` and `data/plots.py`, and its loss says
nothing about real text: with enough training it falls to the entropy of the draws, far below that of English. Story i
is a function of (seed, i), so any place is reached at once.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field

from data.cache import Report
from data.grammar import (
    ANIMALS,
    COLORS,
    DRAWN,
    ENDINGS,
    GROWN_UPS,
    HABITS,
    LINKS,
    NAMES,
    OPENINGS,
    PLACES,
    PRONOUNS,
    SCENES,
    THINGS,
)
from data.order import hash_words
from data.plots import PLOTS, Plot
from data.sources import Documents, SourceConfig, State

STORY_STREAM = 0x53544F5259
GRAMMAR = 1
"""Counts up when the stories change, so that what was prepared from the old ones is made again."""
DRAWS = 256
BLOCK = 32
NUM_PLOTS = (1, 1, 1, 1, 1, 2, 2, 3)
VOWELS = "aeiou"


class SyntheticSourceConfig(SourceConfig):
    """Small stories from a grammar: synthetic text, about 1 KB each, no download."""

    type: str = "synthetic"
    """Row of data.SOURCES."""
    num_documents: int = Field(default=10_000, gt=0, alias="documents")
    """How many stories there are."""
    seed: int = Field(default=0, ge=0)
    """Other seeds, other stories."""

    def walk(self, state: State, report: Report) -> Documents:
        """See `SourceConfig.walk`."""
        for number in range(state["documents"], self.num_documents):
            yield tell(self.seed, number), {"documents": number + 1}

    def origin(self) -> dict[str, Any]:
        """See `SourceConfig.origin`."""
        return {"grammar": GRAMMAR, "seed": self.seed, "num_documents": self.num_documents}

    def find_problems(self) -> list[str]:
        """See `SourceConfig.find_problems`: nothing can be missing."""
        return []


class Story(dict[str, str]):
    """The slots of a story: what was chosen for it, and words drawn anew each time they are asked for."""

    def __init__(self, draws: Iterator[int]) -> None:
        super().__init__()
        self.draws = draws

    def draw(self, options: tuple[Any, ...]) -> Any:
        """One of the options."""
        return options[next(self.draws) % len(options)]

    def __missing__(self, slot: str) -> str:
        if slot.islower():
            return self.draw(DRAWN[slot])
        return capital(self.draw(DRAWN[slot.lower()]))


def draw_words(seed: int, number: int) -> Iterator[int]:
    """Endless uint64 words, a function of seed and number of the story; they come again after `DRAWS`."""
    block, row = divmod(number, BLOCK)
    return itertools.cycle(_words_of(seed, block)[row].tolist())


@functools.lru_cache(maxsize=2)
def _words_of(seed: int, block: int) -> np.ndarray:
    """[BLOCK, DRAWS] uint64: the words of the stories of a block, made together because that is faster."""
    first = block * BLOCK * DRAWS
    return hash_words(seed, STORY_STREAM, np.arange(first, first + BLOCK * DRAWS)).reshape(BLOCK, DRAWS)


def tell(seed: int, number: int) -> str:
    """Story `number`: paragraphs with an empty line between them."""
    story = cast(seed, number)
    told = [sentences(story, (OPENINGS, HABITS, SCENES))]
    for place, plot in enumerate(plots_of(story)):
        story.update({slot: text.format_map(story) for slot, text in zip("abcd", story.draw(plot.rows), strict=False)})
        first, *others = plot.paragraphs
        told += [sentences(story, (LINKS, *first) if place else first)]
        told += [sentences(story, moments) for moments in others]
    told.append(sentences(story, (ENDINGS, plot.morals)))
    return "\n\n".join(text for text in told if text)


def plots_of(story: Story) -> list[Plot]:
    """One plot for most stories, two or three for the others; none twice, because the step is odd and they are 8."""
    first, step = next(story.draws), 2 * story.draw((0, 1, 2, 3)) + 1
    return [PLOTS[(first + step * place) % len(PLOTS)] for place in range(story.draw(NUM_PLOTS))]


def cast(seed: int, number: int) -> Story:
    """The people, things and place of a story."""
    story = Story(draw_words(seed, number))
    hero = _person(story, "", "H")
    _person(story, "f", "F", hero)
    gender = story.draw(("girl", "boy"))
    _name(story, "g", "G", gender, story.draw(GROWN_UPS[gender]))
    story["Gc"] = capital(story["G"])
    story["o"], story["P"] = story.draw(THINGS), story.draw(PLACES)
    story["P_"] = capital(story["P"])
    story["O"] = f"{story.draw(COLORS)} {story['o']}"
    story["aO"] = f"{'an' if story['O'][0] in VOWELS else 'a'} {story['O']}"
    return story


def _person(story: Story, prefix: str, slot: str, other: str = "") -> str:
    """Choose a child or an animal with a name that `other` does not have."""
    gender = story.draw(("girl", "boy"))
    names = NAMES[gender]
    place = next(story.draws) % len(names)
    name = names[place] if names[place] != other else names[place - 1]
    story[f"{prefix}kind"] = gender if story.draw((True, False)) else story.draw(ANIMALS)
    _name(story, prefix, slot, gender, name)
    return name


def _name(story: Story, prefix: str, slot: str, gender: str, name: str) -> None:
    story[slot] = name
    for role, pronoun in zip(("he", "him", "his"), PRONOUNS[gender], strict=True):
        story[f"{prefix}{role}"] = pronoun
        story[f"{prefix.upper()}{role.capitalize()}"] = capital(pronoun)


def sentences(story: Story, moments: tuple[tuple[str, ...], ...]) -> str:
    """One choice of each moment, filled in."""
    told = (story.draw(moment).format_map(story) for moment in moments)
    return " ".join(capital(text) for text in told if text)


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]
