"""A worker of tools/benchmark.py: `tools/prepare-data.py` on a large corpus, with the memory of all its processes.

The corpus is stories of the synthetic source and copies of them under other alphabets (a letter for a letter), which
share no words with the first, so that near-deduplication has as much to remember as with real text; one in twenty
documents comes again with a word changed. The peak is that of the sum over the processes of the proportional set
size (Linux: `smaps_rollup`; shared pages counted once), looked at five times a second.
"""

import json
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data.preparation_report import read_report
from data.synthetic import SyntheticSourceConfig
from utils.benchmarking import Row, serve

ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS = 0.2
CONFIG = """
data:
  type: text
  sources: [{type: jsonl, path: %(path)s}]
  clean: {}
  filters: [{type: length, min_words: 10}]
  deduplicate: {exact: true, near: {jaccard: 0.8}}
  tokenizer: {type: bpe, vocab_size: 8192}
  cache_dir: %(folder)s/cache
"""


def write_corpus(path: Path, num_bytes: int, num_stories: int) -> Row:
    """Write the corpus; how much was planted."""
    stories = [text for text, _ in SyntheticSourceConfig(documents=num_stories).documents(report=lambda line: None)]
    draw, written, documents, copies, alphabet = random.Random(0), 0, 0, 0, string.ascii_lowercase
    with open(path, "w", encoding="utf-8") as file:
        while written < num_bytes:
            shuffled = "".join(draw.sample(alphabet, 26)) if documents else alphabet
            table = str.maketrans(alphabet + alphabet.upper(), shuffled + shuffled.upper())
            for number, story in enumerate(stories):
                text = story.translate(table)
                written += file.write(json.dumps({"text": text}) + "\n")
                documents += 1
                if number % 20 == 0:
                    words = text.split(" ")
                    words[draw.randrange(len(words))] = "another"
                    written += file.write(json.dumps({"text": " ".join(words)}) + "\n")
                    documents, copies = documents + 1, copies + 1
    return {"text_bytes": written, "num_documents": documents, "planted_copies": copies}


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """Write `num_bytes` of text made of `num_stories` stories at a time; a round prepares it from nothing."""
    folder = tempfile.TemporaryDirectory(dir=spec.get("folder"))
    place = Path(folder.name)
    facts = write_corpus(place / "corpus.jsonl", spec["num_bytes"], spec["num_stories"])
    (place / "config.yaml").write_text(CONFIG % {"path": place / "corpus.jsonl", "folder": place})

    def run() -> Row:
        start, peak = time.perf_counter(), 0
        out = place / f"out-{time.monotonic_ns()}"
        command = [sys.executable, str(ROOT / "tools" / "prepare-data.py"), "--config", str(place / "config.yaml")]
        with open(place / "log.txt", "w") as log:
            process = subprocess.Popen([*command, "--out", str(out)], stdout=log, stderr=log)
            while process.poll() is None:
                peak = max(peak, sum(map(proportional_bytes, family(process.pid))))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise RuntimeError((place / "log.txt").read_text()[-2000:])
        dropped = read_report(out)["sources"][0]["dropped"]
        found = dropped.get("near_duplicate", 0) + dropped.get("duplicate", 0) + dropped.get("in_held_out_text", 0)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak_bytes": peak, "copies_dropped": found, "dropped": json.dumps(dropped)}

    run.folder = folder  # pyright: ignore[reportFunctionMemberAccess] -- lives as long as the rounds
    return facts, run


if __name__ == "__main__":
    serve(prepare)
