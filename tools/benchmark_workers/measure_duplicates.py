"""A worker of tools/benchmark.py: near-duplicates found among planted ones, and the index when it is large.

"planted": random texts, and for each one another that differs in words replaced, so that the true Jaccard similarity
(by sets, counted exactly) is uniform in 0.8 to 1 for one half, the duplicates, and in 0 to 0.8 for the other. The
originals are judged first; of the others, those called NEAR are found. Facts: recall, precision, and both by bin; a
round: fingerprinting and judging all, on one core. "index": sketches of random numbers, one in ten a repeat; a round
judges all of them with an empty index.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.deduplication import NEAR, DeduplicationConfig, Fingerprints
from data.minhash import NearConfig, band_keys
from utils.benchmarking import Row, max_rss_bytes, serve

NUM_WORDS = 20_000
BIN = 0.05


def shingles(words: list[str], ngram: int) -> set[tuple[str, ...]]:
    """The runs of `ngram` words."""
    return {tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)}


def jaccard(one: list[str], other: list[str], ngram: int) -> float:
    """Of two texts, exactly."""
    of_one, of_other = shingles(one, ngram), shingles(other, ngram)
    return len(of_one & of_other) / len(of_one | of_other)


def edited(words: list[str], wanted: float, ngram: int, draw: random.Random) -> list[str]:
    """A copy at about the similarity wanted: words here and there and runs of words replaced by new ones."""
    num_lost = (len(words) - ngram + 1) * (1 - wanted) / (1 + wanted)
    copy, num_done = list(words), 0.0
    while num_done < num_lost:
        length = min(draw.choice((1, 1, 10, 40)), max(1, round(num_lost - num_done - ngram + 1)))
        start = draw.randrange(len(copy))
        for place in range(start, min(start + length, len(copy))):
            copy[place] = f"new{draw.randrange(NUM_WORDS)}"
        num_done = len(shingles(words, ngram) - shingles(copy, ngram))
    return copy


def plant(num_pairs: int, ngram: int, seed: int) -> Iterator[tuple[str, str, float]]:
    """(original, other, true similarity): as many from 0.8 on as below, uniform in each half; 40 to 3000 words."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(NUM_WORDS)]
    left = {True: num_pairs // 2, False: num_pairs // 2}
    while any(left.values()):
        is_duplicate = draw.random() < left[True] / (left[True] + left[False])
        original = draw.choices(words, k=min(3000, max(40, round(draw.lognormvariate(5.5, 0.8)))))
        other = edited(original, draw.uniform(0.8, 1) if is_duplicate else draw.uniform(0, 0.8), ngram, draw)
        similarity = jaccard(original, other, ngram)
        # What an edit carried over the line is no fair draw from the other side.
        if left[is_duplicate] and (similarity >= 0.8) == is_duplicate:
            left[is_duplicate] -= 1
            yield " ".join(original), " ".join(other), similarity


def score(similarities: np.ndarray, is_found: np.ndarray) -> Row:
    """Recall and precision at 0.8; the share found in each bin of similarity, by its lower end."""
    is_duplicate = similarities >= 0.8
    bins = np.floor(similarities / BIN + 1e-9).astype(int).clip(0, round(1 / BIN) - 1)
    curve = {f"{number * BIN:.2f}": round(float(is_found[bins == number].mean()), 4) for number in np.unique(bins)}
    return {
        "recall": float(is_found[is_duplicate].mean()),
        "precision": float(is_duplicate[is_found].mean()),
        "found_by_similarity": curve,
    }


def prepare_planted(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Plant `num_pairs`; a round fingerprints and judges them."""
    near = NearConfig(num_perm=spec["num_perm"])
    config = DeduplicationConfig(near=near)
    originals, others, similarities = zip(*plant(spec["num_pairs"], near.ngram, spec["seed"]), strict=True)
    num_bytes = sum(len(text.encode()) for text in originals + others)

    def run() -> tuple[np.ndarray, np.ndarray, Row]:
        start = time.perf_counter()
        prints = [config.fingerprint(originals), config.fingerprint(others)]
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, config.open(Path(folder), print) as duplicates:
            verdicts = [duplicates.judge(part, held_out=False) for part in prints]
        end = time.perf_counter()
        rates = {
            "fingerprint_bytes_per_second": num_bytes / (middle - start),
            "judged_per_second": 2 * len(originals) / (end - middle),
        }
        return verdicts[0], verdicts[1], {"seconds": end - start} | rates

    first, second, _ = run()
    facts = score(np.array(similarities), second == NEAR) | {"text_bytes": num_bytes}
    facts["unrelated_called_near"] = int((first == NEAR).sum())
    return facts, lambda: run()[2]


def random_prints(num_documents: int, near: NearConfig) -> Iterator[Fingerprints]:
    """Batches of sketches of random minima; a tenth of each batch but the first comes again from the one before."""
    size, draw, last = 10_000, np.random.default_rng(0), None
    for start in range(0, num_documents, size):
        count = min(size, num_documents - start)
        minima = draw.integers(0, 1 << 32, (count, near.num_perm), dtype=np.uint32)
        if last is not None:
            minima[: count // 10] = last[-(count // 10) :]
        packed = minima.astype(np.uint16).view(np.uint32)
        hashes = draw.integers(0, 1 << 64, (count, 2), dtype=np.uint64)
        yield Fingerprints(hashes, np.concatenate([band_keys(minima, near.plan()), packed], axis=1))
        last = minima


def prepare_index(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """A round judges `num_documents` sketches; only judging is timed."""
    near = NearConfig(num_perm=spec["num_perm"])
    config = DeduplicationConfig(near=near)

    def run() -> Row:
        seconds = num_near = num_bytes = 0
        before = max_rss_bytes()
        with tempfile.TemporaryDirectory() as folder, config.open(Path(folder), print) as duplicates:
            for prints in random_prints(spec["num_documents"], near):
                start = time.perf_counter()
                num_near += int((duplicates.judge(prints, held_out=False) == NEAR).sum())
                seconds += time.perf_counter() - start
            num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
        peak = max_rss_bytes()
        usage = {"index_bytes": num_bytes, "peak_bytes": peak, "peak_above_bytes": peak - before}
        rate = {"judged_per_second": spec["num_documents"] / seconds, "called_near": num_near}
        return {"seconds": seconds} | usage | rate

    return {}, run


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """By `kind`."""
    return {"planted": prepare_planted, "index": prepare_index}[spec["kind"]](spec)


if __name__ == "__main__":
    serve(prepare)
