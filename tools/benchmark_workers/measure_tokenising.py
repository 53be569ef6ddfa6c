"""A worker of tools/benchmark.py: text to tokens on all cores, `tokenizers` alone or all the way into shards.

The text is the standard library's, the tokenizer trained on a part of it. "encode": `encode_batch` of the tokenizers
package on the whole text at once, its ids left where they are; "encode_fast": the same without places in the text.
"shards": reading chunks of the same text back from disk, tokens with bos and eos, checksummed shard files. All get the
same documents.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.chunks import CHUNK_BYTES, Treatment, cut_into_chunks, open_chunk, treat
from data.deduplication import KEEP
from data.shard_writer import ShardWriter
from data.stdlib_source import StdlibSourceConfig
from data.tokenizer import BPETokenizerConfig
from utils.benchmarking import Row, serve


def silent(*arguments: object) -> None:
    """Nobody asks how far it is."""


def prepare(spec: Row) -> tuple[Row, Callable[[], Row]]:
    """`kind`: encode, encode_fast or shards; `max_documents` of the library are used; the rest of a spec is ignored."""
    source = StdlibSourceConfig(max_documents=spec["max_documents"])
    texts = [text for text, _ in source.documents(report=silent)]
    tokenizer = BPETokenizerConfig(vocab_size=spec["vocab_size"]).build(texts[::8])
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    folder = Path(tempfile.mkdtemp())
    raws = cut_into_chunks(source, "train-00", folder, None, silent, min(CHUNK_BYTES, num_bytes // 2))
    chunks = [treat(raw, Treatment(None, (), None)) for raw in raws]
    verdicts = [np.full(len(open_chunk(path).hashes), KEEP, np.uint8) for path in chunks]

    backend = tokenizer.backend
    encode = backend.encode_batch if spec["kind"] == "encode" else backend.encode_batch_fast
    facts: Row = {"text_bytes": num_bytes, "num_documents": len(texts)}

    def run() -> Row:
        start = time.perf_counter()
        if spec["kind"] != "shards":
            encoded = encode(texts, add_special_tokens=False)
            seconds = time.perf_counter() - start
            facts["num_ids"] = sum(len(each.ids) for each in encoded)
            return {"seconds": seconds}
        with tempfile.TemporaryDirectory() as out:
            writer = ShardWriter(Path(out), tokenizer, np.dtype(np.uint16), silent, silent)
            rows = writer.train(0, "library", chunks, verdicts, None)
            seconds = time.perf_counter() - start
        facts["num_ids"] = sum(row["tokens"] - 2 * row["documents"] for row in rows)
        return {"seconds": seconds}

    run()  # For the count, and to warm up.
    return facts, run


if __name__ == "__main__":
    serve(prepare)
