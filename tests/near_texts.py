"""Texts of random words for tests of deduplication, and how alike two of them are, by sets."""

import random


def text_of(num_words: int, seed: int = 0, vocabulary: int = 5000) -> str:
    """Random words; the same for the same seed."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(vocabulary)}" for _ in range(num_words))


def runs_of(text: str, ngram: int) -> set[tuple[str, ...]]:
    """The runs of `ngram` words, or the one of all words where these are fewer."""
    words = text.lower().split()
    return {tuple(words[start : start + ngram]) for start in range(max(1, len(words) - ngram + 1))}


def jaccard(one: str, other: str, ngram: int) -> float:
    """Runs in both over runs in either."""
    of_one, of_other = runs_of(one, ngram), runs_of(other, ngram)
    return len(of_one & of_other) / len(of_one | of_other)
